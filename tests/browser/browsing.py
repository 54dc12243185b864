"""A page that is open in headless Chromium, with all that it said and asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from playwright.sync_api import Browser, Page

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
"""The accessibility rules of axe-core; ``npm ci`` in this folder fetches them, by the hash in package-lock.json."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Scheme = Literal["light", "dark"]

OpenPage = Callable[..., "Opened"]
"""``(page, *, width=1280, height=900, scheme="light", scripts=True)``: a file or an address → an ``Opened``."""

# Contrast is a matter of what is drawn: rules that want other files or frames would only wait for them.
LOOK_FOR_BARRIERS = """async () => {
    const found = await axe.run(document, { preload: false, iframes: false });
    const listed = rules => rules.map(rule => [rule.id, rule.help, rule.nodes.map(
        node => node.target.join(" ") + ": " + (node.any.concat(node.all, node.none).map(one => one.message).join("; "))
    )]);
    return { violations: listed(found.violations), passed: found.passes.map(rule => rule.id) };
}"""


def chromium() -> Path | None:
    """The browser that is installed here, if any."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    return Path(found[0]) if found else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A page and what it did since it was opened.

    Attributes:
        page: Playwright's page.
        console: what scripts, the content policy and the browser said, each as ``kind: text``; errors that no script
            caught are of the kind ``uncaught``.
        requests: addresses that were asked for, the page's own first.
    """

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def barriers(self) -> list[str]:
        """What keeps some from reading the page, by axe-core: ``rule: what it wants: where``, a line an element."""
        found = self._axe()
        return [f"{rule}: {wanted}: {where}" for rule, wanted, nodes in found["violations"] for where in nodes]

    def rules_passed(self) -> set[str]:
        """The rules of axe-core that found something to judge, and nothing wrong with it."""
        return set(self._axe()["passed"])

    def scrolls_sideways(self) -> bool:
        """Whether the page is wider than the window."""
        script = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(self.page.evaluate(script))

    def _axe(self) -> dict[str, Any]:
        # Evaluated from outside, it is no script of the page's: the page's own content policy stays in force.
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        return cast("dict[str, Any]", self.page.evaluate(LOOK_FOR_BARRIERS))


def opened(browser: Browser, page: Path | str, *, width: int, height: int, scheme: Scheme, scripts: bool) -> Opened:
    """Open a page in a window of its own; a file without any network, so that what it asks for fails and is heard."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        java_script_enabled=scripts,
        offline=isinstance(page, Path),
    )
    one = Opened(page=context.new_page())
    one.page.on("console", lambda message: one.console.append(f"{message.type}: {message.text}"))
    one.page.on("pageerror", lambda error: one.console.append(f"uncaught: {error}"))
    one.page.on("request", lambda request: one.requests.append(request.url))
    one.page.goto(page.absolute().as_uri() if isinstance(page, Path) else page)
    return one
