"""All that the page shows, as frozen data; made of a finished report, so nothing here can choose by test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heads.choosing.selection import SELECTION_RULES
from heads.page.evaluation import HISTOGRAM_BINS, MOST_ROWS, Evaluation, evaluate_rows, evaluated_rows
from heads.page.provenance import Provenance, provenance_of
from heads.page.rows import AXES, PageRow, StudyRow, page_rows, study_rows
from heads.page.static_figures import StaticFigure, static_figures
from heads.reporting.notes import notes
from heads.reporting.report import Report
from heads.reporting.tables import Shown
from heads.statistics.intervals import RESAMPLES

STUDY_TEST = 624
"""Images of test in the study that ``heads.reporting.paper`` quotes."""

STUDY_CLASSES = ("NORMAL", "PNEUMONIA")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows.

    Attributes:
        dataset: the data set's name.
        classes: class names.
        positive: the positive class, of two; that of the first row.
        positives: those of all rows; none of more than two classes.
        selected_by: the rule that selected, in words.
        logits: whether figures are of the clean view or of the mean over the views, in words.
        decided_at: how accuracy, sensitivity, specificity and F1 are decided, in words.
        rows: the table's rows.
        study: the study's rows beside them; none where the images are others.
        evaluations: of some rows.
        notes: as the terminal's report prints them.
        provenance: where it all comes from.
        static: figures for where the script does not run.
    """

    dataset: str
    classes: tuple[str, ...]
    positive: str
    positives: tuple[str, ...]
    selected_by: str
    logits: str
    decided_at: str
    rows: tuple[PageRow, ...]
    study: tuple[StudyRow, ...]
    evaluations: tuple[Evaluation, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    static: tuple[StaticFigure, ...]

    @property
    def binary(self) -> bool:
        """Whether there are two classes, whose curves and thresholds are drawn."""
        return any(one.binary for one in self.evaluations)

    @property
    def selected(self) -> int:
        """Rows that val chose, one a split."""
        return sum(row.selected for row in self.rows)

    @property
    def resamples(self) -> int:
        """That bands, and intervals at the slider, are taken from; where rows differ, the fewest."""
        return min((one.binary.resamples for one in self.evaluations if one.binary), default=RESAMPLES)

    @property
    def most_resamples(self) -> int:
        """That the table's intervals are taken from."""
        return RESAMPLES

    @property
    def lowest(self) -> int:
        """Where the scale of val and test accuracy begins, in percent."""
        drops = [*(row.drop for row in self.rows), *(row.drop for row in self.study)]
        ends = [end for one in drops if one for end in (one.val, one.test, one.low) if end is not None]
        return min(int(min(ends, default=0) // 5) * 5, 95)

    def script_data(self) -> dict[str, Any]:
        """What the script draws, JSON-ready: no text that the template has shown already."""
        rows = [{**dataclasses.asdict(row), "cells": [cell.value for cell in row.cells]} for row in self.rows]
        return {
            "classes": self.classes,
            "positive": self.positive,
            "bins": HISTOGRAM_BINS,
            "axes": AXES,
            "rows": rows,
            "evaluations": [dataclasses.asdict(one) for one in self.evaluations],
        }


def build_page(
    report: Report,
    dataset: Path,
    shown: Shown | None = None,
    *,
    command: str = "",
    most: int = MOST_ROWS,
    on_row: Callable[[int, int], None] = lambda *_: None,
) -> Page:
    """Gather what the page shows.

    Args:
        report: finished, as ``heads.reporting.report.build_report`` makes it.
        dataset: ``cache/<dataset>``, whose stores tell their specs.
        shown: as for the table; the study's rows are there too where test is the study's.
        command: that made the page.
        most: rows that are evaluated at most.
        on_row: told rows evaluated, and in all.
    """
    shown = shown or Shown()
    run = report.rows[0].row.run
    paper = shown.paper or (run.classes == STUDY_CLASSES and run.n["test"] == STUDY_TEST)
    evaluated = evaluated_rows(report, most)
    positives = [one.row.run.classes[one.row.run.positive] for one in report.rows]
    return Page(
        dataset=report.dataset,
        classes=run.classes,
        positive=run.classes[run.positive],
        positives=tuple(dict.fromkeys(positives)) if len(run.classes) == 2 else (),
        selected_by=SELECTION_RULES[report.decision.rule],
        logits="mean over the views" if shown.view_mean else "clean view",
        decided_at=_decided_at(len(run.classes), shown.rule),
        rows=page_rows(report, shown),
        study=study_rows() if paper else (),
        evaluations=evaluate_rows(report, "view_mean" if shown.view_mean else "clean", evaluated, on_row),
        notes=tuple(notes(report, paper=paper, view_mean=shown.view_mean, rule=shown.rule)),
        provenance=provenance_of(report, dataset, command),
        static=static_figures(report, evaluated, view_mean=shown.view_mean),
    )


def _decided_at(classes: int, rule: str | None) -> str:
    if classes != 2:
        empty = f"; {rule} sets a threshold of two classes, so what it would decide is left empty" if rule else ""
        return f"each image decided for its most probable class{empty}"
    return "decided at threshold 0.5" if rule is None else f"decided at the threshold set on val for {rule}"
