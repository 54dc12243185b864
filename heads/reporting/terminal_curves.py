"""Learning curves in characters, to be looked at over ssh: Braille dots, or plain ASCII where there are none.

Train is dashed and val is not, so that the two are told apart without colour too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from heads.experiments.runs import HeadRecord
from heads.reporting.report import ReportRow

ROWS = 14
"""Lines of characters that a panel's curves take."""

NARROWEST, TWO_PANELS = 48, 120
"""Columns: fewer are not drawn in; from so many on accuracy stands beside loss."""

DOTS_DOWN, DOTS_ACROSS = 4, 2
BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""A Braille character's dots: what each adds to U+2800 (Unicode, Braille Patterns)."""

DASH = 3
"""Dots of train that are drawn, and that are not."""

EPOCH = "epoch"

STEPS = (1, 2, 5, 10)
"""What ticks are multiples of."""

Part = Literal["train", "val", "kept", "axis"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some characters of a line, and what they are part of."""

    text: str
    of: Part = "axis"


Line = tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class TerminalCurves:
    """Curves of one head: a title to be wrapped, and lines that are not.

    Attributes:
        title: whose curves these are, and what val says at the kept epoch.
        lines: from the top.
    """

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """Characters of a drawing; ``curves`` are those of train and val where there are no dots."""

    curves: tuple[str, str] | None
    legend: tuple[str, str, str]
    side: str
    tick: str
    corner: str
    bottom: str
    tee: str


_BRAILLE = _Marks(curves=None, legend=("╌╌", "──", "┊"), side="│", tick="┤", corner="└", bottom="─", tee="┬")
_ASCII = _Marks(curves=(".", "o"), legend=("..", "oo", ":"), side="|", tick="+", corner="+", bottom="-", tee="+")


def terminal_curves(row: ReportRow, width: int, *, plain: bool = False) -> TerminalCurves:
    """Loss of train and val by epoch, the kept epoch marked, in so many columns; with accuracy where they are many.

    Args:
        row: the row; the seed of its lowest val loss is drawn.
        width: columns; fewer than ``NARROWEST`` are taken for so many.
        plain: draw in ASCII.

    Raises:
        ValueError: the row is an ensemble.
    """
    record = _record(row)
    history, kept = record.history, record.best_epoch
    seed = f", seed {record.config.seed}" if row.row.seeds > 1 else ""
    title = f"{row.name}{seed}: val loss {history.val_loss[kept]:.4f} at epoch {kept + 1} of {len(history.val_loss)}"
    title += f" (kept), where train is at {history.train_loss[kept]:.4f}"
    width, marks = max(width, NARROWEST), _ASCII if plain else _BRAILLE
    if width < TWO_PANELS:
        lines = _panel("cross-entropy", history.train_loss, history.val_loss, kept, width, marks)
    else:
        half = (width - 3) // 2
        loss = _panel("cross-entropy", history.train_loss, history.val_loss, kept, half, marks)
        accuracy = _panel("accuracy", history.train_accuracy, history.val_accuracy, kept, half, marks)
        lines = [
            (*left, Span(text=" " * (3 + half - sum(len(one.text) for one in left))), *right)
            for left, right in zip(loss, accuracy, strict=True)
        ]
    return TerminalCurves(title=title, lines=tuple(lines))


def curves_json(row: ReportRow) -> dict[str, Any]:
    """The same as numbers: epochs count from 1.

    Raises:
        ValueError: the row is an ensemble.
    """
    record, names = _record(row), ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    figures = {name: list(getattr(record.history, name)) for name in names}
    return {"name": row.name, "seed": record.config.seed, "kept_epoch": record.best_epoch + 1, **figures}


def _record(row: ReportRow) -> HeadRecord:
    if row.row.chosen is None:
        raise ValueError(f"{row.name} is an ensemble, which was not trained")
    return row.row.chosen


def _panel(name: str, train: Sequence[float], val: Sequence[float], kept: int, width: int, marks: _Marks) -> list[Line]:
    low, high = min(*train, *val), max(*train, *val)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = [tick for tick in MaxNLocator(4, steps=STEPS).tick_values(low, high) if low <= tick <= high]
    labels = [f"{tick:g}" for tick in ticks]
    margin = max(map(len, [*labels, EPOCH])) + 1
    columns = width - margin - 1
    down, across = (DOTS_DOWN, DOTS_ACROSS) if marks.curves is None else (1, 1)
    curves = [_trace(values, columns * across, ROWS * down, low, high) for values in (train, val)]
    if marks.curves is None:
        curves[0][:, np.arange(columns * across) // DASH % 2 == 1] = False
    labelled = {
        round((high - tick) / (high - low) * (ROWS - 1)): label for tick, label in zip(ticks, labels, strict=True)
    }
    places = _columns_of(len(val), columns)
    lines: list[Line] = [_legend(name, kept, marks)]
    for row in range(ROWS):
        axis = f"{labelled.get(row, ''):>{margin}}{marks.tick if row in labelled else marks.side}"
        cells = [curve[row * down : (row + 1) * down].reshape(down, columns, across) for curve in curves]
        lines.append((Span(text=axis), *_merged(_characters(cells, marks, int(places[kept])))))
    return [*lines, *_epochs(places, columns, margin, marks)]


def _trace(values: Sequence[float], wide: int, high: int, low: float, top: float) -> NDArray[np.bool_]:
    """A line through the values in dots [high, wide], without gaps; of one value a dot."""
    along = np.linspace(0, len(values) - 1, wide if len(values) > 1 else 1)
    level = np.rint((top - np.interp(along, np.arange(len(values)), values)) / (top - low) * (high - 1)).astype(int)
    dots = np.zeros((high, wide), bool)
    before = level[0]
    for column, now in enumerate(level.tolist()):
        # From beside the dot before to this one, up or down.
        reach = sorted((now, before + int(np.sign(now - before))))
        dots[reach[0] : reach[1] + 1, column] = True
        before = now
    return dots


def _columns_of(epochs: int, columns: int) -> NDArray[np.int64]:
    """The column of characters in which each epoch stands."""
    return np.rint(np.linspace(0, columns - 1, epochs) if epochs > 1 else np.zeros(1)).astype(np.int64)


def _characters(cells: Sequence[NDArray[np.bool_]], marks: _Marks, kept: int) -> list[Span]:
    """One line of characters, of train's and val's dots in it, each [down, columns, across]; val lies over train."""
    train, val = (np.any(curve, axis=(0, 2)) for curve in cells)
    bits = ((cells[0] | cells[1]) * BITS[: len(cells[0]), None, : cells[0].shape[2]]).sum((0, 2))
    spans: list[Span] = []
    for column in range(len(val)):
        if not (train[column] or val[column]):
            spans.append(Span(text=marks.legend[2], of="kept") if column == kept else Span(text=" "))
            continue
        text = chr(0x2800 + int(bits[column])) if marks.curves is None else marks.curves[int(val[column])]
        spans.append(Span(text=text, of="val" if val[column] else "train"))
    return spans


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].of == span.of:
            merged[-1] = Span(text=merged[-1].text + span.text, of=span.of)
        else:
            merged.append(span)
    return merged


def _legend(name: str, kept: int, marks: _Marks) -> Line:
    train, val, line = marks.legend
    return (
        Span(text=f"{name}  "),
        Span(text=f"{train} train  ", of="train"),
        Span(text=f"{val} val  ", of="val"),
        Span(text=f"{line} epoch {kept + 1}", of="kept"),
    )


def _epochs(places: NDArray[np.int64], columns: int, margin: int, marks: _Marks) -> list[Line]:
    """The axis below, with as many epochs as it has room for."""
    bottom, numbers = [marks.bottom] * columns, [" "] * columns
    free = 0
    for tick in MaxNLocator(6, integer=True, steps=STEPS).tick_values(1, len(places)):
        if not 1 <= tick <= len(places):
            continue
        text, place = f"{tick:g}", int(places[int(tick) - 1])
        start = min(max(place - len(text) // 2, 0), columns - len(text))
        if start >= free:
            bottom[place] = marks.tee
            numbers[start : start + len(text)] = text
            free = start + len(text) + 1
    axis, named = f"{' ' * margin}{marks.corner}{''.join(bottom)}", f"{EPOCH:>{margin}} {''.join(numbers)}"
    return [(Span(text=axis),), (Span(text=named),)]
