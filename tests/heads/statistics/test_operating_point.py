"""Operating points against a search over every threshold, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heads.statistics.metrics import evaluate
from heads.statistics.operating_point import OperatingPoint, choose, parse_rule, thresholds

RULES = (
    "youden",
    "f1",
    "sensitivity>=0.95",
    "sensitivity>=0.5",
    "sensitivity>=1",
    "specificity>=0.9",
    "specificity>=1",
)
Cells = tuple[int, int, int, int]

# Few distinct values make ties; 0, 1 and the neighbours of 0.5 are where rounding bites.
VALUES = st.sampled_from([0.0, 0.1, 0.2, 0.5, float(np.nextafter(0.5, 1)), 0.7, float(np.nextafter(1, 0)), 1.0])
IMAGES = st.lists(st.tuples(VALUES, st.booleans()), min_size=2, max_size=14).filter(
    lambda images: len({positive for _, positive in images}) == 2
)


def arrays(images: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([value for value, _ in images]), np.array([positive for _, positive in images])


def count(probability: NDArray[np.float64], truth: NDArray[np.bool_], threshold: float) -> Cells:
    """tp, fp, fn, tn."""
    decision = probability >= threshold
    cells = (decision & truth, decision & ~truth, ~decision & truth, ~decision & ~truth)
    tp, fp, fn, tn = (int(cell.sum()) for cell in cells)
    return tp, fp, fn, tn


def merit(rule: str, cells: Cells) -> tuple[Fraction, ...]:
    """What a rule wants most, then next; the largest wins."""
    tp, fp, fn, tn = cells
    sensitivity, specificity = Fraction(tp, tp + fn), Fraction(tn, tn + fp)
    name, least = rule.partition(">=")[0], Fraction(rule.partition(">=")[2] or 0)
    if name == "youden":
        return sensitivity + specificity, sensitivity
    if name == "f1":
        return Fraction(2 * tp, 2 * tp + fp + fn), sensitivity, specificity
    if name == "sensitivity":
        return Fraction(sensitivity >= least), specificity, sensitivity
    return Fraction(specificity >= least), sensitivity, specificity


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=50)
@given(images=IMAGES)
def test_no_threshold_serves_the_rule_better(rule: str, images: list[tuple[float, bool]]) -> None:
    probability, truth = arrays(images)
    point = choose(probability, truth, rule)
    every = [*probability.tolist(), 2.0]  # each way to decide: from an image's probability on, or none
    best = max(merit(rule, count(probability, truth, threshold)) for threshold in every)
    assert merit(rule, count(probability, truth, point.threshold)) == best
    assert (point.rule, point.split) == (rule, "val")


@settings(max_examples=50)
@given(images=IMAGES)
def test_thresholds_decide_in_every_possible_way_and_sit_on_no_image(images: list[tuple[float, bool]]) -> None:
    values, found = thresholds(arrays(images)[0])
    decided = [(values >= threshold).sum() for threshold in found]
    assert decided == list(range(len(values), -1, -1))
    for below, above, threshold in zip(values, values[1:], found[1:], strict=False):
        assert below < threshold <= above
        assert threshold == (below + above) / 2 or above == np.nextafter(below, 1)


def test_operating_point_is_as_by_hand() -> None:
    probability = np.array([0.1, 0.3, 0.4, 0.6, 0.8, 0.9])
    truth = np.array([False, False, True, False, True, True])
    expected = {
        "youden": 0.35,  # sensitivity 1, specificity 2/3 against 2/3 and 1 at 0.7: equal, so the more sensitive
        "f1": 0.35,  # 6/7 against 4/5
        "sensitivity>=0.6": 0.7,
        "sensitivity>=0.95": 0.35,
        "specificity>=0.6": 0.35,
        "specificity>=0.9": 0.7,
    }
    found = {rule: choose(probability, truth, rule) for rule in expected}
    assert {rule: point.threshold for rule, point in found.items()} == pytest.approx(expected)
    assert found["f1"] == OperatingPoint(threshold=found["f1"].threshold, rule="f1", split="val")


def test_metrics_at_the_point_keep_what_the_rule_promised() -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(300) % 3 > 0).astype(np.int64)
    logits = np.stack([np.zeros(300), random.normal(2.0 * labels - 1)], 1)
    probability = 1 / (1 + np.exp(-logits[:, 1]))
    for least in (0.8, 0.95, 1.0):
        sensitive, specific = (
            choose(probability, labels == 1, f"{n}>={least}") for n in ("sensitivity", "specificity")
        )
        sensitivity = evaluate(logits, labels, threshold=sensitive.threshold).sensitivity
        specificity = evaluate(logits, labels, threshold=specific.threshold).specificity
        assert sensitivity is not None
        assert specificity is not None
        assert sensitivity >= least
        assert specificity >= least


def test_rule_that_only_a_trivial_decision_meets_gets_it() -> None:
    probability, truth = np.array([0.2, 1.0, 0.6]), np.array([True, False, True])
    everything, nothing = choose(probability, truth, "sensitivity>=1"), choose(probability, truth, "specificity>=1")
    assert count(probability, truth, everything.threshold) == (2, 1, 0, 0)
    assert count(probability, truth, nothing.threshold) == (0, 0, 2, 1)
    assert nothing.threshold > 1  # an image has probability 1


def test_order_of_the_images_does_not_matter() -> None:
    random = np.random.default_rng(0)
    probability, truth = random.random(50).round(1), random.random(50) < 0.5
    order = random.permutation(50)
    for rule in RULES:
        assert choose(probability[order], truth[order], rule) == choose(probability, truth, rule)


@pytest.mark.parametrize("rule", ["", "accuracy", "Youden", "sensitivity", "sensitivity>0.9", "precision>=0.9"])
def test_unknown_rule_is_refused_with_the_known_ones(rule: str) -> None:
    with pytest.raises(ValueError, match="there are: youden, f1, sensitivity>=X, specificity>=X"):
        parse_rule(rule)


@pytest.mark.parametrize("number", ["", "95%", "95", "-0.1", "nan", "inf"])
def test_level_that_is_no_share_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="wanted a number of 0 to 1"):
        parse_rule(f"sensitivity>={number}")


def test_threshold_is_never_chosen_on_test() -> None:
    probability, truth = np.array([0.2, 0.6]), np.array([False, True])
    with pytest.raises(ValueError, match="chosen on test"):
        choose(probability, truth, "youden", split="test")
    assert choose(probability, truth, "youden", split="blocks").split == "blocks"


@pytest.mark.parametrize(
    ("probability", "truth", "problem"),
    [
        ([0.1, 0.2], [True, True], "both classes, got 2 positive, 0 negative"),
        ([0.1, 0.2, 0.3], [True, False], r"got \[3\] and \[2\]"),
        ([0.1, np.nan], [True, False], "probabilities of 0 to 1"),
        ([0.1, 1.2], [True, False], "probabilities of 0 to 1"),
    ],
)
def test_images_that_cannot_choose_are_refused(probability: list[float], truth: list[bool], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        choose(np.array(probability), np.array(truth), "f1")
