"""The page as a file: nothing outside it is asked for, no name becomes markup, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import fitted, head, run, saved, split_logits

from heads.page.page import Page, build_page
from heads.page.rendering import ASSETS, render, script_json
from heads.reporting.report import build_report
from heads.reporting.tables import Shown
from heads.statistics.metrics import evaluate
from heads.training.config import HeadConfig
from heads.training.early_stopping import History

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "<!--<script>{{ 7 * 7 }}{% raw %}",
    "$\\frac{$ & ' onload=alert(3) \u2028",
)
FETCHING = {
    "src",
    "href",
    "srcset",
    "action",
    "data",
    "poster",
    "background",
    "xlink:href",
    "formaction",
    "manifest",
    "ping",
}


@dataclass
class Parsed(HTMLParser):
    """The elements of a page, and the text of its scripts and styles."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    blocks: list[tuple[str, dict[str, str | None], str]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.blocks.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        tag, attributes, text = self.blocks[-1] if self.blocks else ("", {}, "")
        if self.elements and self.elements[-1][0] == tag and self.cdata_elem:
            self.blocks[-1] = tag, attributes, text + data
        else:
            self.words += data


def parsed(text: str) -> Parsed:
    page = Parsed()
    page.feed(text)
    page.close()
    return page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page whose backbones, classes and command would like to be markup."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(HOSTILE):
        fitted(
            folder,
            HeadConfig(),
            run_id=f"patient-{number}",
            backbone=name,
            fingerprint=f"{number}" * 64,
            classes=HOSTILE[:2],
            provenance={HOSTILE[1]: HOSTILE[0]},
        )
    report = build_report(folder, ensembles=True)
    return build_page(report, folder, Shown(paper=True), command=f"cxr report --html {HOSTILE[0]}")


@pytest.fixture(scope="module")
def text(hostile: Page) -> str:
    return render(hostile)


def test_no_name_becomes_an_element_or_an_attribute(text: str) -> None:
    page = parsed(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert tags.count("img") == 3  # the figures for where the script does not run
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    for name in HOSTILE:
        # As text they are all there, in the table.
        assert " ".join(name.split()) in " ".join(page.words.split())


def test_nothing_outside_the_file_is_asked_for(text: str) -> None:
    page = parsed(text)
    assert not {tag for tag, _ in page.elements} & {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "audio",
        "video",
    }
    for tag, attributes in page.elements:
        for name in FETCHING & attributes.keys():
            assert str(attributes[name]).startswith(("#", "data:image/")), (tag, name)
    for tag, _, block in page.blocks:
        assert not re.search(r"@import|url\(\s*[\"']?(?!#)", block) if tag == "style" else True
    script = page.blocks[-1][2]
    # Namespaces are names and no addresses.
    assert set(re.findall(r"https?://[^\"'`\s]+", script)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", script)


def test_the_script_makes_no_markup_and_runs_no_text(text: str) -> None:
    script = parsed(text).blocks[-1][2]
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|srcdoc|DOMParser", script
    )
    assert "</script" not in script


def test_the_policy_allows_the_files_own_script_and_style_and_nothing_else(text: str) -> None:
    page = parsed(text)
    (policy,) = [
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {name: values.split() for name, _, values in (rule.strip().partition(" ") for rule in policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    blocks = {tag: block for tag, attributes, block in page.blocks if attributes.get("type") != "application/json"}
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(blocks[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == [f"'sha256-{digest}'"]
    # A policy counts from where it stands: before any script or style.
    assert text.index("Content-Security-Policy") < min(text.index("<style"), text.index("<script"))


def test_the_scripts_data_is_the_pages_and_names_come_back_whole(hostile: Page, text: str) -> None:
    (block,) = [block for _, attributes, block in parsed(text).blocks if attributes.get("type") == "application/json"]
    assert not set("<>&\u2028\u2029") & set(block)
    held = json.loads(block)
    assert held == json.loads(json.dumps(hostile.script_data()))
    assert tuple(held["classes"]) == HOSTILE[:2]
    assert [row["name"] for row in held["rows"]] == [row.name for row in hostile.rows]


def test_json_in_a_script_block_cannot_end_it_and_no_figure_is_no_number() -> None:
    value = {"name": "</ScRiPt><!-- ]]> &amp; \u2029"}
    assert json.loads(script_json(value)) == value
    assert "<" not in script_json(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"loss": math.nan})


def test_without_a_script_the_page_has_table_figures_notes_and_provenance(hostile: Page, text: str) -> None:
    page = parsed(text)
    words = " ".join(page.words.split())
    for row in hostile.rows:
        for cell in row.cells:
            assert cell.text in words
            assert cell.interval in words
    for note in hostile.notes:
        assert " ".join(note.split()) in words
    assert hostile.provenance.runs[0].images_sha256 in words
    assert "Not a medical device" in words
    outside, _, rest = text.partition("<noscript>")
    assert "data:image/svg" not in outside
    assert rest.partition("</noscript>")[0].count("data:image/svg") == 3


def test_every_link_leads_to_a_section_and_every_label_to_its_name(text: str) -> None:
    page = parsed(text)
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(attributes["href"])[1:] for tag, attributes in page.elements if tag == "a"]
    named = [str(attributes["aria-labelledby"]) for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert len(targets) >= 8
    assert set(targets) | set(named) <= set(ids)


def test_without_pictures_there_is_no_section_of_them(text: str) -> None:
    assert "pictures" not in {attributes.get("id") for _, attributes in parsed(text).elements}
    assert 'href="#pictures"' not in text


def test_the_script_is_our_files_in_the_order_in_which_they_need_each_other(text: str) -> None:
    script = parsed(text).blocks[-1][2]
    names = {path.name for path in ASSETS.iterdir() if path.name.endswith(".js")}
    assert "start.js" in names
    for name in names:
        assert (ASSETS / name).read_text(encoding="utf-8") in script
    assert script.endswith((ASSETS / "start.js").read_text(encoding="utf-8"))


def test_a_page_of_two_hundred_heads_stays_well_below_five_megabytes(tmp_path: Path) -> None:
    epochs = 50
    logits = split_logits(200, 100, lean=1.5)
    curve = tuple(0.6 / (1 + k) + 0.01234567 for k in range(epochs))
    history = History(
        train_loss=curve,
        train_accuracy=curve,
        penalty=curve,
        val_loss=curve,
        val_accuracy=curve,
        val_loss_view_mean=curve,
    )
    heads = [
        replace(
            head(
                HeadConfig(l2=1e-5 * (number // 4)),
                evaluate(logits.logits[number], logits.label),
                backbone=f"a_backbone_of_a_rather_long_name_{number % 4}.with_weights_in1k",
                fingerprint=f"{number % 4}" * 64,
            ),
            history=history,
        )
        for number in range(200)
    ]
    saved(tmp_path, run(*heads), logits, split_logits(200, 100, seed=7, lean=1.5))
    page = build_page(build_report(tmp_path), tmp_path)
    assert len(page.rows) == 200
    assert len(page.rows[-1].curves[0].val_loss) == epochs
    assert len(page.evaluations) == 12
    size = len(render(page).encode())
    assert 500_000 < size < 2_500_000
