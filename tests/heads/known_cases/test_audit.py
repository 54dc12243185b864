from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import images, write_store

from featcache.errors import StoreError
from featcache.images import ImageTable
from featcache.settings import load_settings
from heads.known_cases.audit import CSV_COLUMNS, Audit, audit, run_audit, sheets, write_findings
from heads.known_cases.contact_sheet import SIDE, contact_sheet

ANYWHERE = Path("films")


@pytest.fixture(scope="module")
def table() -> ImageTable:
    """Rows 40 and 60, of two patients, have the same bytes; row 2, of test, bears the other class's label."""
    table = images({"train": (40, 80), "val": (4, 4), "test": (20, 30)})
    sha256, label = table.sha256.copy(), table.label.copy()
    sha256[60], label[2] = sha256[40], 1 - label[2]
    return dataclasses.replace(table, sha256=sha256, label=label)


@pytest.fixture(scope="module")
def found(table: ImageTable) -> Audit:
    features = np.random.default_rng(0).gamma(2.0, 1.0, (len(table), 48))
    turned = table.label.copy()
    turned[2] = 1 - turned[2]
    features[:, :16] *= np.where(turned == 1, 3.0, 0.8)[:, None]
    features[100] = features[30] * 1.01
    return audit(table, features.astype(np.float32), "cache/films/one", "one", ["a note", ""])


def test_both_lists_are_in_the_json(found: Audit, table: ImageTable) -> None:
    held = json.loads(json.dumps(found.to_json(), allow_nan=False))
    pairs = [set(pair["image_id"]) for pair in held["near_duplicates"]["pairs"]]
    assert pairs == [set(table.image_id[[40, 60]]), set(table.image_id[[30, 100]])]
    assert held["label_candidates"][0]["image_id"] == table.image_id[2]
    assert held["label_candidates"][0]["rather"] == table.classes[1 - table.label[2]]
    assert (held["images"], held["backbone"], held["notes"]) == (len(table), "one", ["a note"])


def test_the_remarks_count_what_is_listed_and_warn_of_test(found: Audit) -> None:
    remarks = "\n".join(found.remarks(1))
    across = sum(len(set(pair.split)) > 1 for pair in found.near_duplicates.pairs)
    assert f"2 pairs of different patients or folders, {across} of them across splits: 1 with the same bytes" in remarks
    in_test = sum(candidate.split == "test" for candidate in found.label_candidates)
    assert in_test
    assert (
        f"{in_test} of them lie in test: to change test labels after heads have been looked at is not honest" in remarks
    )
    assert "the first 1 of each list are shown" in remarks
    assert remarks.endswith("· a note")
    assert "are shown" not in "\n".join(found.remarks(1000))
    clean = dataclasses.replace(found, label_candidates=())
    assert "not honest" not in "\n".join(clean.remarks(1))


def test_the_csv_holds_every_finding(found: Audit) -> None:
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert tuple(rows[0]) == CSV_COLUMNS
    pairs = [row for row in rows if row["kind"] == "near-duplicate"]
    labels = [row for row in rows if row["kind"] == "label"]
    assert [(row["image_id"], row["other_image_id"]) for row in pairs] == [
        pair.image_id for pair in found.near_duplicates.pairs
    ]
    assert [row["identical"] for row in pairs] == ["1", "0"]
    assert [(row["image_id"], row["rather"]) for row in labels] == [
        (one.image_id, one.rather) for one in found.label_candidates
    ]
    assert float(labels[0]["self_confidence"]) == pytest.approx(found.label_candidates[0].self_confidence, abs=1e-6)


def test_the_tables_show_as_many_as_are_wanted(found: Audit) -> None:
    (_, pair_columns, pairs), (_, label_columns, labels) = found.tables(1)
    assert (len(pairs), len(labels)) == (1, 1)
    assert (len(pairs[0]), len(labels[0])) == (len(pair_columns), len(label_columns))


def test_sheets_show_each_finding_and_a_frame_where_the_image_is_gone(found: Audit, tmp_path: Path) -> None:
    first = found.near_duplicates.pairs[0].image_id[0]
    (tmp_path / first).parent.mkdir(parents=True)
    Image.new("L", (500, 300), 77).save(tmp_path / first)
    drawn = sheets(found, tmp_path, 3)
    assert drawn.keys() == {"near-duplicates", "doubtful-labels"}
    sheet = np.asarray(Image.open(io.BytesIO(drawn["near-duplicates"]), formats=["PNG"]))
    # Two pairs of two pictures: the first is drawn in the grey that it has, the others are gone.
    grey = (np.abs(sheet.astype(int) - 77) <= 3).all(axis=2)
    assert grey[:, :SIDE].sum() == pytest.approx(SIDE * SIDE * 3 / 5, rel=0.02)
    # But for the edges of letters.
    assert grey[:, SIDE:].sum() < 100
    assert sheet.shape[1] > 4 * SIDE


def test_what_is_wanted_is_written_and_an_empty_list_has_no_sheet(found: Audit, tmp_path: Path) -> None:
    settings = load_settings({"data": tmp_path})
    no_pairs = dataclasses.replace(found.near_duplicates, pairs=())
    fewer = dataclasses.replace(found, near_duplicates=no_pairs)
    written = write_findings(fewer, settings, tmp_path / "all.csv", tmp_path / "sheets", 5)
    assert written == [tmp_path / "all.csv", tmp_path / "sheets/doubtful-labels.png"]
    assert (tmp_path / "all.csv").read_bytes().decode() == fewer.to_csv()
    assert write_findings(found, settings, None, None, 5) == []


def test_a_sheet_without_pictures_or_captions_is_misuse(tmp_path: Path) -> None:
    for names, captions in (([], []), (["a"], []), (["a"] * 121, ["a"] * 121)):
        with pytest.raises(ValueError, match="wanted 1 to 120 images"):
            contact_sheet(tmp_path, names, captions)


def test_a_store_is_audited_by_the_labels_that_it_keeps_where_the_images_are_not_here(
    table: ImageTable, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "films", table)
    found = run_audit(load_settings({"cache": tmp_path, "data": ANYWHERE}))
    assert found.store == str(store.path)
    assert found.notes == (f"the images are not here: using the image table kept in {store.path}",)
    assert found.label_candidates == audit(table, store.features()).label_candidates


def test_features_of_images_that_have_changed_are_not_used(table: ImageTable, tmp_path: Path) -> None:
    store = write_store(tmp_path / "films", table)
    changed = "path,label,split,sha256\n" + "".join(
        f"{name},{table.classes[label]},{split},{'0' * 64 if row == 5 else digest}\n"
        for row, (name, label, split, digest) in enumerate(
            zip(table.image_id, table.label.tolist(), table.split, table.sha256, strict=True)
        )
    )
    (tmp_path / "table.csv").write_text(changed)
    settings = load_settings({"cache": tmp_path, "data": ANYWHERE, "table": tmp_path / "table.csv"})
    with pytest.raises(StoreError, match=r"^synthetic has no features for 1 of 178 images") as told:
        run_audit(settings)
    assert str(table.image_id[5]) in str(told.value)
    assert str(store.path) in str(told.value)
