"""Selection sees figures of val and nothing else."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.settings import Settings
from heads.choosing.selection import (
    MOST_BACKBONES,
    OPERATING_RULES,
    SELECTION_RULES,
    Candidate,
    best_seed,
    best_subset,
    scale_of_member,
    select,
    settle,
)
from heads.statistics.calibration import fit_temperature
from heads.statistics.metrics import cross_entropy, evaluate, probabilities
from heads.statistics.operating_point import choose

LOSSES = st.lists(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), min_size=1, max_size=5).map(tuple)


def candidate(*clean: float, name: str = "", **scores: tuple[float, ...]) -> Candidate:
    return Candidate(name=name, scores={"clean": clean, **scores})


CANDIDATES = st.lists(
    st.builds(
        lambda losses, views, name: candidate(*losses, name=name, views=views), LOSSES, LOSSES, st.sampled_from("abc")
    ),
    min_size=1,
    max_size=8,
)


def test_the_lowest_mean_val_loss_is_selected() -> None:
    steady, lucky = candidate(0.2, 0.2, 0.2), candidate(0.05, 0.5, 0.5)
    assert select([lucky, steady]) == 1
    assert select([steady, lucky]) == 0


def test_the_first_of_equals_is_selected() -> None:
    one, other = candidate(0.25, 0.75), candidate(0.25, 0.75)
    assert select([one, other]) == 0
    assert select([candidate(1.0), one, other]) == 1


@given(CANDIDATES, st.sampled_from(["clean", "views"]))
def test_no_candidate_has_a_lower_mean_than_the_selected(candidates: list[Candidate], rule: str) -> None:
    means = [sum(one.scores[rule]) / len(one.scores[rule]) for one in candidates]
    chosen = select(candidates, rule)
    assert means[chosen] == min(means)
    assert min(means) not in means[:chosen]


@given(CANDIDATES)
def test_a_name_does_not_select(candidates: list[Candidate]) -> None:
    nameless = [dataclasses.replace(one, name="") for one in candidates]
    assert select(candidates) == select(nameless)


def test_each_rule_compares_the_score_of_its_name() -> None:
    one, other = candidate(0.1, views=(0.4,)), candidate(0.2, views=(0.3,))
    assert (select([one, other], "clean"), select([one, other], "views")) == (0, 1)


def test_a_candidate_without_the_score_is_passed_over_and_none_with_it_is_misuse() -> None:
    assert select([candidate(0.1), candidate(0.5, views=(0.9,))], "views") == 1
    with pytest.raises(ValueError, match="a score 'views', got none of 1"):
        select([candidate(0.1)], "views")
    with pytest.raises(ValueError, match="got none of 0"):
        select([])


def test_the_settings_know_the_rules_of_selection() -> None:
    # A literal of them, or None for the best that can be had.
    literal, nothing = get_args(Settings.model_fields["select"].annotation)
    assert set(get_args(literal)) == SELECTION_RULES.keys()
    assert nothing is type(None)


def test_the_best_seed_is_the_first_of_the_lowest_val_loss() -> None:
    assert best_seed(candidate(0.3, 0.1, 0.2, 0.1, views=(0.0, 1.0, 1.0, 1.0))) == 1


def test_a_candidate_has_no_room_for_a_test_figure() -> None:
    assert [field.name for field in dataclasses.fields(Candidate)] == ["name", "scores"]


# ---- temperature and thresholds


def logits(
    seed: int, heads: int = 2, n: int = 80, classes: int = 2, scale: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return (scale * (rng.standard_normal((heads, n, classes)) + np.eye(classes)[label])).astype(np.float32), label


def test_a_rows_choices_are_those_of_its_heads_on_val() -> None:
    z, label = logits(0)
    choices = settle(z, label, positive=1, best=1, rules=OPERATING_RULES)
    assert choices.temperature == fit_temperature(z[1], label)
    assert choices.temperature > 1.5  # three times too sure
    assert tuple(choices.operating_points) == OPERATING_RULES
    for rule, points in choices.operating_points.items():
        assert points == tuple(choose(probabilities(head)[:, 1], label == 1, rule) for head in z)
        assert {point.split for point in points} == {"val"}


def test_more_than_two_classes_and_a_val_of_one_have_no_operating_point() -> None:
    z, label = logits(0, classes=3, n=60)
    assert settle(z, label, positive=1, best=0, rules=OPERATING_RULES).operating_points == {}
    z, label = logits(0)
    assert settle(z, np.ones_like(label), positive=1, best=0, rules=OPERATING_RULES).operating_points == {}


# ---- members of an ensemble


def test_a_member_is_scaled_by_its_temperature_so_that_how_sure_it_is_does_not_weigh() -> None:
    z, label = logits(1, heads=1)
    assert scale_of_member(z[0], label) == fit_temperature(z[0], label)
    louder = 4 * z[0]
    np.testing.assert_allclose(louder / scale_of_member(louder, label), z[0] / scale_of_member(z[0], label), rtol=1e-3)


def test_a_member_without_an_error_on_val_keeps_its_scale() -> None:
    label = np.arange(20) % 2
    assert scale_of_member(np.eye(2)[label], label) == 1.0


def test_the_best_subset_is_that_of_a_plain_search() -> None:
    members = [logits(seed, heads=1, scale=1.0 + seed)[0][0] for seed in range(5)]
    label = logits(0)[1]
    found = best_subset(
        5, lambda subset: float(cross_entropy(np.mean([members[k] for k in subset], axis=0), label).mean())
    )
    losses = {
        subset: evaluate(sum(members[k] for k in subset) / len(subset), label).loss
        for size in range(2, 6)
        for subset in combinations(range(5), size)
    }
    assert losses[found] == pytest.approx(min(losses.values()))
    assert len(losses) == 2**5 - 1 - 5


def test_more_members_than_subsets_are_tried_of_are_all_taken() -> None:
    assert best_subset(MOST_BACKBONES + 1, len) == tuple(range(MOST_BACKBONES + 1))
    with pytest.raises(ValueError, match="two members or more, got 1"):
        best_subset(1, len)
