"""A disk that is full or may not be written: one clear line, exit 1, and once it is mended the command goes on."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import bytes_below, parts_of, unfinished

from faults.conftest import CarryOut, Phantoms, lines_without_bars
from faults.plans import IMAGES, PART_IMAGES, Ending, Plan, Trap

PAGE = 4096
WAY_OUT = "free some space or name another place, then run the same command again: what was finished is kept"


def size_of(undisturbed: dict[str, bytes], name: str) -> int:
    """Bytes that the largest file of this name takes on a disk."""
    return max(-(-len(content) // PAGE) * PAGE for path, content in undisturbed.items() if name in path)


def the_line(ending: Ending) -> str:
    """The one line of a command that failed."""
    (line,) = lines_without_bars(ending.said)
    assert ending.status == 1
    return line


Mended = Callable[[Plan], None]


@pytest.fixture
def mended(carry_out: CarryOut, undisturbed: dict[str, bytes]) -> Mended:
    """A function that gives a command again which failed, and holds it to what was promised."""

    def again(plan: Plan) -> None:
        dataset = Path(plan.cache) / "phantoms"
        before = {name: part for store in dataset.glob("*/") for name, part in parts_of(store).items()}
        (ending,) = carry_out(dataclasses.replace(plan, trap=None, file_bytes=0))
        assert ending.status == 0
        kept = len(before) * PART_IMAGES
        assert f"({IMAGES - kept} computed, {kept} reused" in ending.said
        assert bytes_below(dataset) == undisturbed
        (store,) = dataset.iterdir()
        assert {name: parts_of(store)[name] for name in before} == before

    return again


# --- a full disk ---


@pytest.mark.parametrize(("writing", "finished"), [("part-", 0), ("part-", 2), ("features.h5", 5)])
def test_a_full_disk_is_one_clear_line_and_the_command_goes_on_when_there_is_space(
    writing: str,
    finished: int,
    disk: Callable[[str], Path],
    typed_plan: Phantoms,
    carry_out: CarryOut,
    undisturbed: dict[str, bytes],
    mended: Mended,
) -> None:
    cache = disk("size=256k")
    part, index = size_of(undisturbed, "part-"), size_of(undisturbed, "features.h5")
    room = finished * part + (index if writing == "features.h5" else part) - PAGE
    (cache / "ballast").write_bytes(bytes(256 * 1024 - room))
    (full,) = carry_out(typed_plan())
    line = the_line(full)
    (store,) = (cache / "phantoms").iterdir()
    assert line.startswith(f"cxr: cannot write {store / writing if finished == 5 else store / 'parts' / writing}")
    assert line.endswith(f" MiB): {os.strerror(errno.ENOSPC)}; {WAY_OUT}")
    assert len(parts_of(store)) == finished
    assert bytes_below(cache / "phantoms").items() <= undisturbed.items()
    assert not list(filter(unfinished, cache.rglob("*")))
    (cache / "ballast").unlink()
    mended(typed_plan())


@pytest.mark.parametrize("writing", ["part-", "features.h5"])
def test_a_file_that_may_not_grow_is_one_clear_line_and_the_command_goes_on_when_it_may(
    writing: str, typed_plan: Phantoms, carry_out: CarryOut, undisturbed: dict[str, bytes], mended: Mended
) -> None:
    """The same, for those who may mount no disk: of a store's files ``features.h5`` is the largest."""
    most = min(len(content) for path, content in undisturbed.items() if writing in path) - 1
    (full,) = carry_out(typed_plan(file_bytes=most))
    assert the_line(full).endswith(f" MiB): {os.strerror(errno.EFBIG)}; {WAY_OUT}")
    (store,) = (Path(typed_plan().cache) / "phantoms").iterdir()
    assert len(parts_of(store)) == (0 if writing == "part-" else 5)
    assert not list(filter(unfinished, store.rglob("*")))
    mended(typed_plan())


def test_a_disk_that_complains_when_it_is_flushed_is_told_of_too(
    typed_plan: Phantoms, carry_out: CarryOut, mended: Mended
) -> None:
    """Disks across a network take what is written, and say only then that it was too much."""
    complaints = {
        "part": Trap(phase="flush", file="part-", call=3, error=errno.ENOSPC),
        "folder": Trap(phase="flush", file="parts", call=3, error=errno.EIO),
        "index": Trap(phase="flush", file="features.h5", error=errno.EDQUOT),
    }
    plans = [typed_plan(name, trap=trap) for name, trap in complaints.items()]
    for plan, ending in zip(plans, carry_out(*plans), strict=True):
        assert plan.trap is not None
        line = the_line(ending)
        assert line.startswith("cxr: cannot write ")
        assert f" MiB): {os.strerror(plan.trap.error)}; " in line
        assert not list(filter(unfinished, Path(plan.cache).rglob("*")))
        mended(plan)


# --- a cache that may not be written ---


def remount(folder: Path, how: str) -> None:
    """Make a disk read-only (``ro``), or writable again (``rw``)."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)  # noqa: S607 - of PATH


def test_a_read_only_cache_is_one_clear_line_and_stays_as_it_is(
    disk: Callable[[str], Path], typed_plan: Phantoms, carry_out: CarryOut, mended: Mended
) -> None:
    cache = disk("size=1m")
    remount(cache, "ro")
    (new,) = carry_out(typed_plan())
    assert the_line(new).startswith(f"cxr: cannot write {cache}/phantoms/")
    assert the_line(new).endswith(f"{os.strerror(errno.EROFS)}; name a place that is free and may be written to")
    remount(cache, "rw")
    (killed,) = carry_out(typed_plan(trap=Trap(phase="rename", file="part-", call=3)))
    assert killed.status == -9
    remount(cache, "ro")
    before = bytes_below(cache)
    (half,) = carry_out(typed_plan())
    assert f"{os.strerror(errno.EROFS)}; name a place" in the_line(half)
    assert bytes_below(cache) == before
    remount(cache, "rw")
    mended(typed_plan())


def test_a_finished_store_in_a_read_only_cache_is_verified_and_its_damage_is_named(
    disk: Callable[[str], Path], typed_plan: Phantoms, carry_out: CarryOut
) -> None:
    def typed(*arguments: str) -> Ending:
        (ending,) = carry_out(dataclasses.replace(typed_plan(), arguments=(*arguments, "--cache", str(cache))))
        return ending

    cache = disk("size=1m")
    (made,) = carry_out(typed_plan())
    assert made.status == 0
    (store,) = (cache / "phantoms").iterdir()
    remount(cache, "ro")
    assert typed("cache", "verify").status == 0
    assert typed("cache", "list").status == 0
    remount(cache, "rw")
    part = next((store / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    remount(cache, "ro")
    *lines, last = lines_without_bars(typed("cache", "verify").said)
    assert any(line.startswith(f"{part} is damaged (") for line in lines)
    assert last.startswith("cxr: 1 of ")
    assert str(part) in the_line(typed("cache", "verify", "--remove-damaged"))
    (again,) = carry_out(typed_plan())
    assert the_line(again).startswith(f"cxr: {part} cannot be used, and cannot be moved to {store}/damaged: ")
