"""Test, opened for a row that is chosen and finished, as a report does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import UnreadableImageError
from featcache.outlines import outlines_of
from featcache.store import open_store
from heads.choosing.decision import Decision
from heads.choosing.rows import Row
from heads.experiments.split_logits import KINDS, Kind, SplitLogits
from heads.prediction.measured import NAMES, Measured, MeasuredFigure
from heads.prediction.model import HALF, Model
from heads.prediction.reference import table_of
from heads.reporting.figures import DECIDED, Figures, figures_of
from heads.reporting.sealed import open_test
from heads.statistics.intervals import Resamples
from heads.statistics.metrics import evaluate


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """What test says of a finished model.

    Attributes:
        figures: of the clean view, as a report has them.
        measured: those that go with the model.
    """

    figures: Figures
    measured: Measured


def look_at_test(row: Row, model: Model, root: Path | None = None) -> Tested:
    """Open test for a row that is chosen.

    Args:
        row: of ``from_run.chosen_row``.
        model: of that row.
        root: the data set's folder, whose files the distance looks at.

    Raises:
        RunError: the logits of test are missing or damaged.
        StoreError: a store is damaged.
    """
    rules = tuple(row.choices["clean"].operating_points)
    decision = Decision(dataset=model.dataset, rule="clean", operating_rules=rules, rows=(row,), notes=())
    (test,) = open_test(decision)
    resamples = Resamples(test.label == row.run.positive, test.patient)
    found = {kind: _figures(row, test, kind, resamples) for kind in KINDS}
    measured = Measured(
        n=len(test.label),
        patients=len(set(test.patient_id)),
        flagged=_flagged(row, test, model, root),
        figures={kind: _told(one, HALF.rule if len(model.classes) == 2 else "") for kind, one in found.items()},
    )
    return Tested(figures=found["clean"], measured=measured)


def measured_on_test(row: Row, model: Model, root: Path | None = None) -> Measured:
    """Those figures of ``look_at_test`` that go with the model."""
    return look_at_test(row, model, root).measured


def _figures(row: Row, test: SplitLogits, kind: Kind, resamples: Resamples) -> Figures:
    logits, positive = test.of(kind), row.run.positive
    return figures_of(
        test,
        logits,
        tuple(evaluate(one, test.label, positive) for one in logits),
        resamples,
        positive=positive,
        best=0,
        temperature=row.choices[kind].temperature,
        points=row.choices[kind].operating_points,
    )


def _told(figures: Figures, half: str) -> tuple[MeasuredFigure, ...]:
    """Those that have an interval: at 0.5, or ``half`` where that is no threshold, then at each operating point."""
    told = []
    for rule in (None, *figures.points):
        for name in NAMES if rule is None else DECIDED:
            found = figures.interval(name, rule)
            if found is not None:
                at = (rule or half) if name in DECIDED else ""
                told.append(MeasuredFigure(name=name, rule=at, value=found.value, low=found.low, high=found.high))
    return tuple(told)


def _flagged(row: Row, test: SplitLogits, model: Model, root: Path | None) -> float | None:
    """The share of test that is flagged, by what the distance was fitted with."""
    if model.distance is None:
        return None
    stores = [open_store(source.path) for source in model.sources]
    if table_of(row.run, stores) is None:
        return None
    features = np.concatenate([store.features(test.image_id) for store in stores], axis=1)
    outlines = None
    if len(model.distance.outline):
        if root is None:
            return None
        try:
            outlines = outlines_of(stores[0].image_table, stores[0].rows(test.image_id), root, stores[0].spec)
        except UnreadableImageError:
            return None
    return float(model.distance.flagged(features, outlines).mean())
