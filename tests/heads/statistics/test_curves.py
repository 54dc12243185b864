"""Curves are scikit-learn's; their bands are those of a plain loop over resampled patients; thresholds count alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import sample
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_curve, recall_score, roc_curve

from heads.statistics.curves import bands, precision_recall, roc, threshold_figures
from heads.statistics.intervals import Resamples, bootstrap, wilson

CUTS = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
LOOPS = 81
"""The 2.5th and the 97.5th percentile of so many are the third from either end, and nothing between two of them."""


def resampled(
    seed: int, decimals: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], Resamples, list[NDArray[np.intp]]]:
    """Probabilities, truth, their resamples, and of each resample its images, as often as it holds them."""
    probability, truth, patient = sample(seed, n=80, people=50)
    resamples = Resamples(truth, patient, LOOPS)
    held = resamples.sums(np.eye(len(truth))).astype(int)
    return np.round(probability, decimals), truth, resamples, [np.repeat(np.arange(80), column) for column in held.T]


def height_of_roc(probability: NDArray[np.float64], truth: NDArray[np.bool_], x: float) -> float:
    """The highest sensitivity at a share of false alarms, along straight lines between scikit-learn's points."""
    false, true, _ = roc_curve(truth, probability, drop_intermediate=False)
    points: list[tuple[float, float]] = list(zip(false.tolist(), true.tolist(), strict=True))
    here = [true for false, true in points if abs(false - x) < 1e-12]
    if here:
        return max(here)
    before = max(point for point in points if point[0] < x)
    after = min(point for point in points if point[0] > x)
    return before[1] + (x - before[0]) / (after[0] - before[0]) * (after[1] - before[1])


def height_of_precision_recall(probability: NDArray[np.float64], truth: NDArray[np.bool_], x: float) -> float:
    """Davis and Goadrich: between two thresholds false alarms grow in proportion to what is found."""
    found = x * truth.sum()
    counts = [(0, 0)]
    for cut in sorted(set(probability.tolist()), reverse=True):
        decided = probability >= cut
        counts.append((int((decided & truth).sum()), int((decided & ~truth).sum())))
    exact = [fp for tp, fp in counts if abs(tp - found) < 1e-9]
    if exact:
        return float(found / (found + min(exact)))
    before = max(count for count in counts if count[0] < found)
    after = min(count for count in counts if count[0] > found)
    alarms = before[1] + (found - before[0]) / (after[0] - before[0]) * (after[1] - before[1])
    return float(found / (found + alarms))


@pytest.mark.parametrize("decimals", [12, 1])
def test_bands_are_those_of_a_plain_loop_over_resampled_patients(decimals: int) -> None:
    probability, truth, resamples, images = resampled(3, decimals)
    of_roc, of_precision_recall = bands(probability, truth, resamples, places=21)
    for band, height in ((of_roc, height_of_roc), (of_precision_recall, height_of_precision_recall)):
        heights = [[height(probability[of], truth[of], float(x)) for x in band.x] for of in images]
        low, high = np.percentile(heights, [2.5, 97.5], axis=0)
        np.testing.assert_allclose(band.low, low, atol=1e-12)
        np.testing.assert_allclose(band.high, high, atol=1e-12)


def test_bands_through_fewer_thresholds_are_nearly_those_through_all() -> None:
    probability, truth, patient = sample(5, n=1500, people=700)
    resamples = Resamples(truth, patient, 200)
    for few, every in zip(
        bands(probability, truth, resamples, cuts=300), bands(probability, truth, resamples, cuts=2000), strict=True
    ):
        np.testing.assert_allclose(few.low, every.low, atol=0.02)
        np.testing.assert_allclose(few.high, every.high, atol=0.02)


def test_curves_are_scikit_learns_where_few_points_suffice() -> None:
    probability, truth, _ = sample(1, n=150)
    false, true, _ = roc_curve(truth, probability)
    curve = roc(probability, truth)
    assert len(false) < 200
    np.testing.assert_array_equal(curve.x, false)
    np.testing.assert_array_equal(curve.y, true)
    precision, recall, _ = precision_recall_curve(truth, probability)
    curve = precision_recall(probability, truth)
    np.testing.assert_array_equal(curve.x, recall[:-1][::-1])
    np.testing.assert_array_equal(curve.y, precision[:-1][::-1])


def test_a_thinned_curve_keeps_its_ends_and_runs_where_the_whole_one_does() -> None:
    probability, truth, _ = sample(2, n=20_000, people=9_000)
    for of in (roc, precision_recall):
        whole, thin = of(probability, truth, 10**6), of(probability, truth, 200)
        assert len(whole.x) > 1000
        assert 150 < len(thin.x) <= 200
        assert (thin.x[0], thin.x[-1], thin.y[0], thin.y[-1]) == (whole.x[0], whole.x[-1], whole.y[0], whole.y[-1])
        gap = [
            np.min(np.abs(thin.x - x) + np.abs(thin.y - y)) for x, y in zip(whole.x[::50], whole.y[::50], strict=True)
        ]
        assert max(gap) < 0.02


def test_thresholds_count_as_scikit_learn_does_and_have_the_intervals_of_the_bootstrap() -> None:
    probability, truth, patient = sample(4)
    found = threshold_figures(probability, truth, CUTS, Resamples(truth, patient))
    for place, cut in enumerate(CUTS.tolist()):
        decided = probability >= cut
        tn, fp, fn, tp = confusion_matrix(truth, decided).ravel()
        assert (found.tp[place], found.fp[place]) == (tp, fp)
        assert (truth.sum() - tp, (~truth).sum() - fp) == (fn, tn)
        interval = found.intervals[place]
        assert interval == replace(bootstrap(probability, truth, patient, threshold=cut), f1=None)
        assert interval.accuracy.value == pytest.approx(accuracy_score(truth, decided))
        assert interval.sensitivity is not None
        assert interval.sensitivity.value == pytest.approx(recall_score(truth, decided))


@pytest.mark.parametrize("prevalence", [0.5, 0.02])
def test_predictive_values_of_any_prevalence_follow_from_those_at_one_half(prevalence: float) -> None:
    probability, truth, resamples, images = resampled(6, 12)
    found = threshold_figures(probability, truth, CUTS, resamples)
    odds, compared = prevalence / (1 - prevalence), 0
    for place, cut in enumerate(CUTS.tolist()):
        ppv, npv = [], []
        for of in images:
            decided = probability[of] >= cut
            sensitivity = recall_score(truth[of], decided)
            specificity = recall_score(~truth[of], ~decided)
            right, wrong = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
            ppv.append(right / (right + wrong))
            right, wrong = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
            npv.append(right / (right + wrong))
        for values, even, by in ((ppv, found.ppv_even[place], odds), (npv, found.npv_even[place], 1 / odds)):
            expected = [sorted(values)[2], sorted(values)[-3]]
            if expected[0] < expected[1]:  # for where it is not, see below
                np.testing.assert_allclose(by * even / (1 - even + by * even), expected, atol=1e-9)
                compared += 1
    assert compared >= 8


def test_predictive_values_have_an_interval_where_no_resample_differs() -> None:
    truth = np.arange(40) < 20
    perfect = np.where(truth, 0.9, 0.1)
    found = threshold_figures(perfect, truth, np.array([0.5]), Resamples(truth, None, 100))
    low = wilson(1.0, 20).low
    # Of the ends of sensitivity and specificity, which are Wilson's.
    assert found.ppv_even[0] == pytest.approx([low / (low + 1 - low), 1.0])
    assert found.npv_even[0] == pytest.approx([low / (low + 1 - low), 1.0])


def test_a_threshold_that_misses_none_says_how_sure_that_is() -> None:
    probability, truth, patient = sample(9, n=300)
    cut = probability[truth].min() - 1e-6
    found = threshold_figures(probability, truth, np.array([cut]), Resamples(truth, patient, 300))
    (figures,) = found.intervals
    assert figures.sensitivity is not None
    assert figures.specificity is not None
    assert figures.sensitivity.value == 1
    low = figures.specificity.low / (figures.specificity.low + 1 - figures.sensitivity.low)
    assert found.npv_even[0] == pytest.approx([low, 1.0])
    assert found.npv_even[0, 0] < 0.95


def test_a_threshold_that_calls_none_positive_has_no_predictive_value() -> None:
    probability, truth, patient = sample(7)
    found = threshold_figures(probability, truth, np.array([0.0, 1.1]), Resamples(truth, patient, 100))
    assert np.isnan(found.ppv_even[1]).all()
    assert np.isnan(found.npv_even[0]).all()
    assert np.isfinite(found.ppv_even[0]).all()
    assert np.isfinite(found.npv_even[1]).all()
