"""Rows of the page: what the table says of each, its learning curves, and where it stands on the axes of the grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.joined import part_names
from heads.experiments.runs import HeadRecord
from heads.reporting.figures import spread
from heads.reporting.paper import PAPER
from heads.reporting.report import Report, ReportRow
from heads.reporting.tables import Shown, cell

COLUMNS = (
    ("val", "accuracy", "Val accuracy, %"),
    ("test", "accuracy", "Test accuracy, %"),
    ("test", "loss", "Test loss"),
    ("test", "sensitivity", "Sensitivity"),
    ("test", "specificity", "Specificity"),
    ("test", "f1", "F1"),
    ("test", "auc", "AUC"),
)
"""Split, figure and heading of the table's columns of figures; all but the first are of test."""

AXES = {
    "backbone": "Backbone",
    "views": "Views per image",
    "hidden": "Hidden units",
    "l2": "L2 penalty λ",
    "lr": "Learning rate",
    "standardise": "Standardised features",
    "view_policy": "Views drawn",
    "class_weights": "Class weights",
    "batch_size": "Batch size",
    "epochs": "Epochs at most",
    "patience": "Patience, epochs",
    "precision": "Precision of the products",
    "window": "Shuffle window, images",
    "adapted": "Adapted to train (transductive)",
}
"""What a grid may vary, and how the page calls it, in the order that it shows it: all of a configuration but its seed,
and what its heads were fitted on. The backbone is told with its fingerprint where several share its name."""

DIGITS = 4
"""Decimals of what is drawn: a ten-thousandth of an axis is not seen."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure as the terminal's table tells it.

    Attributes:
        text: the figure, with its deviation over seeds.
        interval: ``(low–high)``, empty where there is none.
        value: what the column is sorted by; None last.
        differs: whether it differs from the selected row's, by a paired test.
    """

    text: str
    interval: str = ""
    value: float | None = None
    differs: bool = False


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy on val and on test in percent, of the head that stands for the row, with the ends of test's interval."""

    val: float
    test: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """How one head learned: figures an epoch.

    Attributes:
        seed: of the head.
        best: the epoch whose weights were kept, from 0.
        stopped: why training ended.
        train_loss: cross-entropy of train, while the head changed.
        val_loss: of val, clean view.
        train_accuracy: of train, while the head changed.
        val_accuracy: of val, clean view.
    """

    seed: int
    best: int
    stopped: str
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    val_accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds; no deviation of one."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True, kw_only=True)
class PageRow:
    """A row of the table.

    Attributes:
        name: what it is called.
        selected: whether val chose it.
        ensemble: whether it averages heads.
        seeds: heads side by side.
        basis: what rows must share for their figures to be compared, in words: the split with its seed, and the
            positive class and the images where these differ among the rows.
        cells: figures, in the order of ``COLUMNS``.
        drop: val to test; None where the rule has no threshold.
        curves: of its heads, one a seed; none of an ensemble.
        kept: which curve is of the head that stands for the row.
        axes: its values on ``AXES``; empty for an ensemble. Rows of one basis that agree in all of them are one row.
        val: accuracy (percent), loss and AUC by name, of val.
        test: likewise.
    """

    name: str
    selected: bool
    ensemble: bool
    seeds: int
    basis: str
    cells: tuple[Cell, ...]
    drop: Drop | None
    curves: tuple[LearningCurve, ...]
    kept: int
    axes: dict[str, str | int | float | bool]
    val: dict[str, Spread]
    test: dict[str, Spread]


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A row of the study that ours are held against; it tells no interval."""

    name: str
    cells: tuple[Cell, ...]
    drop: Drop


def page_rows(report: Report, shown: Shown) -> tuple[PageRow, ...]:
    """All rows of a report, in its order."""
    prints: dict[str, set[str]] = {}
    for one in report.rows:
        for head in one.row.records:
            prints.setdefault(head.backbone, set()).add(head.fingerprint)
    several = {backbone for backbone, found in prints.items() if len(found) > 1}
    return tuple(_page_row(row, shown, several, _basis(row, report)) for row in report.rows)


def _basis(row: ReportRow, report: Report) -> str:
    runs, run = [one.row.run for one in report.rows], row.row.run
    words = [split_words(run.split_rule, run.split_seed)]
    if len({one.positive for one in runs}) > 1:
        words.append(f"positive {run.classes[run.positive]}")
    if len({one.images_sha256 for one in runs}) > 1:
        words.append(f"images {run.images_sha256[:6]}")
    return ", ".join(words)


def split_words(rule: str, seed: int) -> str:
    """A split by its rule, and by its seed where that is not 0."""
    return f"{rule} split" + (f" {seed}" if seed else "")


def study_rows() -> tuple[StudyRow, ...]:
    """The study's rows, their figures rounded as ours."""
    made: list[StudyRow] = []
    for line in PAPER:
        figures = ((line.val_accuracy, True), (line.test_accuracy, True), (line.test_loss, False))
        cells = [
            Cell(text=cell(value / 100 if percent else value, None, percent=percent, layout="main"), value=value)
            for value, percent in figures
        ]
        made.append(
            StudyRow(
                name=line.name,
                cells=(*cells, *[Cell(text="–")] * (len(COLUMNS) - len(cells))),
                drop=Drop(val=line.val_accuracy, test=line.test_accuracy),
            )
        )
    return tuple(made)


def _page_row(row: ReportRow, shown: Shown, several: Collection[str], basis: str) -> PageRow:
    pair = row.against_selected["view_mean" if shown.view_mean else "clean"]
    differing: dict[str, Any] = {}
    if pair is not None:
        accuracy = pair.accuracy if shown.rule is None else pair.points.get(shown.rule)
        differing = {"auc": pair.auc, "accuracy": accuracy}
    cells: list[Cell] = []
    for split, name, _ in COLUMNS:
        figures = row.figures(split, view_mean=shown.view_mean)
        found, interval = spread(figures.figure(name, shown.rule)), figures.interval(name, shown.rule)
        percent = name == "accuracy"
        bare = cell(found, None, percent=percent, layout="intervals")
        ranged = cell(found, interval, percent=percent, layout="intervals") if found is not None else bare
        test = differing.get(name) if split == "test" else None
        cells.append(
            Cell(
                text=bare,
                interval=ranged.removeprefix(bare).strip(),
                value=found["mean"] if isinstance(found, dict) else found,
                differs=test is not None and test.significant,
            )
        )
    record = row.row.records[0] if row.row.records and row.row.ensemble is None else None
    axes: dict[str, Any] = {}
    if record is not None:
        backbone = record.backbone
        if backbone in several:
            backbone += f" [{'+'.join(part[:6] for _, part in part_names(backbone, record.fingerprint))}]"
        held = {"backbone": backbone, "views": record.views, "adapted": record.adapted, **record.config.to_json()}
        axes = {name: held[name] for name in AXES}
    return PageRow(
        name=row.name,
        selected=row.selected,
        ensemble=row.row.ensemble is not None,
        seeds=row.row.seeds,
        basis=basis,
        cells=tuple(cells),
        drop=_drop(row, shown),
        curves=() if row.row.ensemble else tuple(_learning_curve(one) for one in row.row.records),
        kept=row.row.best,
        axes=axes,
        val=_effects(row, "val", shown),
        test=_effects(row, "test", shown),
    )


def _drop(row: ReportRow, shown: Shown) -> Drop | None:
    accuracy: dict[str, float] = {}
    for split in ("val", "test"):
        values = row.figures(split, view_mean=shown.view_mean).figure("accuracy", shown.rule)
        # More than two classes have no operating points.
        if (value := values[row.row.best] if len(values) == row.row.seeds else None) is None:
            return None
        accuracy[split] = round(100 * value, 2)
    interval = row.figures("test", view_mean=shown.view_mean).interval("accuracy", shown.rule)
    ends = {"low": round(100 * interval.low, 2), "high": round(100 * interval.high, 2)} if interval else {}
    return Drop(**accuracy, **ends)


def _learning_curve(record: HeadRecord) -> LearningCurve:
    def rounded(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(round(value, DIGITS) for value in values)

    history = record.history
    return LearningCurve(
        seed=record.config.seed,
        best=record.best_epoch,
        stopped=record.stop_reason,
        train_loss=rounded(history.train_loss),
        val_loss=rounded(history.val_loss),
        train_accuracy=rounded(history.train_accuracy),
        val_accuracy=rounded(history.val_accuracy),
    )


def _effects(row: ReportRow, split: str, shown: Shown) -> dict[str, Spread]:
    figures = row.figures(split, view_mean=shown.view_mean)
    held: dict[str, Spread] = {}
    for name in ("accuracy", "loss", "auc"):
        scale = 100 if name == "accuracy" else 1
        found = spread(figures.figure(name, shown.rule))
        if isinstance(found, dict):
            held[name] = Spread(mean=round(found["mean"] * scale, DIGITS), sd=round(found["sd"] * scale, DIGITS))
        elif found is not None:
            held[name] = Spread(mean=round(found * scale, DIGITS))
    return held
