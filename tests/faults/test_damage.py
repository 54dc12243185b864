"""A part that is not what was written is named, set aside or removed, and made again; the store is then as it was."""

from __future__ import annotations

import os
import random
from pathlib import Path

import h5py
import pytest
from stores import bytes_below, rows_of

from faults.conftest import INSTANTS, ExtractHere, parts_in, repeated, sound_bytes
from faults.plans import IMAGES
from featcache.errors import StoreError
from featcache.store import open_store, verify_store

# --- truncated ---


@repeated(max(2, INSTANTS // 10))
def test_parts_truncated_anywhere_are_named_set_aside_and_made_again(
    store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes], chance: random.Random
) -> None:
    parts = parts_in(store)
    sizes = [0, 1, chance.randrange(1000), parts[3].stat().st_size - 1]
    sizes += [chance.randrange(part.stat().st_size) for part in parts[4:]]
    for part, size in zip(parts, sizes, strict=True):
        os.truncate(part, size)
    summary = extract_here(store.parent)
    for part, size, note in zip(parts, sizes, summary.notes, strict=True):
        assert note.startswith(f"made again: {part} is damaged ("), size
        assert (store / "damaged" / part.name).stat().st_size == size
    assert (summary.images, summary.extracted, summary.reused) == (IMAGES, IMAGES, 0)
    assert sound_bytes(store) == undisturbed
    assert extract_here(store.parent).notes == ()


# --- one bit flipped ---


@repeated(INSTANTS)
def test_a_bit_flipped_anywhere_is_found_by_planning_or_by_verify_and_the_rows_are_made_again(
    store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes], chance: random.Random
) -> None:
    """Planning reads headers alone; the checksum over the features is compared when they are read."""
    flipped = {part: flip(part, where, chance) for part, where in zip(parts_in(store), WHERE, strict=True)}
    planned = extract_here(store.parent).notes
    found = {part for part in flipped for note in planned if note.startswith(f"made again: {part} ")}
    assert len(planned) == len(found)
    verified = verify_store(store)
    named = {part for part in flipped for line in verified if line.startswith(f"{part} is damaged (")}
    assert len(verified) == len(named)
    for part, (where, bit) in flipped.items():
        if where == "features":
            assert part in named - found, bit
        elif where != "anywhere":
            assert part in named | found, (where, bit)
    with pytest.raises(StoreError, match="is damaged"):
        open_store(store).views()
    removed = verify_store(store, remove_damaged=True)
    assert [part.exists() for part in named] == [False] * len(removed) == [False] * len(named)
    assert extract_here(store.parent).notes == ()
    assert verify_store(store) == []
    # A part that lacked one image's hash is made again without that image, which got a part of its own in between.
    assert rows_of(store) == rows_in(undisturbed, store.parent.parent / "undisturbed")


WHERE = ("features", "image_sha256", "view", "anywhere", "anywhere")


def flip(part: Path, where: str, chance: random.Random) -> tuple[str, int]:
    """Flip one bit of a part, of one of its datasets or anywhere; returns where, and the bit's number."""
    with h5py.File(part) as file:
        start = 0 if where == "anywhere" else file[where].id.get_offset()
        size = part.stat().st_size if where == "anywhere" else file[where].nbytes
    bit = start * 8 + chance.randrange(size * 8)
    content = bytearray(part.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    part.write_bytes(content)
    return where, bit


def rows_in(files: dict[str, bytes], folder: Path) -> dict[tuple[str, int], bytes]:
    """The rows of a store's files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (store,) = folder.iterdir()
    return rows_of(store)


def test_a_bit_flipped_in_the_features_is_named_by_verify_removed_and_made_again_to_the_same_bytes(
    store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes], chance: random.Random
) -> None:
    part = chance.choice(parts_in(store))
    flip(part, "features", chance)
    assert (extract_here(store.parent).extracted, extract_here(store.parent).notes) == (0, ())
    assert [line.partition(" is damaged (its checksum ")[0] for line in verify_store(store)] == [str(part)]
    assert len(verify_store(store, remove_damaged=True)) == 1
    assert extract_here(store.parent).extracted == 8
    assert bytes_below(store.parent) == undisturbed
