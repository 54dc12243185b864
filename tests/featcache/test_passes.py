"""What is noted of a pass is what its summary says; a note is no part of the features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ExtractPhantoms

from featcache import atomic
from featcache.passes import MOST_PASSES, PASSES_NAME, Pass, note_pass, read_passes
from featcache.store import open_store

ONE = Pass(
    ended="2026-01-01T00:00:00+00:00",
    images=88,
    views=2,
    backbones=1,
    seconds=1.5,
    images_per_second=58.7,
    limited_by="compute",
    device="a processor, 2 threads",
)


def test_an_extraction_is_noted_once_and_one_that_had_nothing_to_do_is_not(
    extract_phantoms: ExtractPhantoms, tmp_path: Path
) -> None:
    store = extract_phantoms(tmp_path)
    (first,) = read_passes(store)
    assert (first.images, first.views, first.backbones) == (len(open_store(store).image_table), 1, 1)
    assert first.images_per_second > 0
    assert first.seconds > 0
    assert "threads" in first.device
    extract_phantoms(tmp_path)
    assert read_passes(store) == (first,)
    extract_phantoms(tmp_path, views=2)
    assert [one.views for one in read_passes(store)] == [1, 2]


def test_passes_come_back_oldest_first_and_the_latest_are_kept(tmp_path: Path) -> None:
    for number in range(MOST_PASSES + 3):
        note_pass(tmp_path, replace(ONE, images=number))
    assert [one.images for one in read_passes(tmp_path)] == list(range(3, MOST_PASSES + 3))


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"images": "many"}]', "\x00"])
def test_a_damaged_note_is_none_and_the_next_pass_is_noted(content: str, tmp_path: Path) -> None:
    (tmp_path / PASSES_NAME).write_text(content)
    assert read_passes(tmp_path) == ()
    note_pass(tmp_path, ONE)
    assert read_passes(tmp_path) == (ONE,)


def test_a_note_that_cannot_be_written_does_not_fail_the_extraction(
    extract_phantoms: ExtractPhantoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise atomic.WriteError(f"{path} cannot be written: {len(text)} bytes")

    monkeypatch.setattr("featcache.passes.atomic.write_text", full)
    store = extract_phantoms(tmp_path)
    assert open_store(store).view_count == 1
    assert read_passes(store) == ()
