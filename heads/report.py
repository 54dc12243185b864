"""The comparison table: the rows of all runs of a data set, seeds folded together, one of them selected by val.

Test figures pass through here untouched: ``selection`` is given those of val alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.errors import RunError
from featcache.joined import part_names
from heads.config import HeadConfig
from heads.metrics import Metrics
from heads.runs import RUNS_NAME, HeadRecord, RunRecord, load_run, run_folders
from heads.selection import Candidate, best_seed, select

FIGURES = ("accuracy", "loss", "auc", "sensitivity", "specificity", "f1")


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of the study's table: accuracies in percent, loss with Keras' penalty added in."""

    name: str
    val_accuracy: float
    test_accuracy: float
    test_loss: float


PAPER = (
    PaperRow(name="InceptionV3", val_accuracy=94.14, test_accuracy=79.81, test_loss=0.5028),
    PaperRow(name="VGG19", val_accuracy=91.04, test_accuracy=84.01, test_loss=0.5791),
    PaperRow(name="EfficientNetB4", val_accuracy=96.5, test_accuracy=78.17, test_loss=0.5403),
    PaperRow(name="ResNet50", val_accuracy=98.08, test_accuracy=90.77, test_loss=0.2251),
    PaperRow(name="EfficientNetB4 + L2", val_accuracy=94.49, test_accuracy=84.96, test_loss=1.2863),
    PaperRow(name="ResNet50 + L2", val_accuracy=95.04, test_accuracy=92.34, test_loss=0.3553),
)

PAPER_FINAL = (
    "the paper's final ResNet50 + L2: accuracy 91.51, sensitivity 0.9205, specificity 0.9060, F1 0.9313, AUC 0.9706, "
    "TN 212, FP 22, FN 31, TP 359; its test losses include the L2 penalty, ours are the cross-entropy alone"
)
"""The study's own evaluation of its final head."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration on one backbone and split; its seeds are folded together.

    Attributes:
        name: what the table calls it.
        folder: the run's folder.
        run: the run it stands in.
        heads: indices of its heads in the run, one a seed.
        records: their figures, in the same order.
        best: index into ``records`` of the seed of the lowest val loss.
        selected: whether val chose this row.
    """

    name: str
    folder: Path
    run: RunRecord
    heads: tuple[int, ...]
    records: tuple[HeadRecord, ...]
    best: int
    selected: bool = False

    @property
    def config(self) -> HeadConfig:
        """The configuration, with the first seed."""
        return self.records[0].config

    def figure(self, split: str, name: str) -> list[float | None]:
        """A figure of ``val`` or ``test`` (``…_view_mean`` for the mean over the views), one a seed."""
        return [getattr(getattr(record, split), name) for record in self.records]

    @property
    def chosen(self) -> HeadRecord:
        """The head that stands for the row: the seed of the lowest val loss."""
        return self.records[self.best]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows of a data set.

    Attributes:
        dataset: its name.
        rows: in the order backbone, split, configuration.
        warnings: what a reader must know before trusting a figure.
    """

    dataset: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def selected(self) -> tuple[Row, ...]:
        """The rows that val chose, one a split: val losses compare within a split only."""
        return tuple(row for row in self.rows if row.selected)

    def to_json(self) -> dict[str, Any]:
        """The stable form that ``cxr report --json`` prints."""
        rows = [_row_json(row) for row in self.rows]
        return {"dataset": self.dataset, "rows": rows, "warnings": list(self.warnings)}


def build_report(dataset: Path, run_ids: Sequence[str] = ()) -> Report:
    """Read the runs of a data set and fold them into rows.

    Where several runs hold a configuration, the one of the most seeds counts, and the newest of equals; on other
    images, the newest.

    Args:
        dataset: ``cache/<dataset>``.
        run_ids: take these runs only.

    Raises:
        RunError: no runs, an unknown run, or a damaged one.
    """
    folders = run_folders(dataset)
    unknown = sorted(set(run_ids) - {folder.name for folder in folders})
    if unknown:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise RunError(f"no run {unknown[0]} in {dataset}; there are: {known}")
    chosen = [folder for folder in folders if not run_ids or folder.name in run_ids]
    if not chosen:
        others = sorted(path.parent.name for path in dataset.parent.glob(f"*/{RUNS_NAME}"))
        held = f" (there are runs of {', '.join(others)})" if others else ""
        raise RunError(f"no runs in {dataset}: run 'cxr fit-head' first{held}")
    # By when a run was last asked for: one that was read back is as new as one that was fitted.
    chosen.sort(key=lambda folder: (folder / "run.json").stat().st_mtime_ns)
    runs = [(load_run(folder), folder) for folder in chosen]
    kept: dict[tuple[Any, ...], Row] = {}
    for run, folder in runs:
        grouped: dict[tuple[Any, ...], list[int]] = {}
        for head, record in enumerate(run.heads):
            grouped.setdefault(_key(run, record), []).append(head)
        for key, heads in grouped.items():
            row = _row(run, folder, heads)
            if key not in kept or _supersedes(row, kept[key]):
                kept[key] = row
    rows = list(kept.values())
    rows.sort(key=lambda row: (row.run.split_rule, row.run.split_seed, row.chosen.backbone, row.chosen.fingerprint))
    rows = _named(rows)
    for group in {_split_of(row): None for row in rows}:
        members = [number for number, row in enumerate(rows) if _split_of(row) == group]
        choice = members[select([_candidate(rows[number]) for number in members])]
        rows[choice] = replace(rows[choice], selected=True)
    return Report(dataset=dataset.name, rows=tuple(rows), warnings=tuple(_warnings(rows)))


def spread(values: Sequence[float | None]) -> float | dict[str, float] | None:
    """One value as it is, several as mean and standard deviation (n - 1); None where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if len(known) == 1:
        return known[0]
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known)}


def _key(run: RunRecord, record: HeadRecord) -> tuple[Any, ...]:
    seedless = replace(record.config, seed=0)
    return run.split_rule, run.split_seed, run.positive, record.backbone, record.fingerprint, record.views, seedless


def _supersedes(newer: Row, older: Row) -> bool:
    return newer.run.images_sha256 != older.run.images_sha256 or len(newer.records) >= len(older.records)


def _row(run: RunRecord, folder: Path, heads: Sequence[int]) -> Row:
    records = tuple(run.heads[head] for head in heads)
    candidate = Candidate(name="", val_losses=tuple(record.val.loss for record in records))
    return Row(name="", folder=folder, run=run, heads=tuple(heads), records=records, best=best_seed(candidate))


def _split_of(row: Row) -> tuple[str, int]:
    return row.run.split_rule, row.run.split_seed


def _candidate(row: Row) -> Candidate:
    return Candidate(name=row.name, val_losses=tuple(record.val.loss for record in row.records))


def _named(rows: list[Row]) -> list[Row]:
    """Name rows as the study does (``ResNet50 + L2``), adding whatever else tells them apart."""
    configs = [row.config for row in rows]
    several = {
        field: len({getattr(config, field) for config in configs}) > 1
        for field in ("hidden", "lr", "epochs", "patience", "batch_size", "class_weights", "view_policy", "precision")
    }
    prints: dict[str, set[str]] = {}
    for row in rows:
        prints.setdefault(row.chosen.backbone, set()).add(row.chosen.fingerprint)
    short = {row.chosen.backbone: _short(row.chosen) for row in rows}
    splits = {_split_of(row) for row in rows}
    positives = {row.run.positive for row in rows}
    view_counts = {(row.chosen.fingerprint, row.chosen.views) for row in rows}
    named: list[Row] = []
    for row in rows:
        config, backbone = row.config, row.chosen.backbone
        # Library and options only where two backbones would share the short name.
        name = short[backbone] if list(short.values()).count(short[backbone]) == 1 else backbone
        if len(prints[backbone]) > 1:
            name += f" [{'+'.join(part[:6] for _, part in _parts(row.chosen))}]"
        name += f" + L2 {config.l2:g}" if config.l2 else ""
        extras = [
            {"hidden": "linear" if config.hidden == 0 else f"hidden {config.hidden}"}.get(
                field, f"{field} {getattr(config, field)}"
            )
            for field, differs in several.items()
            if differs
        ]
        if config.standardise and not all(other.standardise for other in configs):
            extras.append("standardised")
        if len({count for fingerprint, count in view_counts if fingerprint == row.chosen.fingerprint}) > 1:
            extras.append(f"{row.chosen.views} view{'s' * (row.chosen.views > 1)}")
        if len(positives) > 1:
            extras.append(f"positive {row.run.classes[row.run.positive]}")
        if len(splits) > 1:
            extras.append(f"{row.run.split_rule} split" + (f" {row.run.split_seed}" if row.run.split_seed else ""))
        named.append(replace(row, name=", ".join([name, *extras])))
    return named


def _parts(record: HeadRecord) -> tuple[tuple[str, str], ...]:
    """Backbone and fingerprint of the store, or of each of those joined."""
    return part_names(record.backbone, record.fingerprint)


def _short(record: HeadRecord) -> str:
    """The backbone without library and options."""
    return "+".join(backbone.removeprefix("torchvision:").partition("@")[0] for backbone, _ in _parts(record))


def _warnings(rows: Sequence[Row]) -> list[str]:
    notes: list[str] = []
    straddling = {row.run.split_rule: row.run.straddling for row in rows if row.run.straddling}
    notes += [
        f"{patients} patients have images in both train and val of the {rule} split: its val figures flatter"
        for rule, patients in straddling.items()
    ]
    if len({_split_of(row) for row in rows}) > 1:
        notes.append("the rows stand on different splits: compare val figures within a split only")
    if len({row.run.images_sha256 for row in rows}) > 1:
        notes.append("the images or labels changed between the runs: run 'cxr fit-head' again to compare the rows")
    n = min(row.run.n["test"] for row in rows)
    notes.append(f"with {n} test images, an accuracy of 90 % is known to ±{196 * (0.09 / n) ** 0.5:.1f} points")
    if min(row.run.n["val"] for row in rows) < 100:
        notes.append(f"val has only {min(row.run.n['val'] for row in rows)} images: what it selects is mostly chance")
    return notes


def _row_json(row: Row) -> dict[str, Any]:
    config = {key: value for key, value in row.config.to_json().items() if key != "seed"}
    return {
        "name": row.name,
        "backbone": row.chosen.backbone,
        "fingerprint": row.chosen.fingerprint,
        "run": row.run.run_id,
        "head": config,
        "views": row.chosen.views,
        "split": row.run.split_rule,
        "split_seed": row.run.split_seed,
        "positive": row.run.classes[row.run.positive],
        "seeds": len(row.records),
        "selected": row.selected,
        "n": row.run.n,
        "straddling_patients": row.run.straddling,
        "val": _split_json(row, "val"),
        "test": {**_split_json(row, "test"), "penalty": spread([record.penalty for record in row.records])},
        "val_view_mean": _split_json(row, "val_view_mean"),
        "test_view_mean": _split_json(row, "test_view_mean"),
    }


def _split_json(row: Row, split: str) -> dict[str, Any]:
    figures: dict[str, Any] = {name: spread(row.figure(split, name)) for name in FIGURES}
    metrics: list[Metrics] = [getattr(record, split) for record in row.records]
    confusions = [one.confusion for one in metrics]
    if all(confusion is not None for confusion in confusions):
        cells = ("tn", "fp", "fn", "tp")
        figures["confusion"] = {cell: spread([getattr(confusion, cell) for confusion in confusions]) for cell in cells}
    else:
        figures["confusion_matrix"] = [list(line) for line in metrics[row.best].confusion_matrix]
    return figures
