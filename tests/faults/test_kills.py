"""SIGKILL: whenever it comes, the same command again ends with the same bytes and keeps all finished parts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import bytes_below, parts_of, rows_of, unfinished

from faults.conftest import INSTANTS, CarryOut, ExtractHere, Phantoms, computed, processes_of, repeated
from faults.plans import IMAGES, PART_IMAGES, VIEWS, Blow, Plan, Trap
from featcache.progress import Progress
from featcache.store import verify_store

ROWS = IMAGES * VIEWS
PART_ROWS = PART_IMAGES * VIEWS
PARTS = range(1, IMAGES // PART_IMAGES + 1)

AT_ONCE = 5
"""Runs that are killed, and resumed, at once."""

LOST = 2 * PART_ROWS
"""Rows that a worker may have computed for nothing when it dies. A part whose features are all there is written while
the next is computed, and the one after that is not begun before the first is on the disk (``PartMaker.make``). So of
what was whole at most one part is made again, and besides it what was under way."""

PHASES = {
    "decoding": ("decode", "", range(1, IMAGES + 1)),
    "computing": ("compute", "", range(2, ROWS + 2)),  # The first call finds D.
    "half a part written": ("half", "part-", PARTS),
    "a part written and not flushed": ("flush", "part-", PARTS),
    "a part flushed and not renamed": ("rename", "part-", PARTS),
    "a part renamed and its folder not flushed": ("renamed", "part-", PARTS),
    "half of features.h5 written": ("half", "features.h5", range(1, 2)),
    "features.h5 written and not flushed": ("flush", "features.h5", range(1, 2)),
    "features.h5 flushed and not renamed": ("rename", "features.h5", range(1, 2)),
    "features.h5 renamed and its folder not flushed": ("renamed", "features.h5", range(1, 2)),
}
"""What is going on → the function that kills, the file that it deals with, and the calls of a whole run."""


Again = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def again(carry_out: CarryOut, undisturbed: dict[str, bytes]) -> Again:
    """A function that carries out plans where others were killed, and holds them to all promises; gives summaries."""
    wanted = {Path(name).name: content for name, content in undisturbed.items()}

    def resume(*plans: Plan, workers: int = 1) -> list[dict[str, Any]]:
        caches = [Path(plan.cache) for plan in plans]
        parts = [
            {name: part for store in cache.glob("*/") for name, part in parts_of(store).items()} for cache in caches
        ]
        spent = [computed(cache) for cache in caches]
        endings = carry_out(*plans)
        for cache, before, rows, ending in zip(caches, parts, spent, endings, strict=True):
            kept = len(before) * PART_ROWS
            assert {name: content for name, (content, *_) in before.items()}.items() <= wanted.items(), cache
            assert rows - kept <= workers * LOST, cache
            assert (ending.status, ending.said) == (0, ""), cache
            assert ending.summary["reused"] * VIEWS == kept, cache
            assert computed(cache) - rows == ending.summary["extracted"] * VIEWS == ROWS - kept, cache
            (store,) = cache.iterdir()
            after = parts_of(store)
            assert {name: after[name] for name in before} == before, f"a finished part of {cache} was written again"
            assert bytes_below(cache) == undisturbed, cache
            assert len(rows_of(store)) == ROWS, cache
            # No reader looks at what the kill left, and it can be swept away.
            assert verify_store(store, remove_damaged=True) == [], cache
            assert not list(filter(unfinished, cache.rglob("*"))), cache
            assert bytes_below(cache) == undisturbed, cache
        return [ending.summary for ending in endings]

    return resume


# --- one process ---


def test_a_run_killed_in_any_phase_goes_on_to_the_same_bytes(
    phantom_plan: Phantoms, carry_out: CarryOut, again: Again, chance: random.Random
) -> None:
    traps = {
        going_on: Trap(phase=phase, file=file, call=chance.choice(calls))
        for going_on, (phase, file, calls) in PHASES.items()
    }
    plans = [phantom_plan(going_on, trap=trap) for going_on, trap in traps.items()]
    for plan, killed in zip(plans, carry_out(*plans), strict=True):
        assert (killed.status, killed.said) == (-9, ""), plan.trap
        if plan.trap is not None and plan.trap.phase in ("half", "flush", "rename"):
            left = [path.name for path in Path(plan.cache).rglob("*") if unfinished(path)]
            assert any(plan.trap.file in name for name in left), plan.trap
    again(*map(phantom_plan, traps))


@repeated(-(-INSTANTS // AT_ONCE))
def test_a_run_killed_at_a_random_instant_goes_on_to_the_same_bytes(
    phantom_plan: Phantoms, carry_out: CarryOut, again: Again, chance: random.Random
) -> None:
    caches: list[str] = []
    for attempt in range(100):
        # One before the first image is done, while files are hashed or the network is loaded; the others at any time.
        blows = [Blow(images=chance.randint(1, IMAGES), wait=chance.uniform(0, 0.02)) for _ in range(AT_ONCE)]
        blows[0] = Blow(wait=chance.uniform(0, 0.2))
        plans = [phantom_plan(f"{attempt}-{number}", blows=(blow,)) for number, blow in enumerate(blows)]
        endings = carry_out(*plans)
        # Not those that were done before the signal came.
        caches += [Path(plan.cache).name for plan, ending in zip(plans, endings, strict=True) if ending.status == -9]
        assert {ending.status for ending in endings} <= {0, -9}
        if len(caches) >= AT_ONCE:
            break
    assert len(caches) >= AT_ONCE
    again(*map(phantom_plan, caches))


def test_on_a_disk_that_hangs_no_more_is_computed_than_may_be_lost(
    phantom_plan: Phantoms, carry_out: CarryOut, again: Again
) -> None:
    """The worst case of the bound on what is made again, and the bound is reached."""
    stall = Trap(phase="flush", file="part-", call=2, stall=True)
    (killed,) = carry_out(phantom_plan(trap=stall, blows=(Blow(images=3 * PART_IMAGES, wait=0.5),)))
    assert killed.status == -9
    assert computed(Path(phantom_plan().cache)) == PART_ROWS + LOST
    (summary,) = again(phantom_plan())
    assert summary["reused"] == PART_IMAGES


def test_two_extractions_at_once_both_succeed_and_double_nothing(
    phantom_plan: Phantoms, carry_out: CarryOut, undisturbed: dict[str, bytes]
) -> None:
    cache = Path(phantom_plan().cache)
    for ending in carry_out(phantom_plan(), phantom_plan()):
        assert (ending.status, ending.said) == (0, "")
        assert (ending.summary["images"], ending.summary["lacking"], ending.summary["notes"]) == (IMAGES, 0, [])
    assert bytes_below(cache) == undisturbed
    (store,) = cache.iterdir()
    assert len(rows_of(store)) == ROWS
    assert not list(filter(unfinished, cache.rglob("*")))


def test_images_that_another_extraction_makes_meanwhile_count_as_done(
    extract_here: ExtractHere, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    seen: list[Progress] = []

    def let_another_go_first(now: Progress) -> None:
        seen.append(now)
        if len(seen) == 1:
            assert extract_here(tmp_path / "cache").extracted == IMAGES

    extract_here(tmp_path / "cache", on_progress=let_another_go_first)
    assert bytes_below(tmp_path / "cache") == undisturbed
    assert seen[-1].images_done == seen[-1].images_total == IMAGES


# --- a process a device ---

ROUNDS = max(1, INSTANTS // 20)
"""Such a run imports torch several times."""


@repeated(ROUNDS)
def test_a_worker_killed_at_a_random_instant_is_told_of_and_its_finished_parts_are_not_made_again(
    phantom_plan: Phantoms, carry_out: CarryOut, undisturbed: dict[str, bytes], chance: random.Random
) -> None:
    blow = Blow(images=chance.randint(1, 2 * PART_IMAGES), wait=chance.uniform(0, 0.05), worker=chance.randrange(2))
    (ending,) = carry_out(phantom_plan(devices=2, slow=0.03, blows=(blow,)))
    cache = Path(phantom_plan().cache)
    assert (ending.status, ending.images, ending.said) == (0, IMAGES, ""), blow
    assert ending.summary["notes"] == ["the process on cpu was killed by SIGKILL; another makes its part again"]
    assert (ending.summary["images"], ending.summary["extracted"], ending.summary["lacking"]) == (IMAGES, IMAGES, 0)
    assert computed(cache) - ROWS <= LOST
    assert bytes_below(cache) == undisturbed
    assert processes_of(cache) == []


@repeated(ROUNDS)
def test_workers_whose_parent_is_killed_at_a_random_instant_end_and_their_finished_parts_are_not_made_again(
    phantom_plan: Phantoms, carry_out: CarryOut, again: Again, chance: random.Random
) -> None:
    blow = Blow(images=chance.randint(1, 2 * PART_IMAGES), wait=chance.uniform(0, 0.05))
    (killed,) = carry_out(phantom_plan(devices=2, slow=0.03, blows=(blow,)))
    cache = Path(phantom_plan().cache)
    assert killed.status == -9, blow
    until = time.monotonic() + 60
    while processes_of(cache) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(cache) == []
    assert Path(f"{cache}.said").read_text() == ""
    again(phantom_plan(), workers=2)
