"""What stands in place of a part and is none is named, set aside or removed, and the part is made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import bytes_below

from faults.conftest import CarryOut, ExtractHere, Phantoms, parts_in, sound_bytes
from faults.plans import IMAGES
from featcache import planning
from featcache.backbones import load_backbone
from featcache.errors import StoreError
from featcache.store import verify_store

# --- something else in its place ---


def of_another_spec(part: Path, extract_here: ExtractHere) -> None:
    theirs = extract_here(part.parents[3] / "theirs", backbone=load_backbone("tiny_network:other"))
    shutil.copy(next((Path(theirs.store) / "parts").iterdir()), part)


def another_part(part: Path, _: object) -> None:
    shutil.copy(parts_in(part.parents[1])[0], part)


def the_index(part: Path, _: object) -> None:
    shutil.copy(part.parents[1] / "features.h5", part)


def empty(part: Path, _: object) -> None:
    part.touch()


def text(part: Path, _: object) -> None:
    part.write_text("no HDF5 at all")


def folder(part: Path, _: object) -> None:
    part.mkdir()
    (part / "a file").write_text("of somebody's")


def link_to_nothing(part: Path, _: object) -> None:
    part.symlink_to("gone.h5")


def link_to_itself(part: Path, _: object) -> None:
    part.symlink_to(part)


def link_to_another_part(part: Path, _: object) -> None:
    part.symlink_to(parts_in(part.parents[1])[0])


def link_to_a_folder(part: Path, _: object) -> None:
    part.symlink_to(part.parent)


def nothing(*_: object) -> None:
    pass


def pipe(part: Path, _: object) -> None:
    os.mkfifo(part)


ODDITIES = [of_another_spec, another_part, the_index, empty, text, folder]
ODDITIES += [link_to_nothing, link_to_itself, link_to_another_part, link_to_a_folder]


@pytest.mark.parametrize("odd", ODDITIES)
def test_what_stands_in_place_of_a_part_is_named_set_aside_and_the_part_is_made_again(
    odd: Callable[[Path, ExtractHere], None], store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes]
) -> None:
    part = parts_in(store)[4]
    part.unlink()
    odd(part, extract_here)
    summary = extract_here(store.parent)
    (note,) = summary.notes
    assert note.startswith(f"made again: {part} ")
    assert (summary.images, summary.extracted, summary.lacking) == (IMAGES, 8, 0)
    assert os.path.lexists(store / "damaged" / part.name)
    assert sound_bytes(store) == undisturbed
    assert extract_here(store.parent).notes == ()


@pytest.mark.parametrize("odd", ODDITIES)
def test_what_stands_in_place_of_a_part_is_named_by_verify_and_removed(
    odd: Callable[[Path, ExtractHere], None], store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes]
) -> None:
    part = parts_in(store)[4]
    part.unlink()
    odd(part, extract_here)
    assert {line.partition(".h5 ")[0] for line in verify_store(store)} == {str(part.with_suffix(""))}
    assert verify_store(store, remove_damaged=True)
    summary = extract_here(store.parent)
    assert (summary.images, summary.extracted, summary.lacking, summary.notes) == (IMAGES, 8, 0, ())
    assert bytes_below(store.parent) == undisturbed


def test_a_pipe_in_place_of_a_part_holds_nothing_up(
    store: Path, carry_out: CarryOut, phantom_plan: Phantoms, undisturbed: dict[str, bytes]
) -> None:
    """Who opens one to read waits until another writes."""
    part = parts_in(store)[4]
    part.unlink()
    pipe(part, None)
    verify = ("cache", "verify", "--cache", str(store.parents[1]))
    (verified,) = carry_out(phantom_plan(store.parent.name, arguments=verify, seconds=10))
    assert verified.status == 1
    assert f"{part} is damaged (" in verified.said
    (ending,) = carry_out(phantom_plan(store.parent.name, seconds=10))
    (note,) = ending.summary["notes"]
    assert note.startswith(f"made again: {part} ")
    assert sound_bytes(store) == undisturbed


def test_a_part_of_another_spec_names_what_differs(store: Path, extract_here: ExtractHere) -> None:
    part = parts_in(store)[4]
    of_another_spec(part, extract_here)
    (note,) = extract_here(store.parent).notes
    differing = "backbone tiny_network:other against faults.watched_network:Watched"
    assert note.startswith(f"made again: {part} was made by another spec: {differing}")


def test_a_sound_part_behind_a_link_is_used(
    store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes]
) -> None:
    part = parts_in(store)[4]
    part.rename(store.parents[1] / "elsewhere.h5")
    part.symlink_to(store.parents[1] / "elsewhere.h5")
    summary = extract_here(store.parent)
    assert (summary.images, summary.extracted, summary.notes) == (IMAGES, 0, ())
    assert sound_bytes(store) == undisturbed


# --- in the way ---


def test_a_part_that_cannot_be_set_aside_is_an_error_that_names_it(store: Path, extract_here: ExtractHere) -> None:
    part = parts_in(store)[4]
    part.write_bytes(b"")
    (store / "damaged").write_text("a file is in the way")
    with pytest.raises(StoreError, match=rf"^{part} cannot be used, and cannot be moved to {store}/damaged: "):
        extract_here(store.parent)


def test_a_damaged_part_that_another_run_sets_aside_first_is_no_error(
    store: Path, extract_here: ExtractHere, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = planning._set_aside

    def both(path: Path) -> None:
        plain(path)
        plain(path)

    monkeypatch.setattr(planning, "_set_aside", both)
    parts_in(store)[4].write_bytes(b"")
    assert extract_here(store.parent).extracted == 8
    assert sound_bytes(store) == undisturbed


@pytest.mark.parametrize("odd", [nothing, empty, text, link_to_nothing, pipe])
def test_features_h5_is_made_again_from_the_parts_whatever_has_become_of_it(
    odd: Callable[[Path, ExtractHere], None],
    store: Path,
    extract_here: ExtractHere,
    undisturbed: dict[str, bytes],
) -> None:
    index = store / "features.h5"
    index.unlink()
    odd(index, extract_here)
    assert extract_here(store.parent).extracted == 0
    assert bytes_below(store.parent) == undisturbed
