"""What the page's script draws: read back from its paths, and compared with the data that the page was made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Locator
from playwright.sync_api import Page as Window
from synthetic import fitted, head, run, saved, split_logits

from browser.browsing import Opened, OpenPage
from heads.page.page import Page, build_page
from heads.page.rendering import render
from heads.reporting.report import build_report
from heads.statistics.metrics import evaluate
from heads.training.config import HeadConfig

pytestmark = pytest.mark.browser

BASE = HeadConfig()

Show = Callable[[Path], tuple[Page, Opened]]


@pytest.fixture
def show(open_page: OpenPage) -> Show:
    """Opens the page of the runs in a folder; returns it with what it was made of."""

    def built(dataset: Path) -> tuple[Page, Opened]:
        page = build_page(build_report(dataset), dataset)
        (dataset / "page.html").write_text(render(page), encoding="utf-8")
        return page, open_page(dataset / "page.html")

    return built


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Runs of two backbones, each of three penalties with two seeds."""
    for number, backbone in enumerate(("resnet50", "vgg19")):
        configs = [replace(BASE, l2=l2, seed=seed) for l2 in (0.0, 1e-4, 1e-2) for seed in range(2)]
        fitted(tmp_path, *configs, run_id=f"run-{number}", backbone=backbone, fingerprint=f"{number}" * 64, seed=number)
    return tmp_path


def points(path: Locator) -> NDArray[np.float64]:
    """The corners of a path, [J, 2] in pixels."""
    found = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get_attribute("d") or "")
    return np.array(found, np.float64)


def centres(circles: Locator) -> NDArray[np.float64]:
    """The centres of circles, [J, 2] in pixels."""
    script = "all => all.map(one => [Number(one.getAttribute('cx')), Number(one.getAttribute('cy'))])"
    return np.array(circles.evaluate_all(script), np.float64)


def scale(pixels: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """The straight line from values to the pixels that they were drawn at; all lie on it."""
    slope, start = np.polyfit(values, pixels, 1)
    np.testing.assert_allclose(slope * values + start, pixels, atol=0.1)
    return float(slope), float(start)


def on(of: tuple[float, float], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return of[0] * values + of[1]


def pick(window: Window, section: str, name: str) -> None:
    window.locator(f"#{section}-tools select").first.select_option(label=name)


# ---- learning curves


def test_learning_curves_are_the_histories_and_shaded_only_where_val_is_the_worse(several: Path, show: Show) -> None:
    page, opened = show(several)
    window = opened.page
    for row in (page.rows[0], page.rows[-1]):
        pick(window, "learning", row.name)
        assert row.name in window.inner_text("#learning-words")
        kept, epochs = row.curves[row.kept], np.arange(1.0, 4.0)
        for place, (name, percent) in enumerate((("loss", 1), ("accuracy", 100))):
            svg = window.locator("#learning-plots svg").nth(place)
            assert svg.locator("path.s-val").count() == svg.locator("path.s-train").count() == 2  # a seed each
            train = percent * np.array(getattr(kept, f"train_{name}"))
            val = percent * np.array(getattr(kept, f"val_{name}"))
            drawn = points(svg.locator("path.s-val:not(.thin)"))
            across, up = scale(drawn[:, 0], epochs), scale(drawn[:, 1], val)
            assert across[0] > 0 > up[0]
            other = points(svg.locator("path.s-train:not(.thin)"))
            np.testing.assert_allclose(other[:, 1], on(up, train), atol=0.1)
            x, y = points(svg.locator("path.band")).T
            shaded = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 / abs(across[0] * up[0])
            # val is the worse in the third epoch alone: a triangle from where the lines cross.
            apart = np.abs(train - val)
            crossing = apart[1] / (apart[1] + apart[2])
            assert shaded == pytest.approx((1 - crossing) * apart[2] / 2, rel=0.02)
    window.get_by_label("all seeds").uncheck()
    assert window.locator("#learning-plots svg").first.locator("path.s-val").count() == 1
    assert opened.console == []


# ---- curves of test


def test_roc_and_precision_recall_are_drawn_through_their_points_and_name_the_seed(several: Path, show: Show) -> None:
    page, opened = show(several)
    window, first = opened.page, page.evaluations[0]
    assert first.binary is not None
    assert first.seed is not None
    for place, (x, y) in enumerate((first.binary.roc, first.binary.precision_recall)):
        svg = window.locator("#discrimination-plots svg").nth(place)
        assert svg.locator("path.curve").count() == svg.locator("path.band").count() == 2
        drawn = points(svg.locator("path.curve.s0"))
        across, up = scale(drawn[:, 0], np.array(x)), scale(drawn[:, 1], np.array(y))
        assert across[0] > 0 > up[0]
        half = first.binary.chosen[0].at
        tp, fp = first.binary.thresholds.tp[half], first.binary.thresholds.fp[half]
        ring = (fp / first.binary.negatives, tp / first.binary.positives)
        if place:
            ring = (tp / first.binary.positives, tp / (tp + fp))
        wanted = [on(across, np.array(ring[0])), on(up, np.array(ring[1]))]
        np.testing.assert_allclose(centres(svg.locator("circle.s0"))[0], wanted, atol=0.1)
    boxes = window.locator("#discrimination-rows label")
    assert boxes.count() == len(page.evaluations) == 6
    assert f"{page.rows[first.row].name} (seed {first.seed})" in boxes.first.inner_text()
    boxes.first.locator("input").uncheck()
    assert window.locator("#discrimination-plots svg").first.locator("path.curve").count() == 1
    assert window.locator("#discrimination-plots path.curve.s0").count() == 0


def test_calibration_is_drawn_at_its_bins_of_the_row_that_is_asked_for(several: Path, show: Show) -> None:
    page, opened = show(several)
    for one in (page.evaluations[0], page.evaluations[-1]):
        assert one.binary is not None
        pick(opened.page, "calibration", f"{page.rows[one.row].name} (seed {one.seed})")
        for place, bins in enumerate((one.binary.reliability, one.binary.reliability_scaled)):
            drawn = centres(opened.page.locator("#calibration-plots svg").nth(place).locator("circle"))
            assert len(drawn) == len(bins) > 3
            scale(drawn[:, 0], np.array([one.probability for one in bins]))
            scale(drawn[:, 1], np.array([one.positive for one in bins]))


# ---- the grid


def groups(window: Window, axis: str) -> list[int]:
    """How many rows each line joins in the panel of val of an axis."""
    panels = window.locator(f"#grid-body h3:text-is('{axis}') + div .multiples:not(.of-test)")
    return sorted(len(points(line)) for line in panels.locator("path.curve").all())


def test_an_axis_joins_the_rows_that_differ_in_it_alone_at_their_means(several: Path, show: Show) -> None:
    page, opened = show(several)
    assert groups(opened.page, "L2 penalty λ") == [3, 3]
    panel = opened.page.locator("#grid-body h3:text-is('L2 penalty λ') + div .multiples:not(.of-test) svg").first
    mine = [row for row in page.rows if row.axes["backbone"] == "resnet50"]
    for figure, words in (("loss", "Loss"), ("auc", "AUC")):
        opened.page.locator("#grid-tools select").select_option(label=words)
        means = np.array([row.val[figure].mean for row in sorted(mine, key=lambda row: row.axes["l2"])])
        assert scale(points(panel.locator("path.curve"))[:, 1], means)[0] < 0


def test_rows_of_two_splits_and_of_other_epochs_are_not_joined(tmp_path: Path, show: Show) -> None:
    configs = [replace(BASE, l2=l2, epochs=epochs) for l2 in (0.0, 1e-2) for epochs in (20, 50)]
    for number, rule in enumerate(("patient", "paper")):
        fitted(tmp_path, *configs, run_id=f"run-{number}", split_rule=rule, seed=number)
    page, opened = show(tmp_path)
    assert len(page.rows) == 8
    # Two epochs on each of two splits: four lines of two rows, and as many of the other axis.
    for axis in ("L2 penalty λ", "Epochs at most"):
        assert groups(opened.page, axis) == [2, 2, 2, 2]
    keys = opened.page.inner_text("#grid-body .keys >> nth=0")
    for words in ("Epochs at most 20, patient split", "Epochs at most 50, paper split"):
        assert words in keys
    lead = " ".join(opened.page.inner_text("header").split())
    assert "those marked ▸, one a split, were selected" in lead
    assert "paper split: train 4173 images, val 60 images" in lead
    assert opened.page.locator("#comparison tr.selected").count() == 2
    assert opened.barriers() == []


def test_epochs_alone_are_an_axis_and_seeds_alone_are_none(tmp_path: Path, show: Show) -> None:
    fitted(tmp_path / "epochs", *(replace(BASE, epochs=epochs) for epochs in (20, 50)))
    _, opened = show(tmp_path / "epochs")
    assert groups(opened.page, "Epochs at most") == [2]
    fitted(tmp_path / "seeds", *(replace(BASE, seed=seed) for seed in range(2)))
    _, opened = show(tmp_path / "seeds")
    assert "Nothing was varied but seeds." in opened.page.inner_text("#grid")
    assert "1 row of heads" in opened.page.inner_text("header")


# ---- the table, and more than two classes


def test_a_long_table_begins_with_the_foremost_rows_and_is_searched_whole(tmp_path: Path, show: Show) -> None:
    fitted(tmp_path, *(replace(BASE, l2=1e-5 * (1 + number)) for number in range(45)))
    page, opened = show(tmp_path)
    window = opened.page
    shown, every = window.locator("#comparison tbody:not(.study) tr:not([hidden])"), window.locator("#table-all")
    assert shown.count() == len(page.evaluations) == 12
    assert {int(tr.get_attribute("data-row") or -1) for tr in shown.all()} == {one.row for one in page.evaluations}
    assert "12 of 45 rows" in window.inner_text("#table-count")
    name = next(row.name for place, row in enumerate(page.rows) if place not in {one.row for one in page.evaluations})
    search = window.locator("#table-tools input[type=search]")
    search.fill(name)
    assert name in shown.all_inner_texts()[0]
    assert not every.is_visible()  # all rows are searched already
    search.fill("")
    every.click()
    assert shown.count() == 45
    every.click()
    assert shown.count() == 12


def test_of_three_classes_there_is_a_matrix_and_no_threshold(tmp_path: Path, show: Show) -> None:
    logits = split_logits(1, 60, 3, lean=2)
    classes = ("NORMAL", "PNEUMONIA", "TUBERCULOSIS")
    saved(tmp_path, run(head(val=evaluate(logits.logits[0], logits.label)), classes=classes), logits, logits)
    page, opened = show(tmp_path)
    cells = opened.page.locator("#confusion tbody td").all_inner_texts()
    assert [int(cell) for cell in cells] == [count for line in page.evaluations[0].confusion for count in line]
    assert opened.page.locator("#threshold, #discrimination, #calibration").count() == 0
    lead = opened.page.inner_text("header")
    assert "each image decided for its most probable class" in lead
    assert "0.5" not in lead
    assert opened.console == []
    assert opened.barriers() == []


def test_the_notes_say_where_trust_is_told(several: Path, show: Show) -> None:
    _, opened = show(several)
    words = " ".join(opened.page.inner_text("#notes").split())
    assert "cxr predict tells of each film how far it lies from train" in words
    assert "docs/trust.md" in words
