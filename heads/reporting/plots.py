"""Pictures of a row: learning curves, confusion matrix, ROC curve, as PNG or SVG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.metrics import auc, roc_curve

from featcache import atomic
from heads.reporting.report import ReportRow
from heads.statistics.metrics import probabilities

TRAIN_COLOUR, VAL_COLOUR, TEST_COLOUR = "#b5541c", "#1f5fa8", "#222222"
"""Told apart by those who see no red, and in grey."""


def write_figures(
    row: ReportRow, folder: Path, kind: Literal["png", "svg"] = "png", *, view_mean: bool = False
) -> list[Path]:
    """Write the pictures of a row's head and return their paths; an ensemble has no learning curves.

    Args:
        row: the row; the seed of its lowest val loss is drawn.
        folder: where the files go; it is made.
        kind: the files' format.
        view_mean: matrix and ROC of the mean logit over the views instead of the clean view.

    Raises:
        WriteError: the folder cannot be written.
    """
    figures = {} if row.row.chosen is None else {"learning-curves": learning_curves(row)}
    figures["confusion-matrix"] = confusion(row, view_mean=view_mean)
    if len(row.row.run.classes) == 2:
        figures["roc"] = roc(row, view_mean=view_mean)
    paths: list[Path] = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        # No date in the file, and no random ids: the same run gives the same bytes.
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with rc_context({"svg.hashsalt": "cxr"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        paths.append(folder / f"{name}.{kind}")
        atomic.write_bytes(paths[-1], buffer.getbuffer())
    return paths


def learning_curves(row: ReportRow) -> Figure:
    """Loss and accuracy of train and val by epoch, the kept epoch marked.

    Raises:
        ValueError: the row is an ensemble.
    """
    record = row.row.chosen
    if record is None:
        raise ValueError(f"learning_curves: {row.name} is an ensemble, which was not trained")
    history = record.history
    epochs = np.arange(1, len(history.val_loss) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(row.name, parse_math=False)  # a name may hold a $
    sides = (
        ("cross-entropy", history.train_loss, history.val_loss),
        ("accuracy", history.train_accuracy, history.val_accuracy),
    )
    for axes, (label, train, val) in zip(figure.subplots(1, 2), sides, strict=True):
        axes.plot(epochs, train, color=TRAIN_COLOUR, linestyle="--", label="train (while the head changes)")
        axes.plot(epochs, val, color=VAL_COLOUR, label="val")
        axes.axvline(record.best_epoch + 1, color="grey", linewidth=0.8, label=f"kept: epoch {record.best_epoch + 1}")
        axes.set(xlabel="epoch", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def confusion(row: ReportRow, *, view_mean: bool = False) -> Figure:
    """Images of test by true class and decision at threshold 0.5."""
    counts = np.array(row.figures("test", view_mean=view_mean).metrics[row.row.best].confusion_matrix)
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", vmin=0)
    for (true, decided), count in np.ndenumerate(counts):
        colour = "white" if count > counts.max() / 2 else "black"
        axes.text(decided, true, f"{count}", ha="center", va="center", color=colour, fontsize=14)
    classes = row.row.run.classes
    axes.set(xlabel="decision", ylabel="truth")
    axes.set_title(f"{row.name}: test, n = {counts.sum()}", parse_math=False)
    axes.set_xticks(range(len(classes)), classes, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, rotation=90, va="center", parse_math=False)
    return figure


def roc(row: ReportRow, *, view_mean: bool = False) -> Figure:
    """Sensitivity against 1 - specificity of val and test."""
    head, positive = row.row.best, row.row.run.positive
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    splits = (("val", row.row.val, VAL_COLOUR, "--"), ("test", row.test_logits, TEST_COLOUR, "-"))
    for split, loaded, colour, style in splits:
        logits = loaded.of("view_mean" if view_mean else "clean")
        truth = loaded.label == positive
        if truth.all() or not truth.any():
            continue
        false_positive, true_positive, _ = roc_curve(truth, probabilities(logits[head])[:, positive])
        area = auc(false_positive, true_positive)
        axes.plot(false_positive, true_positive, style, color=colour, label=f"{split}: AUC {area:.4f}")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(row.name, parse_math=False)
    axes.set_aspect("equal")
    axes.legend(frameon=False, loc="lower right")
    return figure
