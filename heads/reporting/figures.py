"""Figures of a row on one split, with their intervals: at 0.5, at operating points, and of calibration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.experiments.split_logits import SplitLogits
from heads.statistics.auc import auc_interval
from heads.statistics.calibration import brier, expected_calibration_error
from heads.statistics.intervals import FigureIntervals, Interval, Resamples
from heads.statistics.metrics import DecisionFigures, Metrics, cross_entropy, decide, probabilities
from heads.statistics.operating_point import OperatingPoint

FIGURES = ("accuracy", "loss", "auc", "sensitivity", "specificity", "f1")
DECIDED = ("accuracy", "sensitivity", "specificity", "f1")
"""Figures that a threshold moves."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities come true, at one temperature.

    Attributes:
        loss: mean cross-entropy.
        expected_calibration_error: of the positive class; for K > 2 of the largest probability.
        brier: mean square of probability less truth, of the positive class; for K > 2 summed over the classes.
    """

    loss: float
    expected_calibration_error: float
    brier: float


@dataclass(frozen=True, kw_only=True)
class PointFigures:
    """Figures at an operating point, one a seed, each seed at its own threshold.

    Attributes:
        points: the thresholds.
        figures: of the decisions.
        intervals: of the head that stands for the row; None where none were asked for.
    """

    points: tuple[OperatingPoint, ...]
    figures: tuple[DecisionFigures, ...]
    intervals: FigureIntervals | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of a row's heads on one split, of logits of one kind.

    Attributes:
        metrics: at threshold 0.5, one a seed.
        best: index of the head that stands for the row; intervals and calibration are its.
        intervals: by figure; None where one is undefined.
        points: by rule, at its operating points.
        calibration: of the probabilities as they are.
        scaled: of the probabilities at the temperature that was fitted on val.
    """

    metrics: tuple[Metrics, ...]
    best: int
    intervals: Mapping[str, Interval | None]
    points: Mapping[str, PointFigures]
    calibration: Calibration
    scaled: Calibration

    def figure(self, name: str, rule: str | None = None) -> list[float | None]:
        """A figure, one a seed; at the operating point of a rule, where a threshold moves it."""
        if rule is not None and name in DECIDED:
            return [getattr(one, name) for one in self.points[rule].figures] if rule in self.points else [None]
        return [getattr(one, name) for one in self.metrics]

    def interval(self, name: str, rule: str | None = None) -> Interval | None:
        """The interval of a figure of the head that stands for the row."""
        if rule is not None and name in DECIDED:
            found = self.points[rule].intervals if rule in self.points else None
            return getattr(found, name) if found else None
        return self.intervals[name]


def figures_of(
    split: SplitLogits,
    logits: NDArray[np.float32],
    metrics: tuple[Metrics, ...],
    resamples: Resamples,
    *,
    positive: int,
    best: int,
    temperature: float,
    points: Mapping[str, Sequence[OperatingPoint]],
    with_intervals: bool = True,
) -> Figures:
    """Figures of a row on a split.

    Args:
        split: whose labels and patients count.
        logits: of one kind, [S, n, K].
        metrics: at threshold 0.5, one a seed.
        resamples: of the split's patients.
        positive: the positive class, of two.
        best: the head that stands for the row.
        temperature: that val chose for it.
        points: operating points by rule, one a seed.
        with_intervals: whether operating points get intervals.
    """
    one, labels = logits[best], split.label
    truth = labels == positive
    losses = cross_entropy(one, labels)
    if logits.shape[2] != 2:
        right = one.argmax(axis=1) == labels
        every: dict[str, Interval | None] = dict.fromkeys(FIGURES)
        every |= {"accuracy": resamples.share(right), "loss": resamples.mean(losses)}
        at: dict[str, PointFigures] = {}
    else:
        probability = [probabilities(head)[:, positive] for head in logits]
        rules = list(points)
        cuts = [0.5, *(points[rule][best].threshold for rule in rules if with_intervals)]
        found, (loss,) = resamples.figures(np.stack([probability[best] >= cut for cut in cuts]), losses[None])
        every = {**{name: getattr(found[0], name) for name in DECIDED}, "loss": loss}
        every["auc"] = auc_interval(probability[best], truth, split.patient)
        at = {
            rule: PointFigures(
                points=tuple(points[rule]),
                figures=tuple(
                    decide(p, truth, cut.threshold) for p, cut in zip(probability, points[rule], strict=True)
                ),
                intervals=found[1 + number] if with_intervals else None,
            )
            for number, rule in enumerate(rules)
        }
    return Figures(
        metrics=metrics,
        best=best,
        intervals=every,
        points=at,
        calibration=_calibration(one, labels, positive),
        scaled=_calibration(one / temperature, labels, positive),
    )


def spread(values: Sequence[float | None]) -> float | dict[str, float] | None:
    """One value as it is, several as mean and standard deviation (n - 1); None where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if len(known) == 1:
        return known[0]
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known)}


def figure_json(values: Sequence[float | None], interval: Interval | None) -> Any:  # noqa: ANN401 - one of four forms
    """A number, ``{"mean", "sd"}`` of several seeds, ``{"value", "low", "high"}`` with an interval; or all five."""
    found = spread(values)
    if interval is None or found is None:
        return found
    return {**(found if isinstance(found, dict) else {}), **interval.to_json()}


def figures_json(figures: Figures) -> dict[str, Any]:
    """The stable form of all figures at 0.5, with calibration."""
    held: dict[str, Any] = {name: figure_json(figures.figure(name), figures.interval(name)) for name in FIGURES}
    held |= _confusion_json([one.confusion for one in figures.metrics])
    if "confusion" not in held:
        held["confusion_matrix"] = [list(line) for line in figures.metrics[figures.best].confusion_matrix]
    return {**held, "calibration": {**asdict(figures.calibration), "at_temperature": asdict(figures.scaled)}}


def points_json(test: Figures, val: Figures) -> list[dict[str, Any]]:
    """The stable form of the operating points: what test then says, and under ``val`` what val said."""
    held: list[dict[str, Any]] = []
    for rule, one in test.points.items():
        point = one.points[test.best]
        figures = {name: figure_json(test.figure(name, rule), test.interval(name, rule)) for name in DECIDED}
        held.append(
            {
                "rule": rule,
                "threshold": point.threshold,
                "split": point.split,
                **figures,
                **_confusion_json([decided.confusion for decided in one.figures]),
                "val": {name: spread(val.figure(name, rule)) for name in DECIDED},
            }
        )
    return held


def _confusion_json(confusions: Sequence[Any]) -> dict[str, Any]:
    if any(confusion is None for confusion in confusions):
        return {}
    cells = ("tn", "fp", "fn", "tp")
    return {"confusion": {cell: spread([getattr(confusion, cell) for confusion in confusions]) for cell in cells}}


def _calibration(logits: NDArray[np.floating], labels: NDArray[np.int64], positive: int) -> Calibration:
    probability = probabilities(logits)
    if probability.shape[1] == 2:
        of, truth = probability[:, positive], labels == positive
        error, square = expected_calibration_error(of, truth), brier(of, truth)
    else:
        error = expected_calibration_error(probability.max(axis=1), probability.argmax(axis=1) == labels)
        square = float(np.mean(np.sum((probability - np.eye(probability.shape[1])[labels]) ** 2, axis=1)))
    return Calibration(loss=float(cross_entropy(logits, labels).mean()), expected_calibration_error=error, brier=square)
