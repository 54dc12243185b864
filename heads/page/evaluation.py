"""What the page draws of a row on test: curves with bands, thresholds and what they do, calibration, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from heads.experiments.split_logits import Kind, SplitLogits
from heads.page.rows import DIGITS
from heads.reporting.report import Report, ReportRow
from heads.statistics.calibration import reliability
from heads.statistics.curves import Band, Curve, bands, precision_recall, roc, threshold_figures
from heads.statistics.intervals import RESAMPLES, Interval, Resamples, patients, wilson
from heads.statistics.metrics import probabilities

MOST_ROWS = 12
"""Rows that are evaluated, at most: colours and dashes that can be told apart, and a page that opens at once."""

HISTOGRAM_BINS = 20
"""Each a twentieth of probability wide."""

MOST_DRAWS, LEAST_RESAMPLES = 1 << 25, 1000
"""Draws of patients at most, while that leaves resamples enough for percentiles: what a row costs stays bounded."""

THRESHOLDS = np.unique(
    np.concatenate([np.arange(1, 100) / 100, np.round(1 / (1 + np.exp(-np.arange(-8, 8.01, 0.25))), 5)])
)
"""What the slider can be set to besides the chosen points: hundredths, and closer towards 0 and 1, where the
probabilities of a head that is sure of itself lie."""

Points = tuple[tuple[float, ...], tuple[float, ...]]
"""x and y of a curve."""

Ends = tuple[tuple[float | None, ...], tuple[float | None, ...]]
"""Low and high ends of intervals, one a threshold."""


@dataclass(frozen=True, kw_only=True)
class ChosenPoint:
    """A threshold that was fixed before test was opened.

    Attributes:
        rules: the rules that chose it on val; ``0.5`` for the one that nothing chose.
        at: its place among the thresholds.
    """

    rules: tuple[str, ...]
    at: int


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each of T thresholds does on test; predictive values at a prevalence of one half (``ThresholdFigures``).

    The ends of intervals are of 95 %, by patient; those of accuracy are in percent.
    """

    value: tuple[float, ...]
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    accuracy: Ends
    sensitivity: Ends
    specificity: Ends
    ppv_even: Ends
    npv_even: Ends


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bin of a reliability diagram, with Wilson's interval of the share that is positive; images are its trials."""

    probability: float
    positive: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class BinaryEvaluation:
    """What two classes have besides.

    Attributes:
        positives: images of test of the positive class.
        negatives: the others.
        auc: with its interval, as the table's.
        resamples: that bands and intervals are taken from.
        roc: sensitivity against 1 - specificity, of test.
        roc_band: place, low and high.
        val_roc: of val, for the shift between the two.
        precision_recall: precision against recall, of test.
        precision_recall_band: place, low and high.
        thresholds: for the slider.
        chosen: the points that were fixed before.
        reliability: bins of the probabilities as they are.
        temperature: that val chose.
        reliability_scaled: bins of the probabilities at that temperature.
        histogram: images of the negative and of the positive class in each of ``HISTOGRAM_BINS`` bins of probability.
    """

    positives: int
    negatives: int
    auc: tuple[float, float, float] | None
    resamples: int
    roc: Points
    roc_band: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    val_roc: Points | None
    precision_recall: Points
    precision_recall_band: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    thresholds: Thresholds
    chosen: tuple[ChosenPoint, ...]
    reliability: tuple[Bin, ...]
    temperature: float
    reliability_scaled: tuple[Bin, ...]
    histogram: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A row on test, by the head that stands for it.

    Attributes:
        row: its place among the report's rows.
        seed: of the head, where it has several.
        confusion: images by true class (rows) and decided class (columns), at threshold 0.5.
        binary: of two classes that both have images.
    """

    row: int
    seed: int | None
    confusion: tuple[tuple[int, ...], ...]
    binary: BinaryEvaluation | None


def evaluated_rows(report: Report, most: int = MOST_ROWS) -> tuple[int, ...]:
    """Places of the rows that are evaluated, the foremost first; val and train alone rank them.

    The selected rows come first, then ensembles over backbones, then each backbone's best by the report's rule, then
    whatever that rule ranks next: single rows before means over their seeds, which look the same.
    """
    rows = report.rows
    scores = [one.row.candidate.scores.get(report.decision.rule, (np.inf,)) for one in rows]
    order = [(one.row.ensemble is not None, float(np.mean(score))) for one, score in zip(rows, scores, strict=True)]
    ranked = sorted(range(len(rows)), key=order.__getitem__)
    best: dict[str, int] = {}
    for number in ranked:
        if (of := rows[number].row).ensemble is None:
            best.setdefault(of.records[0].backbone, number)
    ensembles = [k for k, one in enumerate(rows) if one.row.ensemble and one.row.ensemble.kind == "backbones"]
    selected = [number for number, one in enumerate(rows) if one.selected]
    return tuple(dict.fromkeys((*selected, *ensembles, *best.values(), *ranked)))[:most]


def resamples_of(people: int) -> int:
    """How many resamples the bands, and the intervals at every threshold, of so many patients are taken from.

    As many as the table's figures have, but of some thousand patients and more fewer: an end of an interval moves by a
    few hundredths of its width.
    """
    return min(RESAMPLES, max(LEAST_RESAMPLES, MOST_DRAWS // people))


def evaluate_rows(
    report: Report, kind: Kind, places: Collection[int], on_row: Callable[[int, int], None] = lambda *_: None
) -> tuple[Evaluation, ...]:
    """Evaluate rows of a report, of logits of one kind; rows of the same images share their resamples.

    Args:
        report: finished.
        kind: of logits.
        places: of the rows.
        on_row: told rows done, and in all.
    """
    drawn: dict[Any, Resamples] = {}
    made: list[Evaluation] = []
    # As in a report: many small products.
    with threadpool_limits(1, user_api="blas"):
        for place in places:
            made.append(_evaluate(report.rows[place], place, kind, drawn))
            on_row(len(made), len(places))
    return tuple(made)


def _evaluate(one: ReportRow, place: int, kind: Kind, drawn: dict[Any, Resamples]) -> Evaluation:
    row, test = one.row, one.test_logits
    figures = one.test[kind]
    truth = test.label == row.run.positive
    binary = None
    if len(row.run.classes) == 2 and truth.any() and not truth.all():
        key = (row.run.positive, test.image_id, test.patient_id, test.label.tobytes())
        if key not in drawn:
            people, _ = patients(truth, test.patient)
            drawn[key] = Resamples(truth, test.patient, resamples_of(people))
        binary = _binary(one, kind, truth, drawn[key])
    chosen = row.chosen
    return Evaluation(
        row=place,
        seed=chosen.config.seed if chosen and row.seeds > 1 else None,
        confusion=figures.metrics[row.best].confusion_matrix,
        binary=binary,
    )


def _binary(one: ReportRow, kind: Kind, truth: NDArray[np.bool_], resamples: Resamples) -> BinaryEvaluation:
    row, figures = one.row, one.test[kind]
    logits = one.test_logits.of(kind)[row.best]
    probability = probabilities(logits)[:, row.run.positive]
    temperature = row.choices[kind].temperature
    scaled = probabilities(logits / temperature)[:, row.run.positive]
    fixed = {rule: point.points[row.best].threshold for rule, point in figures.points.items()}
    cuts = np.unique(np.concatenate([THRESHOLDS, list(fixed.values())]))
    at = threshold_figures(probability, truth, cuts, resamples)
    roc_band, precision_recall_band = bands(probability, truth, resamples)
    interval = figures.interval("auc")
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return BinaryEvaluation(
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        auc=(interval.value, interval.low, interval.high) if interval else None,
        resamples=resamples.count,
        roc=_points(roc(probability, truth)),
        roc_band=_band(roc_band),
        val_roc=_val_roc(row.val, kind, row.best, row.run.positive),
        precision_recall=_points(precision_recall(probability, truth)),
        precision_recall_band=_band(precision_recall_band),
        thresholds=Thresholds(
            value=tuple(cuts.tolist()),
            tp=tuple(at.tp.tolist()),
            fp=tuple(at.fp.tolist()),
            accuracy=_interval_ends([found.accuracy for found in at.intervals], percent=True),
            sensitivity=_interval_ends([found.sensitivity for found in at.intervals]),
            specificity=_interval_ends([found.specificity for found in at.intervals]),
            ppv_even=_even_ends(at.ppv_even),
            npv_even=_even_ends(at.npv_even),
        ),
        chosen=_chosen(fixed, cuts),
        reliability=_bins(probability, truth),
        temperature=temperature,
        reliability_scaled=_bins(scaled, truth),
        histogram=(
            tuple(np.histogram(probability[~truth], edges)[0].tolist()),
            tuple(np.histogram(probability[truth], edges)[0].tolist()),
        ),
    )


def _chosen(fixed: Mapping[str, float], cuts: NDArray[np.float64]) -> tuple[ChosenPoint, ...]:
    """0.5, and the rules that chose each threshold on val."""
    held: dict[float, list[str]] = {0.5: ["0.5"]}
    for rule, cut in fixed.items():
        held.setdefault(cut, []).append(rule)
    return tuple(ChosenPoint(rules=tuple(rules), at=int(np.searchsorted(cuts, cut))) for cut, rules in held.items())


def _val_roc(val: SplitLogits, kind: Kind, best: int, positive: int) -> Points | None:
    truth = val.label == positive
    if truth.all() or not truth.any():
        return None
    return _points(roc(probabilities(val.of(kind)[best])[:, positive], truth))


def _bins(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[Bin, ...]:
    made: list[Bin] = []
    for one in reliability(probability, truth):
        ends = wilson(one.positive, one.n)
        held = {"probability": one.probability, "positive": one.positive, "low": ends.low, "high": ends.high}
        made.append(Bin(n=one.n, **{name: round(value, DIGITS) for name, value in held.items()}))
    return tuple(made)


def _points(curve: Curve) -> Points:
    return _rounded(curve.x), _rounded(curve.y)


def _band(band: Band) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    return _rounded(band.x), _rounded(band.low), _rounded(band.high)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())


def _interval_ends(intervals: Sequence[Interval | None], *, percent: bool = False) -> Ends:
    """Rounded as they are told, and not again: three digits, in percent one."""
    scale, digits = (100, 1) if percent else (1, 3)
    low = tuple(round(one.low * scale, digits) if one else None for one in intervals)
    return low, tuple(round(one.high * scale, digits) if one else None for one in intervals)


def _even_ends(ends: NDArray[np.float64]) -> Ends:
    """To six digits: a low prevalence stretches what is close to 1."""
    low, high = (tuple(None if np.isnan(one) else round(one, 6) for one in side.tolist()) for side in ends.T)
    return low, high
