"""The comparison table as text: Markdown, CSV, and cells for the terminal."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal

from heads.reporting.comparison import Corrected
from heads.reporting.figures import spread
from heads.reporting.notes import notes
from heads.reporting.paper import PAPER
from heads.reporting.report import Report, ReportRow
from heads.statistics.intervals import Interval

HEADER = (
    "Model",
    "Validation Accuracy",
    "Test Accuracy",
    "Test Loss",
    "Sensitivity",
    "Specificity",
    "F1",
    "AUC",
    "Seeds",
)

COMPACT_HEADER = ("Model", "Val", "Test", "Loss", "Sens", "Spec", "F1", "AUC", "n")
"""For terminals too narrow for ``HEADER``; ``n`` seeds, accuracies in percent."""

PAPER_MARK = "paper: "
SELECTED_MARK = "▸ "
DIFFERS_MARK = "*"

Layout = Literal["full", "intervals", "main", "spread", "brief", "compact"]
"""How much a cell says: ``full`` all digits, deviation over seeds and interval; ``intervals`` the same with a digit
less; ``main`` intervals of test accuracy and AUC alone; ``spread`` the deviation over seeds; ``brief`` that of
accuracy, loss and AUC; ``compact`` the mean."""

TERMINAL: tuple[Layout, ...] = ("intervals", "main", "spread", "brief", "compact")
"""From the widest on: a terminal gets the first that it has room for."""

WIDEST_NAME = 32
"""Columns that a model's name is given before it is folded."""

_FIGURES = (
    ("val", "accuracy"),
    *(("test", name) for name in ("accuracy", "loss", "sensitivity", "specificity", "f1", "auc")),
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of a report is asked for.

    Attributes:
        paper: put the study's rows below ours.
        view_mean: figures of the mean logit over the views instead of the clean view's.
        rule: decisions at this rule's operating points instead of 0.5.
    """

    paper: bool = False
    view_mean: bool = False
    rule: str | None = None


def terminal(report: Report, shown: Shown, width: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of the widest layout that a terminal of so many columns has room for."""
    for layout in TERMINAL:
        header = HEADER if layout in ("intervals", "main") else COMPACT_HEADER
        lines = cells(report, shown, layout)
        widths = [max(len(line[place]) for line in (header, *lines)) for place in range(len(header))]
        if layout == "compact" or min(widths[0], WIDEST_NAME) + sum(widths[1:]) + 2 * len(widths) <= width:
            return header, lines
    raise AssertionError("compact has no width to fail")


def cells(report: Report, shown: Shown, layout: Layout = "full") -> list[tuple[str, ...]]:
    """The table's rows as text, in the columns of ``HEADER`` (or ``COMPACT_HEADER``)."""
    lines = [_line(row, shown, layout) for row in report.rows]
    return lines + (_paper_lines(layout) if shown.paper else [])


def markdown(report: Report, shown: Shown) -> str:
    """The table in Markdown, with its notes below."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *cells(report, shown)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    told = notes(report, paper=shown.paper, view_mean=shown.view_mean, rule=shown.rule)
    return f"{table}\n\n" + "\n".join(f"- {note}" for note in told) + "\n"


def as_csv(report: Report, shown: Shown) -> str:
    """The table as CSV, as plain fractions.

    A figure has five columns: the mean over seeds (or the only one), its standard deviation, and of the head that
    stands for the row the value with the ends of its 95 % interval. At the end: p of the paired tests against the
    selected row, as they are and corrected.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("", "_sd", "_value", "_low", "_high")
    columns = [f"{split}_{name}{part}" for split, name in _FIGURES for part in parts]
    tests = ("auc_p", "auc_p_holm", "accuracy_p", "accuracy_p_holm")
    writer.writerow(["model", "selected", "split", "seeds", *columns, *tests])
    for row in report.rows:
        values: list[object] = []
        for split, name in _FIGURES:
            figures = row.figures(split, view_mean=shown.view_mean)
            found = spread(figures.figure(name, shown.rule))
            values += [found["mean"], found["sd"]] if isinstance(found, dict) else [found, None]
            interval = figures.interval(name, shown.rule)
            values += [interval.value, interval.low, interval.high] if interval else [None] * 3
        for test in _tests(row, shown):
            values += [test.test.p, test.p_holm] if test else [None, None]
        writer.writerow([row.name, int(row.selected), row.row.run.split_rule, row.row.seeds, *values])
    for line in PAPER if shown.paper else ():
        known = {"val_accuracy": line.val_accuracy / 100, "test_accuracy": line.test_accuracy / 100}
        known["test_loss"] = line.test_loss
        writer.writerow([PAPER_MARK + line.name, 0, "paper", 1, *map(known.get, columns), *[None] * len(tests)])
    return buffer.getvalue()


def _line(row: ReportRow, shown: Shown, layout: Layout) -> tuple[str, ...]:
    auc, accuracy = _tests(row, shown)
    differs = {"auc": auc, "accuracy": accuracy}
    texts: list[str] = []
    for split, name in _FIGURES:
        figures = row.figures(split, view_mean=shown.view_mean)
        interval = figures.interval(name, shown.rule)
        if layout == "main" and (split, name) not in (("test", "accuracy"), ("test", "auc")):
            interval = None
        terse = layout == "brief" and name in ("sensitivity", "specificity", "f1")
        text = cell(
            spread(figures.figure(name, shown.rule)),
            interval,
            percent=name == "accuracy",
            layout="compact" if terse else layout,
        )
        test = differs.get(name) if split == "test" else None
        texts.append(text + (DIFFERS_MARK if test and test.significant else ""))
    return ((SELECTED_MARK if row.selected else "") + row.name, *texts, str(row.row.seeds))


def _tests(row: ReportRow, shown: Shown) -> tuple[Corrected | None, Corrected | None]:
    """Of AUC and of accuracy, where it is shown, against the selected row."""
    pair = row.against_selected["view_mean" if shown.view_mean else "clean"]
    if pair is None:
        return None, None
    return pair.auc, pair.accuracy if shown.rule is None else pair.points.get(shown.rule)


def cell(found: float | dict[str, float] | None, interval: Interval | None, *, percent: bool, layout: Layout) -> str:
    """``92.31``, ``92.31 ± 0.40`` over seeds, either with ``(90.1–94.2)`` behind; ``–`` where there is no figure.

    Args:
        found: as ``heads.reporting.figures.spread`` has it.
        interval: of the head that stands for the row.
        percent: whether a share is told in percent.
        layout: how much is said.
    """
    fewer = layout != "full"
    scale, digits = (100, 1 if fewer else 2) if percent else (1, 3 if fewer else 4)
    if found is None:
        return "–"
    mean, deviation = (found["mean"], found["sd"]) if isinstance(found, dict) else (found, None)
    text = f"{mean * scale:.{digits}f}"
    if layout == "compact":
        return text
    if deviation is not None:
        text += f" ± {deviation * scale:.{digits}f}"
    if interval is None or layout in ("spread", "brief"):
        return text
    ends = 1 if percent else 3
    return f"{text} ({interval.low * scale:.{ends}f}–{interval.high * scale:.{ends}f})"


def _paper_lines(layout: Layout) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for line in PAPER:
        figures = ((line.val_accuracy / 100, True), (line.test_accuracy / 100, True), (line.test_loss, False))
        told = (cell(value, None, percent=percent, layout=layout) for value, percent in figures)
        lines.append((PAPER_MARK + line.name, *told, *("–",) * (len(HEADER) - 5), "1"))
    return lines
