"""ROC and precision-recall curves with bands, and figures at many thresholds, all by patient.

A band is of vertical averages (Fawcett 2006, Pattern Recognition Letters 27:861-874): each resample of patients has a
curve of its own, and at each place of the horizontal axis the band runs from the 2.5th to the 97.5th percentile of
their heights. It holds at each place by itself, not for the whole curve at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from heads.statistics.intervals import FigureIntervals, Resamples
from heads.statistics.operating_point import thresholds

POINTS = 200
"""Points of a curve at most: more are not seen."""

CUTS = 250
"""Thresholds at most that the curve of a resample runs through."""

PLACES = 101
"""Places of the horizontal axis at which a band is computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Points of a curve, [J] each."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """Ends of the 95 % interval of a curve's height at places of the horizontal axis, [J] each."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdFigures:
    """What T thresholds make of a split.

    Predictive values depend on how common the positive class is. Theirs are given for a prevalence of one half, PPV =
    sensitivity / (sensitivity + 1 - specificity), NPV likewise; they grow with those of any other prevalence, and so do
    the ends of their intervals: with the odds o of the prevalence, PPV / (1 - PPV) is o times that at one half.

    Attributes:
        tp: positive images decided positive, [T].
        fp: negative images decided positive, [T].
        intervals: of accuracy, sensitivity and specificity, one a threshold.
        ppv_even: ends of the interval of the PPV at a prevalence of one half, [T, 2]; NaN where none is positive.
        npv_even: likewise of the NPV; NaN where all are positive.
    """

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    intervals: tuple[FigureIntervals, ...]
    ppv_even: NDArray[np.float64]
    npv_even: NDArray[np.float64]


def roc(probability: NDArray[np.floating], truth: NDArray[np.bool_], points: int = POINTS) -> Curve:
    """Sensitivity (y) against 1 - specificity (x), of probabilities [N] and truth [N], both classes there."""
    false_positive, true_positive, _ = roc_curve(truth, probability)
    return _thinned(false_positive, true_positive, points)


def precision_recall(probability: NDArray[np.floating], truth: NDArray[np.bool_], points: int = POINTS) -> Curve:
    """Precision (y) against recall (x), rising in x; without the point (0, 1), which no threshold gives."""
    precision, recall, _ = precision_recall_curve(truth, probability)
    return _thinned(recall[-2::-1], precision[-2::-1], points)


def bands(
    probability: NDArray[np.floating],
    truth: NDArray[np.bool_],
    resamples: Resamples,
    *,
    cuts: int = CUTS,
    places: int = PLACES,
) -> tuple[Band, Band]:
    """Bands of the ROC and of the precision-recall curve.

    Between two thresholds both counts of positive decisions are taken to grow in proportion, which makes the ROC curve
    straight there and the precision-recall curve bent (Davis and Goadrich 2006). At a place that several thresholds
    share, the best of them counts.

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N]; both classes are there.
        resamples: of the same images.
        cuts: thresholds at most that the curves run through.
        places: of the horizontal axis.
    """
    values = thresholds(probability)[1]  # the first decides all positive, the last none
    if len(values) > cuts:
        values = values[np.unique(np.linspace(0, len(values) - 1, cuts).round().astype(int))]
    tp, fp = (found[::-1] for found in _resampled(probability, truth, values, resamples))
    x = np.linspace(0, 1, places)
    sensitivity, precision = np.empty((tp.shape[1], places)), np.empty((tp.shape[1], places - 1))
    for number, (of_positives, of_negatives) in enumerate(zip(tp.T, fp.T, strict=True)):
        positives, negatives = of_positives[-1], of_negatives[-1]
        # Counts are whole: a place that should meet one must not miss it by a rounding.
        sensitivity[number] = np.interp(np.round(x * negatives, 9), of_negatives, of_positives) / positives
        # Of thresholds of equal recall the fewest false alarms: interp takes the last of equals, so from the other end.
        found = np.round(x[1:] * positives, 9)
        alarms = np.interp(-found, -of_positives[::-1], of_negatives[::-1])
        precision[number] = found / (found + alarms)
    return _band(x, sensitivity), _band(x[1:], precision)


def threshold_figures(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], cuts: NDArray[np.float64], resamples: Resamples
) -> ThresholdFigures:
    """Counts and intervals at given thresholds.

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N]; both classes are there.
        cuts: thresholds, ascending, [T]; positive is decided from each on.
        resamples: of the same images.
    """
    tp, fp = _resampled(probability, truth, cuts, resamples)
    tp_once, fp_once = _above(_places(probability, truth, cuts), len(cuts))
    intervals = resamples.at_counts(tp_once, fp_once, tp, fp)
    positives, negatives = resamples.class_sizes
    # Shares of counts, so that one of 0 is 0 and a predictive value of 1 is 1 in every resample.
    found, missed = tp / positives, (positives - tp) / positives
    spared, alarmed = (negatives - fp) / negatives, fp / negatives
    with np.errstate(invalid="ignore"):
        ppv = found / (found + alarmed)
        npv = spared / (spared + missed)
    called = tp_once + fp_once
    return ThresholdFigures(
        tp=tp_once,
        fp=fp_once,
        intervals=tuple(intervals),
        ppv_even=_even_intervals(ppv, called > 0, intervals, positive=True),
        npv_even=_even_intervals(npv, called < len(truth), intervals, positive=False),
    )


def _even_intervals(
    values: NDArray[np.float64], called: NDArray[np.bool_], found: Sequence[FigureIntervals], *, positive: bool
) -> NDArray[np.float64]:
    """Percentiles over the resamples, [T, R] → [T, 2]; NaN where no image is called so.

    Where all resamples are equal, as where no decision is wrong, from the ends of sensitivity and specificity.
    """
    ends = np.full((len(values), 2), np.nan)
    for place in np.flatnonzero(called).tolist():
        # A resample may call none so.
        low, high = np.nanpercentile(values[place], [2.5, 97.5])
        if not low < high:
            sensitivity, specificity = found[place].sensitivity, found[place].specificity
            assert sensitivity is not None
            assert specificity is not None
            one, other = (sensitivity, specificity) if positive else (specificity, sensitivity)
            low, high = (_predictive(one.low, other.low), _predictive(one.high, other.high))
        ends[place] = low, high
    return ends


def _predictive(one: float, other: float) -> float:
    """The predictive value at a prevalence of one half, of the share found of its own class and of the other."""
    return one / (one + 1 - other)


def _resampled(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], cuts: NDArray[np.float64], resamples: Resamples
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false positives of each threshold, ascending, in each resample, [T, R] each."""
    held = resamples.tallies(_places(probability, truth, cuts), 2 * (len(cuts) + 1))
    negative, positive = held.reshape(2, len(cuts) + 1, -1)
    return _reached(positive), _reached(negative)


def _places(probability: NDArray[np.floating], truth: NDArray[np.bool_], cuts: NDArray[np.float64]) -> NDArray[np.intp]:
    """Between which two of T thresholds each image lies, 0 to T, [N]; of positive ones T + 1 more."""
    return np.searchsorted(cuts, probability, side="right") + (len(cuts) + 1) * truth


def _above(place: NDArray[np.intp], cuts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives of each threshold among the images themselves, [T] each."""
    negative, positive = np.bincount(place, minlength=2 * (cuts + 1)).reshape(2, cuts + 1)
    return _reached(positive), _reached(negative)


def _reached(counts: NDArray[Any]) -> NDArray[Any]:
    """How many lie at each of T thresholds or above, of how many lie between them, [T + 1, …]: [T, …]."""
    return np.cumsum(counts[:0:-1], axis=0)[::-1]


def _band(x: NDArray[np.float64], heights: NDArray[np.float64]) -> Band:
    low, high = np.percentile(heights, [2.5, 97.5], axis=0)
    return Band(x=x, low=low, high=high)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64], points: int) -> Curve:
    """At most so many points, evenly along the curve, its ends among them."""
    if len(x) > points:
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        kept = np.unique(np.concatenate([np.searchsorted(along, np.linspace(0, along[-1], points - 1)), [len(x) - 1]]))
        x, y = x[kept], y[kept]
    return Curve(x=x, y=y)
