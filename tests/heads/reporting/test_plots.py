"""Pictures of a row: written whole, not blank, the same bytes for the same run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score
from synthetic import head, run, split_logits

from featcache.atomic import WriteError
from heads.experiments.runs import save_run
from heads.experiments.split_logits import SplitLogits
from heads.reporting.plots import confusion, learning_curves, roc, write_figures
from heads.reporting.report import ReportRow, build_report
from heads.statistics.metrics import evaluate
from heads.training.config import HeadConfig

NAMES = ["confusion-matrix", "learning-curves", "roc"]


def row_of(dataset: Path, classes: int = 2, val: SplitLogits | None = None, *, ensembles: bool = False) -> ReportRow:
    """The row of a run of two seeds, the second being the better one on val; with ensembles, that over the seeds."""
    val, test = val or split_logits(2, 30, classes, seed=1), split_logits(2, 40, classes, seed=2)
    heads = [
        head(replace(HeadConfig(), seed=seed), replace(evaluate(val.logits[seed], val.label), loss=loss))
        for seed, loss in enumerate((0.3, 0.2))
    ]
    names = ("NORMAL", "PNEUMONIA", "TUBERCULOSIS")[:classes]
    save_run(dataset, run(*heads, classes=names), [], val, test)
    return build_report(dataset, ensembles=ensembles).rows[-1]


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> ReportRow:
    """A row of two classes; its files are not to be changed."""
    return row_of(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=["png", "svg"])
def written(request: pytest.FixtureRequest, row: ReportRow, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The row's figures in one format, in a folder that was made for them; read them, never write to them."""
    return write_figures(row, tmp_path_factory.mktemp("figures") / "made" / "here", request.param)


def test_figures_written_twice_are_the_same_bytes(written: list[Path], row: ReportRow, tmp_path: Path) -> None:
    kind: Literal["png", "svg"] = "svg" if written[0].suffix == ".svg" else "png"
    assert [path.name for path in sorted(written)] == [f"{name}.{kind}" for name in NAMES]
    assert sorted(written[0].parent.iterdir()) == sorted(written)
    for one, other in zip(written, write_figures(row, tmp_path, kind), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_figures_are_not_blank(written: list[Path]) -> None:
    for path in written:
        if path.suffix == ".svg":
            drawing = ET.parse(path).getroot()  # noqa: S314 - our own file
            assert drawing.tag.endswith("svg")
            assert sum(element.tag.endswith(("path", "use")) for element in drawing.iter()) > 20
            continue
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            colours = picture.convert("RGB").getcolors(maxcolors=picture.width * picture.height)
            assert min(picture.size) >= 400
            assert colours is not None
            assert len(colours) > 50
            assert max(count for count, _ in colours) < 0.98 * picture.width * picture.height


def test_no_clock_stands_in_a_figure(written: list[Path]) -> None:
    for path in written:
        content = path.read_bytes().lower()
        assert b"date" not in content


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The labelled lines of a figure, (x, y) each."""
    lines = [line for axes in figure.axes for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {
        f"{line.axes.get_ylabel() if line.axes else ''}: {line.get_label()}": (
            np.asarray(line.get_xdata(), float).tolist(),
            np.asarray(line.get_ydata(), float).tolist(),
        )
        for line in lines
    }


def test_learning_curves_are_the_history_with_the_kept_epoch_marked(row: ReportRow) -> None:
    assert row.row.chosen is not None
    drawn, history = curves(learning_curves(row)), row.row.chosen.history
    epochs = [1.0, 2.0, 3.0]
    assert drawn["cross-entropy: val"] == (epochs, list(history.val_loss))
    assert drawn["accuracy: val"] == (epochs, list(history.val_accuracy))
    train = {label.partition(":")[0]: line for label, line in drawn.items() if ": train" in label}
    assert train["cross-entropy"] == (epochs, list(history.train_loss))
    assert train["accuracy"] == (epochs, list(history.train_accuracy))
    assert drawn["cross-entropy: kept: epoch 2"][0] == [2.0, 2.0]


def test_the_confusion_matrix_shows_the_counts_of_the_best_seed_on_test(row: ReportRow) -> None:
    figure = confusion(row)
    (axes,) = figure.axes
    shown = {tuple(round(place) for place in text.get_position()): text.get_text() for text in axes.texts}
    counts = evaluate(split_logits(2, 40, seed=2).logits[1], row.test_logits.label).confusion_matrix
    assert shown == {(decided, true): str(counts[true][decided]) for true in (0, 1) for decided in (0, 1)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["NORMAL", "PNEUMONIA"]
    assert "n = 40" in axes.get_title()


def test_numbers_on_dark_cells_are_white(row: ReportRow) -> None:
    counts = np.array(row.figures("test").metrics[1].confusion_matrix)
    (axes,) = confusion(row).axes
    for text in axes.texts:
        decided, true = (round(place) for place in text.get_position())
        dark = counts[true, decided] > counts.max() / 2
        assert to_rgba(text.get_color()) == to_rgba("white" if dark else "black")


def test_the_roc_curves_are_those_of_the_best_seeds_logits(row: ReportRow) -> None:
    drawn = curves(roc(row))
    for split, seed, n in (("val", 1, 30), ("test", 2, 40)):
        logits = split_logits(2, n, seed=seed)
        margin = logits.logits[1][:, 1] - logits.logits[1][:, 0]
        (label,) = [label for label in drawn if f" {split}:" in label]
        assert label.endswith(f"AUC {roc_auc_score(logits.label, margin):.4f}")
        false_positive, true_positive = drawn[label]
        assert (false_positive[0], true_positive[0], false_positive[-1], true_positive[-1]) == (0, 0, 1, 1)


def test_a_split_of_one_class_has_no_roc_curve(tmp_path: Path) -> None:
    val = split_logits(2, 30, seed=1)
    drawn = curves(roc(row_of(tmp_path, val=replace(val, label=np.ones(30, np.int64)))))
    assert [label.partition(":")[2].strip()[:4] for label in drawn] == ["test"]


def test_three_classes_have_no_roc_figure(tmp_path: Path) -> None:
    paths = write_figures(row_of(tmp_path, classes=3), tmp_path / "figures")
    assert sorted(path.name for path in paths) == ["confusion-matrix.png", "learning-curves.png"]


def test_an_ensemble_has_no_learning_curves(tmp_path: Path) -> None:
    ensemble = row_of(tmp_path, ensembles=True)
    assert ensemble.row.ensemble is not None
    paths = write_figures(ensemble, tmp_path / "figures")
    assert sorted(path.name for path in paths) == ["confusion-matrix.png", "roc.png"]
    with pytest.raises(ValueError, match="mean of 2 seeds is an ensemble, which was not trained"):
        learning_curves(ensemble)


def test_pictures_of_the_view_mean_are_of_its_logits(row: ReportRow) -> None:
    mean = split_logits(2, 40, seed=2).logits_view_mean[1]
    counts = evaluate(mean, row.test_logits.label).confusion_matrix
    (axes,) = confusion(row, view_mean=True).axes
    shown = {tuple(round(place) for place in text.get_position()): text.get_text() for text in axes.texts}
    assert shown == {(decided, true): str(counts[true][decided]) for true in (0, 1) for decided in (0, 1)}
    area = roc_auc_score(row.test_logits.label, mean[:, 1] - mean[:, 0])
    assert any(label.endswith(f"test: AUC {area:.4f}") for label in curves(roc(row, view_mean=True)))


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(row: ReportRow, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"cannot write .*learning-curves\.png"):
        write_figures(row, tmp_path / "file" / "figures")
