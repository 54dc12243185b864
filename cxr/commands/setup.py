"""What a user does first: settings, and a look at what everything stands on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cxr.options import Backbones, Cache, Config, Data, Json, TableFile, Views, Weights
from cxr.terminal import out, print_json, show
from featcache.errors import CxrError, SettingsError
from featcache.settings import CONFIG_NAME, example_toml, load_settings

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def init(
    data: Data = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the one that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented cxr.toml with every setting."""
    from featcache import atomic

    path = Path(CONFIG_NAME)
    if path.exists() and not force:
        raise SettingsError(f"{path} exists already: edit it, or overwrite it with --force")
    atomic.write_text(path, example_toml({"data": data, "cache": cache}))
    show(as_json, {"file": str(path)}, [f"wrote {path}: every setting and its default, to be uncommented and changed"])


def doctor(
    backbone: Backbones = None,
    weights: Weights = None,
    data: Data = None,
    table: TableFile = None,
    cache: Cache = None,
    views: Views = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Try what the other commands stand on, and say the way out of what fails; exits 1 then.

    Interpreter, torch, devices, decoders, data set, weights, cache, locks, free space; nothing is left behind.
    """
    flags = {"backbone": backbone, "weights": weights, "data": data, "table": table, "cache": cache, "views": views}
    settings = load_settings(flags, config)
    from featcache.doctor import examine

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            words = Text(finding.in_words())
            words.stylize(COLOURS[finding.state], 0, len(finding.state))
            out.print(words)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    failed = [finding.checked for finding in findings if finding.state == "failed"]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise CxrError(f"{len(failed)} of {len(findings)} checks failed ({names}); each says what to do")
