"""Images that cannot be read, or are replaced under way: never left out in silence, never in another's row."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stores import rows_of

from faults.conftest import COMPUTE, CarryOut, command
from faults.plans import IMAGES, PART_IMAGES, VIEWS, Plan
from featcache.backbones import Backbone
from featcache.check import Quarantined, scan
from featcache.extraction import Summary, extract
from featcache.images import discover
from featcache.progress import Progress
from featcache.store import open_store, verify_store

CHANGED = "its content changed while the command ran, or is not that of the table"


@pytest.fixture
def films(few_phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms, to be changed at will."""
    return shutil.copytree(few_phantoms, tmp_path / "films")


@pytest.fixture
def run(films: Path, tmp_path: Path, watched: Backbone) -> Callable[..., Summary]:
    """A function that extracts these films as they are now, into one cache."""

    def extract_films(cache: str = "cache", **settings: Any) -> Summary:
        given = {"views": VIEWS, "part_images": PART_IMAGES, "compute": COMPUTE, **settings}
        scanned = given.pop("scanned", None) or scan(discover(films), films)
        (summary,) = extract(scanned, films, tmp_path / cache, [watched], **given)
        return summary

    return extract_films


def changed(content: bytes) -> bytes:
    """The same picture, in a file of another hash."""
    return content + b"a comment after the end"


def half(content: bytes) -> bytes:
    """A file that is being written."""
    return content[: len(content) // 2]


@pytest.mark.parametrize("change", [changed, half])
def test_an_image_replaced_under_way_is_listed_or_keeps_the_row_of_what_it_was_and_comes_in_with_the_next_run(
    change: Callable[[bytes], bytes], films: Path, run: Callable[..., Summary]
) -> None:
    names = [str(name) for name in discover(films).image_id]
    read, unread = films / names[0], films / names[-1]
    before = {path: path.read_bytes() for path in (read, unread)}

    def replace(now: Progress) -> None:
        if now.images_done == 2:
            for path, content in before.items():
                path.write_bytes(change(content))

    first = run(on_progress=replace)
    assert first.quarantined == (Quarantined(image_id=names[-1], reason=CHANGED),)
    assert (first.images, first.extracted) == (IMAGES - 1, IMAGES - 1)
    store = open_store(first.store)
    assert store.quarantined == first.quarantined
    assert store.image_table.image_id.tolist() == names[:-1]
    assert store.image_table.sha256[0] == hashlib.sha256(before[read]).hexdigest()
    old = rows_of(first.store)
    # Both are new images now, where they are images.
    second = run()
    mended = 2 if change is changed else 0
    assert (second.images, second.extracted, len(second.quarantined)) == (IMAGES - 2 + mended, mended, 2 - mended)
    fresh = run("fresh")
    assert rows_of(second.store) == old | rows_of(fresh.store)
    np.testing.assert_array_equal(open_store(second.store).views(), open_store(fresh.store).views())
    assert open_store(second.store).quarantined == open_store(fresh.store).quarantined


def test_a_file_that_vanishes_under_way_is_listed_and_comes_in_when_it_is_back(
    films: Path, run: Callable[..., Summary], tmp_path: Path
) -> None:
    scanned = scan(discover(films), films)
    gone = films / str(scanned.table.image_id[20])
    gone.rename(tmp_path / "kept.jpeg")
    first = run(scanned=scanned)
    assert first.quarantined == (Quarantined(image_id=str(gone.relative_to(films)), reason="no such file"),)
    (tmp_path / "kept.jpeg").rename(gone)
    second = run()
    assert (second.images, second.extracted, second.quarantined) == (IMAGES, 1, ())


@pytest.fixture
def unreadable(films: Path) -> dict[str, str]:
    """Damage images in every way; name → how the reason begins."""
    reasons = {
        "empty": "empty file",
        "text": "not a JPEG, PNG or DICOM image",
        "cut": "damaged or truncated: ",
        "flipped": "",
        "gone": "no such file",
        "loop": "cannot be read: ",
        "outside": "the link leads outside the data folder",
        "pipe": "not a plain file",
    }
    files = dict(zip(reasons, sorted(films.glob("train/PNEUMONIA/*")), strict=False))
    content = files["cut"].read_bytes()
    for name in ("gone", "loop", "outside", "pipe"):
        files[name].unlink()
    files["empty"].write_bytes(b"")
    files["text"].write_text("no picture")
    files["cut"].write_bytes(content[:-600])
    files["flipped"].write_bytes(b"\xff\xd8" + bytes(len(content)))
    files["gone"].symlink_to("nowhere.jpeg")
    files["loop"].symlink_to(files["loop"])
    (films.parent / "secret.jpeg").write_bytes(content)
    files["outside"].symlink_to(films.parent / "secret.jpeg")
    os.mkfifo(files["pipe"])
    return {str(files[name].relative_to(films)): reason for name, reason in reasons.items()}


def test_unreadable_images_are_listed_in_summary_json_notes_and_store_with_their_reasons(
    films: Path, unreadable: dict[str, str], carry_out: CarryOut, tmp_path: Path, run: Callable[..., Summary]
) -> None:
    cache = tmp_path / "cache"
    flags = ("--device", "cpu", "--threads", "2", "--views", str(VIEWS), "--json")
    plan = Plan(root=str(films), cache=str(cache), arguments=command(films, cache, *flags))
    for computed in (IMAGES - 8, 0):
        (ending,) = carry_out(plan)
        assert ending.status == 0, ending.said
        told = json.loads(ending.said[ending.said.index("{\n") : ending.said.rindex("}") + 1])
        listed = {row["image_id"]: row["reason"] for row in told["quarantined"]}
        assert listed.keys() == unreadable.keys()
        assert all(listed[name].startswith(reason) and listed[name] for name, reason in unreadable.items()), listed
        assert (told["images"], told["extracted"], told["reused"]) == (IMAGES - 8, computed, IMAGES - 8 - computed)
        for name, reason in listed.items():
            assert f"left out: {name}: {reason}\n" in ending.said
        store = open_store(told["store"])
        assert {row.image_id: row.reason for row in store.quarantined} == listed
        assert not unreadable.keys() & set(store.image_table.image_id)
        with h5py.File(store.path / "features.h5") as file:
            names, reasons = (file["quarantined"][name].asstr()[:] for name in ("image_id", "reason"))
            assert dict(zip(names, reasons, strict=True)) == listed
            assert np.isfinite(file["features"][:]).all()
        assert verify_store(store.path) == []
    summary = run("here")
    assert {row.image_id: row.reason for row in summary.quarantined} == listed
