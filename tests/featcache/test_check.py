from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from featcache import check
from featcache.check import Scan, duplicates, scan, summarise, summary_lines
from featcache.images import discover, read_csv
from featcache.phantom import phantom


def film(seed: int) -> Image.Image:
    return Image.fromarray(phantom(seed, size=64, lesion=False)[0])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients and a straddler, a film in two folders, and one of each oddity and damage."""
    root = tmp_path_factory.mktemp("mixed")
    for name in ("train/NORMAL", "train/PNEUMONIA", "val/NORMAL", "test/NORMAL", "test/PNEUMONIA"):
        (root / name).mkdir(parents=True)
    film(0).save(root / "train/NORMAL/IM-0001-0001.jpeg")
    film(1).save(root / "train/NORMAL/IM-0001-0002.jpeg")
    film(2).save(root / "train/NORMAL/IM-0002-0001.jpeg")
    film(3).save(root / "val/NORMAL/IM-0002-0002.jpeg")
    film(4).save(root / "train/PNEUMONIA/person1_virus_1.jpeg")
    film(5).save(root / "test/PNEUMONIA/person1_virus_2.jpeg")
    shutil.copy(root / "train/NORMAL/IM-0001-0001.jpeg", root / "test/NORMAL/IM-0009-0001.jpeg")
    shutil.copy(root / "train/NORMAL/IM-0001-0002.jpeg", root / "train/NORMAL/copy.jpeg")

    odd = root / "train/PNEUMONIA"
    film(6).convert("CMYK").save(odd / "person2_bacteria_1.jpeg")
    film(7).convert("P").save(odd / "person3_bacteria_1.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    film(8).save(odd / "person4_bacteria_1.jpeg", exif=turned)
    film(9).resize((40, 40)).convert("RGBA").save(odd / "person5_bacteria_1.png")

    whole = (root / "train/NORMAL/IM-0002-0001.jpeg").read_bytes()
    (root / "test/NORMAL/cut.jpeg").write_bytes(whole[: len(whole) // 2])
    (root / "test/NORMAL/empty.jpeg").touch()
    (root / "test/NORMAL/notes.txt").write_text("not a film")
    return root


@pytest.fixture(scope="module")
def whole(mixed: Path) -> Scan:
    return scan(discover(mixed), mixed, whole=True)


def test_hashes_and_sizes_are_those_of_the_files(mixed: Path, whole: Scan) -> None:
    for image_id, digest, width, height in zip(
        whole.table.image_id, whole.table.sha256, whole.table.width, whole.table.height, strict=True
    ):
        assert digest == hashlib.sha256((mixed / image_id).read_bytes()).hexdigest()
        with Image.open(mixed / image_id) as image:
            assert (width, height) == image.size


def test_readable_and_quarantined_images_together_are_all_images(mixed: Path, whole: Scan) -> None:
    names = [*whole.table.image_id, *(row.image_id for row in whole.quarantined)]
    assert sorted(names) == sorted(discover(mixed).image_id)
    assert {row.image_id: row.reason.partition(":")[0] for row in whole.quarantined} == {
        "test/NORMAL/cut.jpeg": "damaged or truncated",
        "test/NORMAL/empty.jpeg": "empty file",
        "test/NORMAL/notes.txt": "not a JPEG, PNG or DICOM image",
    }


def test_a_truncated_image_is_found_only_when_pixels_are_decoded(mixed: Path) -> None:
    quick = scan(discover(mixed), mixed)
    assert "test/NORMAL/cut.jpeg" in quick.table.image_id
    assert len(quick.quarantined) == 2


def test_odd_images_are_used_and_told_of(whole: Scan) -> None:
    odd = {Path(row.image_id).name: row.reason for row in whole.odd}
    assert odd == {
        "person2_bacteria_1.jpeg": "mode CMYK",
        "person3_bacteria_1.png": "mode P",
        "person4_bacteria_1.jpeg": "rotated by EXIF",
        "person5_bacteria_1.png": "mode RGBA, 40×40 is small",
    }
    assert {f"train/PNEUMONIA/{name}" for name in odd} <= set(whole.table.image_id)


def test_the_summary_counts_patients_straddlers_duplicates_and_coincidences(whole: Scan) -> None:
    summary = summarise(whole)
    assert summary["images"] == 12
    assert summary["classes"] == ["NORMAL", "PNEUMONIA"]
    assert summary["counts"] == {
        "train": {"NORMAL": 4, "PNEUMONIA": 5},
        "val": {"NORMAL": 1, "PNEUMONIA": 0},
        "test": {"NORMAL": 1, "PNEUMONIA": 1},
    }
    assert summary["patients"] == {"train": 8, "val": 1, "test": 2}
    assert summary["straddling"] == ["train/IM-0002"]
    assert summary["coincident_names"] == 1
    assert summary["duplicates"] == [
        ["test/NORMAL/IM-0009-0001.jpeg", "train/NORMAL/IM-0001-0001.jpeg"],
        ["train/NORMAL/IM-0001-0002.jpeg", "train/NORMAL/copy.jpeg"],
    ]
    assert (summary["duplicate_groups"], summary["duplicates_across_splits"]) == (2, 1)
    assert summary["sizes"] == {"width": [40, 64, 64], "height": [40, 64, 64], "commonest": [64, 64], "different": 2}
    assert json.loads(json.dumps(summary)) == summary


def test_class_weights_are_scikit_learns_of_the_train_folder(whole: Scan) -> None:
    table = whole.table
    label = table.label[table.split == "train"]
    reference = compute_class_weight("balanced", classes=np.unique(label), y=label)
    assert list(summarise(whole)["class_weights"].values()) == pytest.approx(reference.tolist(), rel=1e-12)


def test_the_summary_in_words_names_every_number(whole: Scan) -> None:
    assert summary_lines(summarise(whole)) == [
        "split  NORMAL  PNEUMONIA  patients",
        "train       4          5         8",
        "  val       1          0         1",
        " test       1          1         2",
        "size: 2 sizes, most often 64×64 pixels",
        "class weights of train: NORMAL 1.1250, PNEUMONIA 0.9000",
        "patients in more than one split: 1 (train/IM-0002…)",
        "patient names that train and test both use: 1 (each numbers its own patients; counted as different ones)",
        "groups of byte-identical images: 2 (1 across splits)",
        "odd, but used: 4",
        "  train/PNEUMONIA/person2_bacteria_1.jpeg: mode CMYK",
        "  train/PNEUMONIA/person3_bacteria_1.png: mode P",
        "  train/PNEUMONIA/person4_bacteria_1.jpeg: rotated by EXIF",
        "  train/PNEUMONIA/person5_bacteria_1.png: mode RGBA, 40×40 is small",
        "unreadable, left out: 3",
        *(f"  {row.image_id}: {row.reason}" for row in whole.quarantined),
    ]


def test_unreadable_images_with_one_reason_share_a_line(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "B").mkdir()
    for number in range(23):
        (tmp_path / "A" / f"{number:02d}.png").touch()
    film(1).save(tmp_path / "B" / "x.png")
    summary = summarise(scan(discover(tmp_path), tmp_path))
    lines = summary_lines(summary)
    assert lines[-2:] == ["unreadable, left out: 23", "  A/00.png and 22 more: empty file"]
    assert len(summary["quarantined"]) == 23
    assert summary["counts"] == {"(no split)": {"A": 0, "B": 1}}
    assert summary["class_weights"] == {"B": 1.0}


def test_a_data_set_without_a_readable_image_is_summarised_too(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"no image")
    summary = summarise(scan(discover(tmp_path), tmp_path))
    assert (summary["images"], summary["counts"], summary["sizes"]) == (0, {}, {})
    assert "unreadable, left out: 2" in summary_lines(summary)


def test_images_of_a_table_that_are_not_there_are_quarantined(tmp_path: Path) -> None:
    film(0).save(tmp_path / "there.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "images.csv").write_text("path,label\nthere.png,A\ngone.png,B\nfolder.png,B\n")
    scanned = scan(read_csv(tmp_path / "images.csv"), tmp_path)
    assert scanned.table.image_id.tolist() == ["there.png"]
    assert [(row.image_id, row.reason) for row in scanned.quarantined] == [
        ("gone.png", "no such file"),
        ("folder.png", "not a plain file"),
    ]


def test_a_file_larger_than_any_radiograph_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FILE_BYTES", 2**20)
    film(0).save(tmp_path / "small.png")
    (tmp_path / "images.csv").write_text("path,label\nsmall.png,A\nhuge.png,B\n")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**20 + 1)
    scanned = scan(read_csv(tmp_path / "images.csv"), tmp_path)
    assert scanned.table.image_id.tolist() == ["small.png"]
    assert scanned.quarantined[0].reason == "larger than 1 MiB"


def test_the_caller_is_told_of_every_image_in_turn(phantoms: Path) -> None:
    told: list[int] = []
    scanned = scan(discover(phantoms), phantoms, on_image=told.append)
    assert told == list(range(1, 89))
    assert len(scanned.table) == 88


def test_rows_keep_their_order_whatever_the_number_of_threads(mixed: Path, whole: Scan) -> None:
    many = scan(discover(mixed), mixed, whole=True, threads=7)
    assert many.table.image_id.tolist() == whole.table.image_id.tolist()
    assert many.table.sha256.tolist() == whole.table.sha256.tolist()
    assert (many.quarantined, many.odd) == (whole.quarantined, whole.odd)


@pytest.mark.real
def test_the_real_set_has_its_known_counts(real_scan: Scan) -> None:
    summary = summarise(real_scan)
    assert {split: tuple(counts.values()) for split, counts in summary["counts"].items()} == {
        "train": (1341, 3875),
        "val": (8, 8),
        "test": (234, 390),
    }
    assert summary["classes"] == ["NORMAL", "PNEUMONIA"]
    assert summary["images"] == 5856
    assert summary["quarantined"] == []
    assert (summary["duplicate_groups"], summary["duplicates_across_splits"]) == (30, 0)
    assert len(duplicates(real_scan.table)) == 30
    assert summary["coincident_names"] == 170
    assert summary["class_weights"] == pytest.approx({"NORMAL": 5216 / 2682, "PNEUMONIA": 5216 / 7750})


def test_a_folder_that_has_become_a_link_out_of_the_data_is_refused_by_the_next_scan(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(mixed, tmp_path / "films")
    monkeypatch.chdir(tmp_path)
    table = discover(Path("films"))
    assert "the link leads outside the data folder" not in {
        row.reason for row in scan(table, Path("films")).quarantined
    }
    (root / "val" / "NORMAL").rename(tmp_path / "elsewhere")
    (root / "val" / "NORMAL").symlink_to(tmp_path / "elsewhere")
    refused = {row.image_id for row in scan(table, Path("films")).quarantined if "leads outside" in row.reason}
    assert refused == {name for name in table.image_id if name.startswith("val/NORMAL/")}
    assert refused
