"""The page as one HTML file that opens from disk: no network, a strict content security policy, no inline handlers.

Names of a data set (images, classes, backbones) are hostile input. The template escapes all text; the script's data is
JSON in a block that no parser runs, with every ``<`` written as an escape; and the script makes elements, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from heads.page.page import Page
from heads.page.rows import COLUMNS

if TYPE_CHECKING:
    from heads.page.pictures import Pictures

ASSETS = resources.files("heads.page") / "assets"

LAST = "start.js"
"""What calls the other files' functions."""


def render(page: Page, pictures: Pictures | None = None) -> str:
    """The whole file, as text.

    Args:
        page: what it shows.
        pictures: films, shown by its own part of the template; None leaves them out.
    """
    style, script = _joined(".css"), _joined(".js")
    policy = (
        f"default-src 'none'; script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("heads.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        columns=COLUMNS,
        pictures=pictures,
        policy=policy,
        # Our own files, and not a reader's: they are the page's markup.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        data=Markup(script_json(page.script_data())),  # noqa: S704
    )


def script_json(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """JSON that can stand in a ``<script>`` block: no ``<`` that could end it or begin a comment, no odd line ends."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _joined(suffix: str) -> str:
    """All our files of a kind, by name."""
    found = sorted(
        (path for path in ASSETS.iterdir() if path.name.endswith(suffix)),
        key=lambda path: (path.name == LAST, path.name),
    )
    return "\n" + "\n".join(path.read_text(encoding="utf-8") for path in found)


def _source_hash(content: str) -> str:
    """What a content security policy names an inline block by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
