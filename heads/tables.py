"""The comparison table as text: Markdown, CSV, and cells for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from heads.report import PAPER, PAPER_FINAL, Report, Row, spread

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
"""For terminals too narrow for ``HEADER``: means only, ``n`` seeds, accuracies in percent."""

WIDE = 130
"""Columns that the full table needs."""

PAPER_MARK = "paper: "
SELECTED_MARK = "▸ "


def cells(
    report: Report, *, paper: bool = False, view_mean: bool = False, compact: bool = False
) -> list[tuple[str, ...]]:
    """The table's rows as text, in the columns of ``HEADER`` (or ``COMPACT_HEADER``).

    Args:
        report: the rows.
        paper: put the study's rows below ours.
        view_mean: figures of the mean logit over the views instead of the clean view's.
        compact: leave out the standard deviations, and a digit.
    """
    suffix = "_view_mean" if view_mean else ""
    lines = [_line(row, suffix, compact=compact) for row in report.rows]
    return lines + (_paper_lines(compact=compact) if paper else [])


def markdown(report: Report, *, paper: bool = False, view_mean: bool = False) -> str:
    """The table in Markdown, with its notes below."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *cells(report, paper=paper, view_mean=view_mean)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n" + "\n".join(f"- {note}" for note in notes(report, paper=paper, view_mean=view_mean)) + "\n"


def as_csv(report: Report, *, paper: bool = False, view_mean: bool = False) -> str:
    """The table as CSV, with a mean and a standard deviation column for each figure, as plain fractions."""
    suffix = "_view_mean" if view_mean else ""
    figures = [("val", "accuracy"), *(("test", name) for name in _TEST_FIGURES)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{split}_{name}{part}" for split, name in figures for part in ("", "_sd")]
    writer.writerow(["model", "selected", "split", "seeds", *columns])
    for row in report.rows:
        values: list[object] = []
        for split, name in figures:
            value = spread(row.figure(split + suffix, name))
            values += [value["mean"], value["sd"]] if isinstance(value, dict) else [value, None]
        writer.writerow([row.name, int(row.selected), row.run.split_rule, len(row.records), *values])
    if paper:
        for line in PAPER:
            known = [line.val_accuracy / 100, None, line.test_accuracy / 100, None, line.test_loss, None]
            writer.writerow([PAPER_MARK + line.name, 0, "paper", 1, *known, *[None] * (len(columns) - len(known))])
    return buffer.getvalue()


def notes(report: Report, *, paper: bool = False, view_mean: bool = False) -> list[str]:
    """What stands below the table: the selected head's confusion matrix in the study's words, and warnings."""
    lines: list[str] = []
    for row in report.selected:
        line = f"selected on validation alone (lowest mean loss): {row.name}"
        confusion = (row.chosen.test_view_mean if view_mean else row.chosen.test).confusion
        if confusion is not None:
            line += (
                f"; on test (seed {row.chosen.config.seed}, threshold 0.5) "
                f"TN {confusion.tn}, FP {confusion.fp}, FN {confusion.fn}, TP {confusion.tp}"
            )
        lines.append(line)
    if paper:
        lines.append(PAPER_FINAL)
    return [*lines, *report.warnings]


_TEST_FIGURES = ("accuracy", "loss", "sensitivity", "specificity", "f1", "auc")


def _line(row: Row, suffix: str, *, compact: bool) -> tuple[str, ...]:
    def shown(split: str, name: str) -> str:
        return _shown(row.figure(split + suffix, name), percent=name == "accuracy", compact=compact)

    return (
        (SELECTED_MARK if row.selected else "") + row.name,
        shown("val", "accuracy"),
        *(shown("test", name) for name in _TEST_FIGURES),
        str(len(row.records)),
    )


def _shown(values: Sequence[float | None], *, percent: bool, compact: bool) -> str:
    """``92.31``, or ``92.31 ± 0.40`` over seeds; ``–`` where there is no such figure."""
    value = spread(values)
    scale, digits = (100, 1 if compact else 2) if percent else (1, 3 if compact else 4)
    if value is None:
        return "–"
    if not isinstance(value, dict):
        return f"{value * scale:.{digits}f}"
    mean = f"{value['mean'] * scale:.{digits}f}"
    return mean if compact else f"{mean} ± {value['sd'] * scale:.{digits}f}"


def _paper_lines(*, compact: bool) -> list[tuple[str, ...]]:
    rest = ("–",) * (len(HEADER) - 5)
    return [
        (
            PAPER_MARK + line.name,
            *(
                _shown([value], percent=percent, compact=compact)
                for value, percent in (
                    (line.val_accuracy / 100, True),
                    (line.test_accuracy / 100, True),
                    (line.test_loss, False),
                )
            ),
            *rest,
            "1",
        )
        for line in PAPER
    ]
