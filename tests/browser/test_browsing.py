"""The test bed itself: what it is there to catch, it catches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from browser.browsing import OpenPage

pytestmark = pytest.mark.browser

WritePage = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> WritePage:
    """A sound page around some markup, as a file."""

    def write(markup: str, head: str = "") -> Path:
        path = tmp_path / "page.html"
        frame = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Test bed</title>{}</head><body>{}</body>'
        )
        path.write_text(frame.format(head, f"<main><h1>Films</h1>{markup}</main>"), encoding="utf-8")
        return path

    return write


def test_a_sound_page_is_found_sound(open_page: OpenPage, written: WritePage) -> None:
    page = open_page(written('<p style="color: #333">Black on white.</p>'))
    assert page.page.inner_text("h1") == "Films"
    assert page.console == []
    assert page.requests == [page.page.url]
    assert page.barriers() == []
    assert {"color-contrast", "html-has-lang"} <= page.rules_passed()
    assert not page.scrolls_sideways()


def test_what_a_page_asks_the_network_for_is_heard_and_does_not_reach_it(
    open_page: OpenPage, written: WritePage
) -> None:
    page = open_page(written('<img src="http://198.51.100.1/film.png" alt="a film">'))
    assert page.requests == [page.page.url, "http://198.51.100.1/film.png"]
    assert [line for line in page.console if line.startswith("error: Failed to load resource")]


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ("<script>console.error('no such row')</script>", "error: no such row"),
        ("<script>console.warn('an old browser')</script>", "warning: an old browser"),
        ("<script>unknown()</script>", "uncaught: unknown is not defined"),
    ],
)
def test_what_scripts_say_is_heard(open_page: OpenPage, written: WritePage, markup: str, said: str) -> None:
    assert open_page(written(markup)).console == [said]


def test_a_content_policy_stays_in_force_and_is_heard(open_page: OpenPage, tmp_path: Path) -> None:
    path = tmp_path / "strict.html"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Strict</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
        "<main><h1>Films</h1><script>document.title = 'changed'</script></main>",
        encoding="utf-8",
    )
    page = open_page(path)
    assert page.page.title() == "Strict"
    (said,) = page.console
    assert "Content Security Policy" in said
    # axe-core runs all the same.
    assert page.barriers() == []


@pytest.mark.parametrize(
    ("markup", "rule"),
    [
        ('<p style="color: #bbb">Grey on white.</p>', "color-contrast"),
        ('<input type="range">', "label"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "image-alt"),
    ],
)
def test_barriers_are_found(open_page: OpenPage, written: WritePage, markup: str, rule: str) -> None:
    (barrier,) = open_page(written(markup)).barriers()
    assert barrier.startswith(f"{rule}: ")


def test_contrast_is_judged_in_the_scheme_and_at_the_width_that_are_asked_for(
    open_page: OpenPage, tmp_path: Path
) -> None:
    path = tmp_path / "schemes.html"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Schemes</title><style>body { background: white }'
        "@media (prefers-color-scheme: dark) { body { background: black } h1 { color: #222 } }"
        "@media (max-width: 400px) { p { width: 1000px } }"
        "</style><main><h1>Films</h1><p>Text</p></main>",
        encoding="utf-8",
    )
    light, dark = open_page(path), open_page(path, scheme="dark", width=390)
    assert light.barriers() == []
    assert any("#222222" in barrier for barrier in dark.barriers())
    assert not light.scrolls_sideways()
    assert dark.scrolls_sideways()


def test_a_page_may_be_looked_at_without_scripts(open_page: OpenPage, written: WritePage) -> None:
    path = written('<p id="said">still</p><script>document.getElementById("said").textContent = "moved"</script>')
    assert open_page(path).page.inner_text("#said") == "moved"
    assert open_page(path, scripts=False).page.inner_text("#said") == "still"
