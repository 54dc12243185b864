"""Figures for a page whose script does not run: learning curves, confusion and ROC as pictures inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure

from heads.reporting.plots import confusion, learning_curves, roc
from heads.reporting.report import Report, ReportRow


@dataclass(frozen=True, kw_only=True)
class StaticFigure:
    """A picture as a ``data:`` address, and what it shows in words."""

    source: str
    words: str


def static_figures(report: Report, evaluated: Sequence[int], *, view_mean: bool = False) -> tuple[StaticFigure, ...]:
    """Figures of the foremost row; learning curves are of the foremost that was trained itself.

    Args:
        report: finished.
        evaluated: places of rows, the foremost first (``heads.page.evaluation.evaluated_rows``).
        view_mean: matrix and ROC of the mean logit over the views instead of the clean view.
    """
    rows = [report.rows[place] for place in evaluated]
    trained: ReportRow | None = next((row for row in rows if row.row.chosen is not None), None)
    made: list[tuple[Figure, str]] = []
    if trained is not None:
        made.append(
            (learning_curves(trained), f"Learning curves of {trained.name}: train and val, the kept epoch marked")
        )
    first = rows[0]
    made.append(
        (confusion(first, view_mean=view_mean), f"Decisions of {first.name} on test at threshold 0.5, by truth")
    )
    if len(first.row.run.classes) == 2:
        made.append((roc(first, view_mean=view_mean), f"ROC of {first.name}, on val and on test"))
    return tuple(StaticFigure(source=_embedded(figure), words=words) for figure, words in made)


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    # No date and no random ids: the same report gives the same page. Text stays text, a tenth of its outlines.
    with rc_context({"svg.hashsalt": "cxr", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
