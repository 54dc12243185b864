"""``cxr report --html`` as a reader has it: from disk, sorted, moved, on a phone, in the dark, without scripts."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from test_cli import done

from browser.browsing import OpenPage, Scheme
from heads.reporting.report import ReportRow, build_report
from heads.statistics.metrics import probabilities

pytestmark = pytest.mark.browser

QUICK = {"CXR_DEVICE": "cpu", "CXR_RUNTIME": "torch", "CXR_PRECISION": "float32", "CXR_DATA": "films"}
GRID = (
    "--hidden",
    "0",
    "--hidden",
    "8",
    "--l2",
    "0",
    "--l2",
    "0.01",
    "--seeds",
    "2",
    "--epochs",
    "40",
    "--standardise",
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A page, and the report that it was made of."""

    path: Path
    rows: list[dict[str, Any]]
    selected: ReportRow


@pytest.fixture(scope="module")
def written(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The page of four rows on the phantoms, with pictures; one film lies in train and in test."""
    folder = tmp_path_factory.mktemp("page")
    films = shutil.copytree(phantoms, folder / "films")
    shutil.copy(sorted((films / "train/PNEUMONIA").iterdir())[3], films / "test/NORMAL/copy.jpeg")
    done("extract", "-b", "tiny_network:tiny", "--views", "2", cwd=folder, **QUICK)
    done("fit-head", *GRID, "--lr", "0.02", "--batch-size", "16", "--select", "clean", cwd=folder, **QUICK)
    asked = ("report", "--select", "clean", "--paper", "--json", "--html", "report.html", "--pictures")
    rows = done(*asked, cwd=folder, **QUICK).json["rows"]
    (selected,) = build_report(folder / "cache/films", rule="clean").selected
    return Written(path=folder / "report.html", rows=rows, selected=selected)


# ---- from disk


@pytest.mark.parametrize("scripts", [True, False])
def test_it_opens_from_disk_without_a_word_and_asks_nobody(
    open_page: OpenPage, written: Written, scripts: bool
) -> None:
    page = open_page(written.path, scripts=scripts)
    page.page.wait_for_load_state("networkidle")
    assert page.console == []
    assert [address for address in page.requests if not address.startswith("data:")] == [written.path.as_uri()]
    assert "films" in page.page.title()
    assert page.page.locator("#comparison tbody >> nth=0").locator("tr").count() == len(written.rows) == 4
    assert "Not a medical device" in page.page.inner_text("body")
    assert page.page.locator("#provenance").is_visible()


def test_every_picture_is_there_and_described(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    pictures = page.locator("#pictures img")
    script = "images => images.map(one => [one.naturalWidth, one.naturalHeight, one.alt])"
    page.evaluate("() => Promise.all([...document.images].map(one => one.decode()))")
    for width, height, alt in (found := pictures.evaluate_all(script)):
        assert 32 <= width <= 160
        assert 32 <= height <= 160
        assert alt.startswith("Radiograph ")
    # Two dozen films at most with a map each, three near ones beside each, and what the audit found.
    assert len(found) > 40
    first = page.locator("#pictures details").first
    near = first.locator("img").first
    assert not near.is_visible()
    first.locator("summary").click()
    assert near.is_visible()


# ---- the table


def names(page: Page) -> list[str]:
    heads = page.locator("#comparison tbody >> nth=0").locator("th.name").all_inner_texts()
    return [re.sub(r"^▸ | selected on val$", "", " ".join(text.split())) for text in heads]


def test_the_table_is_sorted_by_a_press_and_put_back(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    order = [row["name"] for row in written.rows]
    assert names(page) == order
    heading = page.locator("#comparison thead th", has_text="Test loss")
    heading.get_by_role("button").click()
    loss = {row["name"]: row["test"]["loss"]["mean"] for row in written.rows}
    assert len(set(loss.values())) == 4
    assert heading.get_attribute("aria-sort") == "descending"
    assert names(page) == sorted(order, key=lambda name: -loss[name])
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names(page) == sorted(order, key=lambda name: loss[name])
    assert "not to be chosen by" in page.inner_text("#table-tools")
    page.get_by_role("button", name="The report's order").click()
    assert names(page) == order
    assert page.locator("#comparison th[aria-sort]").count() == 0


def test_the_selected_row_stays_marked_wherever_it_goes(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    page.locator("#comparison thead th", has_text="AUC").get_by_role("button").click()
    marked = page.locator("#comparison tr.selected")
    assert marked.count() == 1
    assert marked.inner_text().startswith(f"▸ {written.selected.name}")
    assert "selected on val" in marked.inner_text()


# ---- the operating point


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", text)]


def moved_to(page: Page, place: int) -> float:
    """Put the slider somewhere, as a hand does; returns the threshold that the page then tells."""
    script = "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.locator("#threshold-slider").evaluate(script, place)
    return float(page.inner_text("#threshold-value"))


def counts(page: Page) -> list[list[int]]:
    rows = page.locator("#threshold-confusion tbody tr").all()
    return [[int(numbers(cell)[0]) for cell in row.locator("td").all_inner_texts()] for row in rows]


def test_the_slider_moves_the_numbers_and_they_are_scikit_learns(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    test, best = written.selected.test_logits, written.selected.row.best
    probability, truth = probabilities(test.logits[best])[:, 1], test.label
    last = int(page.locator("#threshold-slider").get_attribute("max") or 0)
    seen = set()
    for place in np.linspace(0, last, 9).round().astype(int).tolist():
        threshold = moved_to(page, place)
        decided = probability >= threshold
        wanted = confusion_matrix(truth, decided).tolist()
        assert counts(page) == wanted
        live = page.locator("#threshold-figures tr.live td.figure").all_inner_texts()
        assert numbers(live[0])[0] == threshold
        assert numbers(live[1])[0] == pytest.approx(recall_score(truth, decided), abs=5e-4)
        assert numbers(live[2])[0] == pytest.approx(recall_score(truth, decided, pos_label=0), abs=5e-4)
        if decided.any():
            assert numbers(live[3])[0] == pytest.approx(precision_score(truth, decided), abs=5e-4)
        assert numbers(live[5])[0] == pytest.approx(100 * (decided == truth).mean(), abs=0.05)
        seen.add(str(wanted))
    assert len(seen) > 4


def test_a_prevalence_moves_the_predictive_values_as_bayes_has_it(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    last = int(page.locator("#threshold-slider").get_attribute("max") or 0)
    moved_to(page, last // 2)
    (tn, fp), (fn, tp) = counts(page)
    assert tn > 0
    assert tp > 0
    before = page.locator("#threshold-figures tr.live td.figure").all_inner_texts()
    for refused in ("0", "100", ""):
        page.fill("#prevalence", refused)
        assert page.get_attribute("#prevalence", "aria-invalid") == "true"
        assert "between 0 and 100 %" in page.inner_text("#prevalence-refused")
        assert page.locator("#threshold-figures tr.live td.figure").all_inner_texts() == before
    for percent in (2, 30):
        page.fill("#prevalence", str(percent))
        sensitivity, specificity, p = tp / (tp + fn), tn / (tn + fp), percent / 100
        live = page.locator("#threshold-figures tr.live td.figure").all_inner_texts()
        ppv = sensitivity * p / (sensitivity * p + (1 - specificity) * (1 - p))
        npv = specificity * (1 - p) / (specificity * (1 - p) + (1 - sensitivity) * p)
        assert numbers(live[3])[0] == pytest.approx(ppv, abs=5e-4)
        assert numbers(live[4])[0] == pytest.approx(npv, abs=5e-4)
        assert page.get_attribute("#prevalence", "aria-invalid") == "false"
        assert page.inner_text("#prevalence-refused") == ""


def test_keys_move_the_slider_and_a_point_that_val_chose_is_a_press_away(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    slider = page.locator("#threshold-slider")
    before = int(slider.input_value())
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == before + 1
    assert slider.get_attribute("aria-valuetext") == page.inner_text("#threshold-value")
    page.locator("#threshold .chosen button", has_text="youden").click()
    point = written.selected.row.choices["clean"].operating_points["youden"][written.selected.row.best]
    assert float(page.inner_text("#threshold-value")) == pytest.approx(point.threshold, abs=5e-5)


# ---- everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_barrier(open_page: OpenPage, written: Written, width: int, scheme: Scheme) -> None:
    page = open_page(written.path, width=width, scheme=scheme)
    assert page.barriers() == []
    assert {"color-contrast", "image-alt", "label", "button-name", "region"} <= page.rules_passed()
    # The same with what a reader opens and presses.
    page.page.locator("#pictures details summary").first.click()
    page.page.locator("#comparison thead th", has_text="Test loss").get_by_role("button").click()
    moved_to(page.page, 3)
    assert page.barriers() == []
    assert page.console == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, written: Written, width: int) -> None:
    assert not open_page(written.path, width=width).scrolls_sideways()


def test_without_scripts_table_notes_and_pictures_are_there(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path, scripts=False)
    text = page.page.inner_text("main")
    for row in written.rows:
        assert row["name"] in text
    assert "selected on train and val alone" in text
    assert page.page.locator("#pictures img").first.is_visible()
    assert not page.page.locator("#table-tools").is_visible()
    assert page.console == []


def test_on_paper_there_are_no_controls_and_no_navigation(open_page: OpenPage, written: Written) -> None:
    page = open_page(written.path).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#threshold-slider").is_visible()
    assert page.locator("#comparison").is_visible()
    grid_file = page.locator("#provenance pre").first
    assert not grid_file.is_visible()
    page.pdf()
    # On paper nothing can be opened: what a press would show is there.
    assert page.locator("details:not([open])").count() == 0
    assert grid_file.is_visible()
    assert "[[head]]" in grid_file.inner_text()
