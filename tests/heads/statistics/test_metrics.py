"""Figures of a head, against hand counts and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, roc_auc_score

from heads.statistics.metrics import Confusion, evaluate, probabilities


def binary(probability: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Logits whose softmax gives class 1 these probabilities."""
    p = np.array(probability)
    return np.stack([np.log1p(-p), np.log(p)], axis=1).astype(np.float32)


LABELS = np.array([0, 0, 0, 1, 1, 1, 1])
LOGITS = binary([0.1, 0.4, 0.7, 0.2, 0.6, 0.8, 0.9])


@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_probabilities_sum_to_one_however_large_the_logits(logits: np.ndarray) -> None:
    result = probabilities(logits)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result.sum(1), 1)


def test_two_classes_are_counted_as_by_hand() -> None:
    metrics = evaluate(LOGITS, LABELS)
    assert metrics.confusion == Confusion(tn=2, fp=1, fn=1, tp=3)
    assert metrics.confusion_matrix == ((2, 1), (1, 3))
    assert metrics.n == 7
    assert metrics.accuracy == 5 / 7
    assert metrics.sensitivity == 3 / 4
    assert metrics.specificity == 2 / 3
    assert metrics.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert metrics.auc == pytest.approx(9 / 12)  # pairs in order: 4 + 3 + 2 of 3 · 4
    right = np.array([0.9, 0.6, 0.3, 0.2, 0.6, 0.8, 0.9])
    assert metrics.loss == pytest.approx(-np.log(right).mean(), rel=1e-6)


def test_threshold_moves_the_decisions_and_nothing_else() -> None:
    low, middle = evaluate(LOGITS, LABELS, threshold=0.15), evaluate(LOGITS, LABELS)
    assert low.confusion == Confusion(tn=1, fp=2, fn=0, tp=4)
    assert (low.auc, low.loss) == (middle.auc, middle.loss)


def test_other_positive_class_swaps_sensitivity_and_specificity() -> None:
    one, zero = evaluate(LOGITS, LABELS), evaluate(LOGITS, LABELS, positive=0)
    assert (zero.sensitivity, zero.specificity) == (one.specificity, one.sensitivity)
    assert zero.auc == pytest.approx(one.auc)
    assert zero.confusion_matrix == one.confusion_matrix


def test_three_classes_have_macro_figures_and_no_binary_ones() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(3, size=60), rng.standard_normal((60, 3), dtype=np.float32)
    metrics = evaluate(logits, labels)
    assert (metrics.sensitivity, metrics.specificity, metrics.confusion) == (None, None, None)
    single = [roc_auc_score(labels == k, probabilities(logits)[:, k]) for k in range(3)]
    assert metrics.auc == pytest.approx(np.mean(single))
    assert metrics.f1 == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert np.sum(metrics.confusion_matrix) == 60
    assert np.trace(metrics.confusion_matrix) == round(60 * metrics.accuracy)


@pytest.mark.parametrize("only", [0, 1])
def test_figures_that_one_class_leaves_undefined_are_none(only: int) -> None:
    metrics = evaluate(LOGITS, np.full(7, only))
    assert metrics.auc is None
    assert metrics.sensitivity == (4 / 7 if only else None)
    assert metrics.specificity == (None if only else 3 / 7)


def test_auc_of_three_classes_is_none_where_one_is_missing() -> None:
    assert evaluate(np.eye(3, dtype=np.float32), np.array([0, 1, 1])).auc is None


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[0, 2\] and \[0\]"):
        evaluate(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match=r"got \[2, 2\] and \[3\]"):
        evaluate(np.zeros((2, 2)), np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="positive of 0 to 1, got 2"):
        evaluate(LOGITS, LABELS, positive=2)
    with pytest.raises(ValueError, match="decides between two classes, got 3"):
        evaluate(np.eye(3), np.arange(3), threshold=0.3)
