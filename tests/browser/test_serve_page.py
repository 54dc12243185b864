"""The page of ``cxr serve`` in a real browser: a film goes in, its answer is shown, and a bad file is one sentence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import QUICK, films_of, make_place, running
from test_cli import done

from browser.browsing import Opened, OpenPage, Scheme

pytestmark = pytest.mark.browser

TOKEN = "a-secret-of-the-test"  # noqa: S105 - it opens nothing


@pytest.fixture(scope="package")
def place(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, a store and a run."""
    return make_place(tmp_path_factory.mktemp("page"), phantoms)


@pytest.fixture(scope="package")
def address(place: Path) -> Iterator[str]:
    """A server's."""
    with running(place, "--head", "1", "--max-bytes", "1MB") as (_, said):
        yield said["url"]


@pytest.fixture(scope="package")
def film(place: Path) -> Path:
    """A film of test."""
    return films_of(place)[0]


@pytest.fixture(scope="package")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is no chest: noise, which is flagged."""
    path = tmp_path_factory.mktemp("strange") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 120), np.uint8)).save(path)
    return path


def send(page: Opened, film: Path) -> None:
    page.page.set_input_files("#file", film)
    page.page.wait_for_selector("#answer:not([hidden])")
    page.page.wait_for_function("() => document.getElementById('overlay').naturalWidth > 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_film_is_answered_on_a_page_that_all_can_read(
    open_page: OpenPage, address: str, film: Path, strange: Path, width: int, scheme: Scheme
) -> None:
    page = open_page(address, width=width, scheme=scheme)
    page.page.wait_for_selector("#about:not([hidden])")
    assert page.barriers() == []
    for one, flagged in ((film, False), (strange, True)):
        send(page, one)
        text = page.page.inner_text("main")
        assert "probability of PNEUMONIA" in text
        assert "Decision: " in text
        assert "is decided from" in text
        assert page.page.is_visible("#flag") is flagged
        assert page.barriers() == []
        assert not page.scrolls_sideways()
    assert "color-contrast" in page.rules_passed()
    # The warning is read before the probability.
    order = "document.getElementById('flag').compareDocumentPosition(document.getElementById('probability'))"
    assert page.page.evaluate(order) & 4
    assert "Research use only. Not a medical device" in page.page.inner_text("header")
    assert "test AUC" in page.page.inner_text("#figures")
    assert page.console == []
    # Nothing was asked of anybody else.
    assert {request.split("/")[2] for request in page.requests if not request.startswith(("data:", "blob:"))} == {
        address.split("/")[2]
    }


def test_the_overlay_lies_on_the_film_and_its_slider_fades_it(open_page: OpenPage, address: str, film: Path) -> None:
    page = open_page(address)
    page.page.wait_for_selector("#about:not([hidden])")
    send(page, film)
    boxes = [page.page.locator(f"#{name}").bounding_box() for name in ("film-picture", "overlay")]
    assert boxes[0] == boxes[1]
    opacity = "getComputedStyle(document.getElementById('overlay')).opacity"
    assert page.page.evaluate(opacity) == "0.6"
    page.page.focus("#opacity")
    page.page.keyboard.press("Home")
    assert page.page.evaluate(opacity) == "0"
    page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate(opacity) == "0.01"
    page.page.keyboard.press("End")
    assert (page.page.evaluate(opacity), page.page.inner_text("#opacity-value")) == ("1", "100 %")


def test_the_nearest_known_cases_are_shown_with_labels_and_distances(
    open_page: OpenPage, address: str, film: Path
) -> None:
    page = open_page(address)
    page.page.wait_for_selector("#about:not([hidden])")
    send(page, film)
    cases = page.page.locator("#cases li")
    assert cases.count() == 6
    for number in range(6):
        assert cases.nth(number).locator(".label").inner_text() in ("NORMAL", "PNEUMONIA")
        assert "distance 0." in cases.nth(number).inner_text()
        assert cases.nth(number).locator("img").evaluate("image => image.naturalWidth") > 0


def test_a_bundle_has_a_page_with_its_figures_and_without_known_cases(
    open_page: OpenPage, place: Path, film: Path, tmp_path: Path
) -> None:
    done("bundle", "--data", "films", "--head", "1", "--out", tmp_path / "model", cwd=place, **QUICK)
    code = ("--backbone", "tiny_network:tiny")
    with running(tmp_path, "--bundle", "model", *code) as (_, said):
        page = open_page(said["url"])
        page.page.wait_for_selector("#about:not([hidden])")
        send(page, film)
        assert not page.page.is_visible("#known")
        assert "test AUC" in page.page.inner_text("#figures")
        assert page.console == []
        assert page.barriers() == []


def test_a_bad_file_is_one_clear_sentence_and_the_answer_before_it_is_gone(
    open_page: OpenPage, address: str, film: Path, tmp_path: Path
) -> None:
    page = open_page(address)
    page.page.wait_for_selector("#about:not([hidden])")
    send(page, film)
    for name, content, sentence in (
        ("page.jpeg", b"<script>alert(1)</script>", "No answer for this file: not a JPEG, PNG or DICOM file"),
        ("cut.jpeg", film.read_bytes()[:300], "No answer for this file: damaged"),
        ("large.jpeg", b"\xff" * 2_000_000, "This file is larger than"),
    ):
        (tmp_path / name).write_bytes(content)
        page.page.set_input_files("#file", tmp_path / name)
        page.page.wait_for_function(
            "wanted => document.getElementById('problem').textContent.startsWith(wanted)", arg=sentence
        )
        assert page.page.inner_text("#problem").count(".") == 1
        assert not page.page.is_visible("#answer")
    # A refusal is the browser's to note; nothing else was.
    assert all("status of 4" in line for line in page.console)
    send(page, film)
    assert page.page.inner_text("#problem") == ""


def test_a_film_is_chosen_by_the_keyboard_dropped_or_pasted(open_page: OpenPage, address: str, film: Path) -> None:
    page = open_page(address)
    # A chooser is caught from the first listener on; one that begins to listen as the key goes down may be too late.
    page.page.on("filechooser", lambda _: None)
    page.page.wait_for_selector("#about:not([hidden])")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.id") == "file"
    with page.page.expect_file_chooser() as choosing:
        page.page.keyboard.press("Enter")
    choosing.value.set_files(film)
    page.page.wait_for_selector("#answer:not([hidden])")
    for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.page.evaluate("document.getElementById('answer').hidden = true")
        page.page.evaluate(
            """([bytes, kind, field]) => {
                const carried = new DataTransfer();
                carried.items.add(new File([new Uint8Array(bytes)], "film.jpeg", { type: "image/jpeg" }));
                const made = { bubbles: true, cancelable: true, [field]: carried };
                document.dispatchEvent(kind === "drop" ? new DragEvent(kind, made) : new ClipboardEvent(kind, made));
            }""",
            [list(film.read_bytes()), kind, field],
        )
        page.page.wait_for_selector("#answer:not([hidden])")


def test_where_a_token_is_wanted_the_page_asks_for_it(open_page: OpenPage, place: Path, film: Path) -> None:
    with running(place, "--head", "1", "--token", TOKEN) as (_, said):
        page = open_page(said["url"])
        page.page.wait_for_selector("#ask-token:not([hidden])")
        assert page.barriers() == []
        for given in ("wrong", TOKEN):
            page.page.fill("#token", given)
            page.page.keyboard.press("Enter")
            shown = "That is not this server's token." if given == "wrong" else "gives the probability of"
            page.page.wait_for_function(
                "wanted => document.getElementById('which').textContent.includes(wanted)", arg=shown
            )
        send(page, film)
        assert TOKEN not in page.page.content()
        page.page.context.close()


def test_another_model_after_a_restart_is_told_beside_its_answer_and_a_full_server_in_a_sentence(
    open_page: OpenPage, place: Path, film: Path
) -> None:
    with running(place, "--head", "1") as (process, said):
        page = open_page(said["url"])
        page.page.wait_for_selector("#about:not([hidden])")
        before = page.page.inner_text("#model")
        page.page.route("**/predict?**", lambda route: route.fulfill(status=503, json={"detail": "too many films"}))
        page.page.set_input_files("#file", film)
        page.page.wait_for_function("() => document.getElementById('problem').textContent.includes('too many films')")
        page.page.unroute("**/predict?**")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    page.page.set_input_files("#file", film)
    page.page.wait_for_function(
        "() => document.getElementById('problem').textContent === 'The server does not answer.'"
    )
    with running(place, "--head", "0", "--port", said["url"].rpartition(":")[2]) as (_, other):
        assert other["model"]["sha256"] != said["model"]["sha256"]
        send(page, film)
        assert page.page.inner_text("#model") != before
        assert other["model"]["sha256"] in page.page.inner_text("#model")
        page.page.context.close()
