"""Headless Chromium for the tests of this folder; without it they are skipped, and fail where BROWSER_TESTS says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from browser.browsing import AXE, Opened, OpenPage, Scheme, chromium, opened


# Not for the session: while it is open, Playwright holds the event loop that other tests run their own on.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The installed Chromium, headless."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    if not AXE.is_file():
        pytest.skip("axe-core is not here: npm ci --prefix tests/browser")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens files and addresses, each in a window that the test's end closes."""
    windows: list[Opened] = []

    def open_one(
        page: Path | str,
        *,
        width: int = 1280,
        height: int = 900,
        scheme: Scheme = "light",
        scripts: bool = True,
    ) -> Opened:
        one = opened(browser, page, width=width, height=height, scheme=scheme, scripts=scripts)
        windows.append(one)
        return one

    yield open_one
    for one in windows:
        one.page.context.close()
