"""Learning curves in characters: taken apart again, they are the history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic import fitted, head, metrics, run, saved

from heads.experiments.runs import HeadRecord
from heads.reporting.report import ReportRow, build_report
from heads.reporting.terminal_curves import (
    DOTS_ACROSS,
    DOTS_DOWN,
    NARROWEST,
    ROWS,
    TWO_PANELS,
    Line,
    curves_json,
    terminal_curves,
)
from heads.training.config import HeadConfig
from heads.training.early_stopping import History

WIDTHS = [NARROWEST, 80, TWO_PANELS - 1, TWO_PANELS, 200, 251]


def history(epochs: int, *, level: float | None = None) -> History:
    """A fit that over-fits after its middle; or one that stands still at a level."""
    along = np.linspace(0, 1, epochs)
    train, val = 0.6 * np.exp(-4 * along) + 0.05, 0.5 * np.exp(-6 * along) + 0.3 + 0.35 * along**2
    if level is not None:
        train = val = np.full(epochs, level)
    figures = [tuple(map(float, values)) for values in (train, 1 - train / 2, 0 * train, val, 1 - val / 2, val)]
    return History(**dict(zip(History.__dataclass_fields__, figures, strict=True)))


def row_of(folder: Path, given: History, *, seeds: int = 1, **config: float) -> ReportRow:
    """A row whose heads have this history and keep its best epoch."""
    configs = [replace(HeadConfig(), seed=seed, **config) for seed in range(seeds)]  # type: ignore[arg-type]  # floats
    kept = int(np.argmin(given.val_loss))
    heads: list[HeadRecord] = [
        replace(head(one, metrics(0.5 - one.seed / 10)), history=given, best_epoch=kept) for one in configs
    ]
    saved(folder, run(*heads))
    (row,) = build_report(folder).rows
    return row


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> ReportRow:
    """A row of 45 epochs; its run is not to be changed."""
    return row_of(tmp_path_factory.mktemp("cache"), history(45))


def text(line: Line) -> str:
    return "".join(span.text for span in line)


def drawn(lines: tuple[Line, ...], of: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The dots [high, wide] of a drawing of one panel: of the characters that are one part of it, and of all."""
    body = [line for line in lines if text(line).lstrip(" 0123456789.").startswith(("│", "┤"))]
    assert len(body) == ROWS
    start = max(text(body[0]).find("│"), text(body[0]).find("┤")) + 1
    columns = len(text(body[0])) - start
    one, every = (np.zeros((ROWS * DOTS_DOWN, columns * DOTS_ACROSS), bool) for _ in range(2))
    for number, line in enumerate(body):
        roles = [span.of for span in line for _ in span.text]
        for place, (letter, role) in enumerate(zip(text(line), roles, strict=True)):
            if 0x2800 <= ord(letter) < 0x2900:
                bits = ord(letter) - 0x2800
                # Unicode numbers the dots 1-3 and 7 down the left, 4-6 and 8 down the right.
                for dot, (down, across) in enumerate(((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1))):
                    if bits >> dot & 1:
                        at = number * DOTS_DOWN + down, (place - start) * DOTS_ACROSS + across
                        every[at] = True
                        one[at] = role == of
    return one, every


def test_the_dots_of_val_are_its_losses_and_leave_no_gap(row: ReportRow) -> None:
    assert row.row.chosen is not None
    history = row.row.chosen.history
    val, _ = drawn(terminal_curves(row, 80).lines, "val")
    low, high = min(*history.train_loss, *history.val_loss), max(*history.train_loss, *history.val_loss)
    tall, wide = val.shape
    for epoch, loss in enumerate(history.val_loss):
        column = round(epoch / 44 * (wide - 1))
        level = (high - loss) / (high - low) * (tall - 1)
        found = np.flatnonzero(val[:, column])
        assert np.abs(found - level).min() <= 1.5
    for left, right in zip(val.T[:-1], val.T[1:], strict=True):
        before, after = np.flatnonzero(left), np.flatnonzero(right)
        assert np.abs(before[:, None] - after).min() <= 1


def test_train_is_dashed_and_val_is_not(row: ReportRow) -> None:
    lines = terminal_curves(row, 80).lines
    val, every = drawn(lines, "val")
    train, _ = drawn(lines, "train")
    assert val.any(0).all()
    assert 0.3 < train.any(0).mean() < 0.7
    assert (train | val == every).all()


def test_in_ascii_each_epoch_has_its_letter_at_its_height(row: ReportRow) -> None:
    assert row.row.chosen is not None
    history = row.row.chosen.history
    lines = [text(line) for line in terminal_curves(row, 80, plain=True).lines]
    assert all(line.isascii() for line in lines)
    body = [line[line.index("|" if "|" in line else "+") + 1 :] for line in lines[1 : 1 + ROWS]]
    low, high = min(*history.train_loss, *history.val_loss), max(*history.train_loss, *history.val_loss)
    for letter, losses in (("o", history.val_loss), (".", history.train_loss)):
        for epoch, loss in enumerate(losses):
            column = [line[round(epoch / 44 * (len(body[0]) - 1))] for line in body]
            level = round((high - loss) / (high - low) * (ROWS - 1))
            # Where they cross, val lies over train.
            assert set(column[max(level - 1, 0) : level + 2]) & {letter, "o"}, (letter, epoch)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(row: ReportRow, width: int, plain: bool) -> None:
    lines = [text(line) for line in terminal_curves(row, width, plain=plain).lines]
    assert max(map(len, lines)) <= width
    assert len(lines[1]) >= width - 1
    assert ("accuracy" in lines[0]) == (width >= TWO_PANELS)
    assert len(lines) == ROWS + 3


def test_a_terminal_too_narrow_to_draw_in_gets_the_narrowest_drawing(row: ReportRow) -> None:
    assert terminal_curves(row, 10) == terminal_curves(row, NARROWEST)


def test_the_kept_epoch_is_marked_where_it_stands_and_told(row: ReportRow) -> None:
    assert row.row.chosen is not None
    kept, losses = row.row.chosen.best_epoch, row.row.chosen.history
    assert 5 < kept < 40
    curves = terminal_curves(row, 80)
    assert curves.title == (
        f"{row.name}: val loss {losses.val_loss[kept]:.4f} at epoch {kept + 1} of 45 (kept), where train is at "
        f"{losses.train_loss[kept]:.4f}"
    )
    assert text(curves.lines[0]).split() == ["cross-entropy", "╌╌", "train", "──", "val", "┊", "epoch", str(kept + 1)]
    start = text(curves.lines[-2]).index("└") + 1
    places = {text(line).index("┊") - start for line in curves.lines[1:-2] if "┊" in text(line)}
    assert places == {round(kept / 44 * (len(text(curves.lines[1])) - start - 1))}


def test_the_axes_are_labelled_with_values_and_epochs(row: ReportRow) -> None:
    assert row.row.chosen is not None
    history = row.row.chosen.history
    lines = [text(line) for line in terminal_curves(row, 80).lines]
    labelled = [(number, float(line.split("┤")[0])) for number, line in enumerate(lines[1 : 1 + ROWS]) if "┤" in line]
    assert len(labelled) >= 3
    low, high = min(*history.train_loss, *history.val_loss), max(*history.train_loss, *history.val_loss)
    for number, value in labelled:
        assert number == pytest.approx((high - value) / (high - low) * (ROWS - 1), abs=0.5)
    assert lines[-1].split() == ["epoch", "10", "20", "30", "40"]
    tees = [place for place, letter in enumerate(lines[-2]) if letter == "┬"]
    start = lines[-2].index("└") + 1
    assert [tee - start for tee in tees] == [round((e - 1) / 44 * (80 - start - 1)) for e in (10, 20, 30, 40)]


@pytest.mark.parametrize("epochs", [1, 2, 500])
@pytest.mark.parametrize("plain", [False, True])
def test_fits_of_one_epoch_or_of_many_are_drawn(tmp_path: Path, epochs: int, plain: bool) -> None:
    lines = terminal_curves(row_of(tmp_path, history(epochs)), 80, plain=plain).lines
    roles = {span.of for line in lines[1:-2] for span in line if span.text.strip()}
    assert "val" in roles
    assert max(len(text(line)) for line in lines) <= 80


def test_a_fit_that_stands_still_is_a_line_in_the_middle(tmp_path: Path) -> None:
    lines = terminal_curves(row_of(tmp_path, history(20, level=0.25)), 80, plain=True).lines
    assert [number for number, line in enumerate(lines[1:-2]) if "o" in text(line)] in ([ROWS // 2], [ROWS // 2 - 1])


def test_of_several_seeds_that_of_the_lowest_val_loss_is_drawn_and_named(tmp_path: Path) -> None:
    row = row_of(tmp_path, history(12), seeds=3)
    assert terminal_curves(row, 80).title.startswith(f"{row.name}, seed 2: ")
    told = curves_json(row)
    assert row.row.chosen is not None
    assert (told["name"], told["seed"], told["kept_epoch"]) == (row.name, 2, row.row.chosen.best_epoch + 1)
    assert told["val_loss"] == list(row.row.chosen.history.val_loss)
    assert told["train_accuracy"] == list(row.row.chosen.history.train_accuracy)


def test_an_ensemble_was_not_trained_but_its_members_were(tmp_path: Path) -> None:
    base = HeadConfig()
    for number, name in enumerate(("one", "two")):
        configs = (base, replace(base, seed=1))
        fitted(tmp_path, *configs, seed=number, backbone=name, fingerprint=name.ljust(64, "x"), run_id=name)
    report = build_report(tmp_path, ensembles=True)
    by_name = {row.name: row for row in report.rows}
    for name, members in (
        ("one", ["one"]),
        ("one, mean of 2 seeds", ["one"]),
        ("mean of 2 backbones", ["one", "two"]),
    ):
        assert [row.name for row in report.trained(by_name[name])] == members
    for refused in (lambda row: terminal_curves(row, 80), curves_json):
        with pytest.raises(ValueError, match="mean of 2 backbones is an ensemble, which was not trained"):
            refused(by_name["mean of 2 backbones"])
