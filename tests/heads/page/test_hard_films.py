"""Margins against a plain reading of probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.page.hard_films import least_sure, margins, most_wrong
from heads.statistics.metrics import probabilities


def drawn(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (n, classes)).astype(np.float32), rng.integers(0, classes, n)


@given(st.integers(0, 1000), st.sampled_from([0.5, 0.03, 0.9, 0.0, 1.0]), st.sampled_from([0, 1]))
def test_a_margin_is_negative_where_the_decision_at_the_threshold_is_wrong(
    seed: int, threshold: float, positive: int
) -> None:
    logits, label = drawn(40, 2, seed)
    margin = margins(logits, label, positive, threshold)
    probability = probabilities(logits)[:, positive]
    for m, p, truth in zip(margin, probability, label, strict=True):
        decided = positive if p >= threshold else 1 - positive
        assert (m < 0) == (decided != truth)


def test_of_two_classes_at_one_half_the_order_is_that_of_the_true_class_probability() -> None:
    logits, label = drawn(200, 2, 1)
    own = probabilities(logits)[np.arange(200), label]
    margin = margins(logits, label, 1)
    wrong = [int(row) for row in np.argsort(own) if own[row] < 0.5]
    assert most_wrong(margin, 12).tolist() == wrong[:12]
    assert most_wrong(margin, 1000).tolist() == wrong
    unsure = sorted(range(200), key=lambda row: abs(own[row] - 0.5))
    assert least_sure(margin, 12).tolist() == unsure[:12]


def test_of_several_classes_it_is_the_true_logit_less_the_largest_other() -> None:
    logits, label = drawn(100, 4, 2)
    margin = margins(logits, label, 1)
    for row in range(100):
        others = [float(logits[row, k]) for k in range(4) if k != label[row]]
        assert margin[row] == pytest.approx(float(logits[row, label[row]]) - max(others))
        assert (margin[row] < 0) == (logits[row].argmax() != label[row])


@pytest.mark.parametrize("threshold", [0.5, 0.0, np.nextafter(1.0, 2.0)])
def test_on_the_rim_of_a_threshold_the_sign_is_still_the_decisions(threshold: float) -> None:
    # A film on the threshold itself, two whose probability rounds to 1 and to 0, and the true class of each both ways.
    logits = np.array([[0, 0], [0, 0], [-60, 60], [-60, 60], [60, -60], [60, -60]], np.float64)
    label = np.array([0, 1] * 3)
    called = probabilities(logits)[:, 1] >= threshold
    margin = margins(logits, label, 1, threshold)
    assert (margin < 0).tolist() == (called != (label == 1)).tolist()
    assert set(most_wrong(margin, 6).tolist()) == set(np.flatnonzero(called != (label == 1)).tolist())


def test_of_equal_logits_of_several_classes_the_sign_is_the_decisions() -> None:
    logits = np.zeros((3, 3))
    assert (margins(logits, np.array([0, 1, 2]), 0) < 0).tolist() == [False, True, True]


def test_logits_are_left_as_they_are() -> None:
    logits, label = drawn(10, 3, 3)
    before = logits.copy()
    margins(logits, label, 0)
    np.testing.assert_array_equal(logits, before)


def test_fewer_than_asked_for_are_all() -> None:
    assert most_wrong(np.array([0.5, -1.0, 2.0]), 12).tolist() == [1]
    assert most_wrong(np.array([0.5, 1.0]), 12).tolist() == []
    assert least_sure(np.array([0.5, -0.1]), 12).tolist() == [1, 0]
