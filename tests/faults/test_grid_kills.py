"""SIGKILL and Ctrl-C while heads are trained: the same command again ends with the same bytes."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import unfinished

from faults.conftest import CarryOut, lines_without_bars
from faults.plans import Blow, Plan, Trap
from heads.experiments.runs import load_run
from heads.experiments.split_logits import read_logits

GRID = """
[[head]]
hidden = [0, 4, 8]
l2 = [0, 1e-3]
epochs = 3
batch_size = 16
"""
GROUPS = 3

SAID = "cxr: interrupted; finished parts, heads and runs are kept, the same command again goes on from there"

PHASES = {
    "half a group written": ("half", "group-", range(1, GROUPS + 1)),
    "a group written and not flushed": ("flush", "group-", range(1, GROUPS + 1)),
    "a group flushed and not renamed": ("rename", "group-", range(1, GROUPS + 1)),
    "a group renamed and its folder not flushed": ("renamed", "group-", range(1, GROUPS + 1)),
    "the run written and not flushed": ("flush", "weights.safetensors", range(1, 2)),
}
"""What is going on → the function that kills, the file that it deals with, and the calls of a whole run."""

GridPlan = Callable[..., Plan]


@pytest.fixture
def grid_plan(few_phantoms: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> GridPlan:
    """A function that makes plans to train the grid on a finished store, in a cache of the plan's own."""
    (tmp_path / "grid.toml").write_text(GRID)

    def plan(name: str, **fate: object) -> Plan:
        cache = tmp_path / name
        for file, content in {} if cache.exists() else undisturbed.items():
            (cache / few_phantoms.name / file).parent.mkdir(parents=True, exist_ok=True)
            (cache / few_phantoms.name / file).write_bytes(content)
        # Without folds there are as many groups as the phases count.
        where = ("--data", str(few_phantoms), "--cache", str(cache), "--device", "cpu", "--select", "clean")
        arguments = ("grid", "--file", str(tmp_path / "grid.toml"), *where)
        return replace(Plan(root=str(few_phantoms), cache=str(cache), arguments=arguments), **fate)  # type: ignore[arg-type]

    return plan


def run_of(plan: Plan) -> Path:
    """The only run in a plan's cache; no trace of an unfinished one is beside it."""
    dataset = Path(plan.cache) / Path(plan.root).name
    (folder,) = (path.parent for path in (dataset / "runs").glob("*/run.json") if not unfinished(path.parent))
    assert not (dataset / "unfinished").exists()
    return folder


def kept(plan: Plan) -> list[Path]:
    return sorted((Path(plan.cache) / Path(plan.root).name / "unfinished").glob("*/group-*"))


def assert_same(folder: Path, wanted: Path) -> None:
    """Weights and logits to the bit, and what the record says of the heads."""
    assert folder.name == wanted.name
    assert (folder / "weights.safetensors").read_bytes() == (wanted / "weights.safetensors").read_bytes()
    assert load_run(folder).heads == load_run(wanted).heads
    for split in ("val", "test"):
        mine, theirs = (read_logits(one / f"{split}.npz") for one in (folder, wanted))
        np.testing.assert_array_equal(mine.logits, theirs.logits)
        np.testing.assert_array_equal(mine.logits_view_mean, theirs.logits_view_mean)


def test_a_grid_killed_in_any_phase_goes_on_to_the_same_bytes(
    grid_plan: GridPlan, carry_out: CarryOut, chance: random.Random
) -> None:
    traps = {
        name: Trap(phase=phase, file=file, call=chance.choice(calls)) for name, (phase, file, calls) in PHASES.items()
    }
    plans = {name: grid_plan(name, trap=trap) for name, trap in traps.items()}
    whole, *killed = carry_out(grid_plan("undisturbed"), *plans.values())
    assert whole.status == 0, whole.said
    finished: dict[str, int] = {}
    for (name, plan), ending in zip(plans.items(), killed, strict=True):
        assert ending.status == -signal.SIGKILL, (name, ending.said)
        trap = traps[name]
        written = trap.call - (trap.phase != "renamed") if trap.file == "group-" else GROUPS
        finished[name] = len(kept(plan))
        # Two groups are trained at once, so the one before may not have been written to its end.
        assert written - (trap.file == "group-" and trap.call > 1) <= finished[name] <= written, name
        assert not [path for path in Path(plan.cache).glob("*/runs/*/run.json") if not unfinished(path.parent)], name
    for name, ending in zip(plans, carry_out(*(grid_plan(name) for name in plans)), strict=True):
        assert ending.status == 0, (name, ending.said)
        assert "6 heads fitted in" in ending.said
        assert (f"({2 * finished[name]} of them before an interruption)" in ending.said) == (finished[name] > 0), name
        assert_same(run_of(plans[name]), run_of(grid_plan("undisturbed")))


def test_a_grid_killed_or_interrupted_at_a_random_instant_goes_on_to_the_same_bytes(
    grid_plan: GridPlan, carry_out: CarryOut, chance: random.Random
) -> None:
    names = [f"cache-{number}" for number in range(4)]
    signals = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGINT]
    # The first while arguments are parsed or images are hashed; the others at any time.
    blows = [
        Blow(wait=chance.uniform(0, most), signal=kind) for most, kind in zip((0.1, 1, 1, 1), signals, strict=True)
    ]
    plans = [grid_plan(name, blows=(blow,)) for name, blow in zip(names, blows, strict=True)]
    whole, *struck = carry_out(grid_plan("undisturbed"), *plans)
    assert whole.status == 0, whole.said
    assert struck[0].status == -signal.SIGKILL
    for ending, blow in zip(struck, blows, strict=True):
        if ending.status != 0:  # It was not done before the signal came.
            assert ending.status == (130 if blow.signal == signal.SIGINT else -9), (blow, ending.said)
        if ending.status == 130:
            # A long name leaves room for "fitt…" only.
            lines = [line for line in lines_without_bars(ending.said) if not line.startswith("fitt")]
            assert lines == [SAID], blow
    for name, ending in zip(names, carry_out(*map(grid_plan, names)), strict=True):
        assert ending.status == 0, ending.said
        assert_same(run_of(grid_plan(name)), run_of(grid_plan("undisturbed")))


def test_two_processes_that_train_the_same_grid_at_once_both_end_well(grid_plan: GridPlan, carry_out: CarryOut) -> None:
    alone, one, other = carry_out(grid_plan("undisturbed"), grid_plan("shared"), grid_plan("shared"))
    assert [ending.status for ending in (alone, one, other)] == [0, 0, 0], (one.said, other.said)
    assert_same(run_of(grid_plan("shared")), run_of(grid_plan("undisturbed")))
