"""Selection sees val figures and nothing else."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads import selection
from heads.selection import Candidate, best_seed, select

LOSSES = st.lists(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=5).map(tuple)
CANDIDATES = st.lists(st.builds(Candidate, name=st.sampled_from("abc"), val_losses=LOSSES), min_size=1, max_size=8)


def test_the_lowest_mean_val_loss_is_selected() -> None:
    steady = Candidate(name="steady", val_losses=(0.2, 0.2, 0.2))
    lucky = Candidate(name="lucky once", val_losses=(0.05, 0.5, 0.5))
    assert select([lucky, steady]) == 1
    assert select([steady, lucky]) == 0


def test_the_first_of_equals_is_selected() -> None:
    one, other = (Candidate(name=name, val_losses=(0.25, 0.75)) for name in "ab")
    assert select([one, other]) == 0
    assert select([Candidate(name="c", val_losses=(1.0,)), one, other]) == 1


@given(CANDIDATES)
def test_no_candidate_has_a_lower_mean_than_the_selected(candidates: list[Candidate]) -> None:
    means = [sum(one.val_losses) / len(one.val_losses) for one in candidates]
    chosen = select(candidates)
    assert means[chosen] == min(means)
    assert min(means) not in means[:chosen]


@given(CANDIDATES)
def test_a_name_does_not_select(candidates: list[Candidate]) -> None:
    nameless = [dataclasses.replace(one, name="") for one in candidates]
    assert select(candidates) == select(nameless)


def test_nothing_to_select_from_is_misuse() -> None:
    with pytest.raises(ValueError, match="at least one candidate, got none"):
        select([])


def test_the_best_seed_is_the_first_of_the_lowest_val_loss() -> None:
    assert best_seed(Candidate(name="", val_losses=(0.3, 0.1, 0.2, 0.1))) == 1


def test_a_candidate_has_no_room_for_a_test_figure() -> None:
    assert [field.name for field in dataclasses.fields(Candidate)] == ["name", "val_losses"]


def test_selection_imports_nothing_that_could_read_a_run() -> None:
    tree = ast.parse(Path(selection.__file__).read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "." * node.level)
    assert imported <= {"__future__", "collections.abc", "dataclasses"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "__import__", "eval", "exec"}
