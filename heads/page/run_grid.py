"""A run's heads as the grid file that declares them, so that who reads a page can fit them again."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from heads.experiments.grid_file import SETTING_OF
from heads.experiments.runs import RunRecord

Setting = tuple[tuple[str, Any], ...]
"""Fields of a configuration but L2 and seed, by their names in a table."""


def grid_file(run: RunRecord) -> str:
    """TOML that ``cxr grid --file`` reads as the same heads on the same number of views; L2 and seeds are lists.

    What a grid file cannot say, that a run is transductive or was read from the disk, stands in a comment.
    """
    backbones: dict[tuple[Any, ...], list[str]] = {}
    by_store: dict[tuple[str, str, int], dict[Setting, dict[float, list[int]]]] = {}
    for head in run.heads:
        held = asdict(head.config)
        setting = tuple((name, held[field]) for field, name in SETTING_OF.items() if field not in ("l2", "seed"))
        store = by_store.setdefault((head.backbone, head.fingerprint, head.views), {})
        store.setdefault(setting, {}).setdefault(head.config.l2, []).append(head.config.seed)
    for (backbone, _, views), settings in by_store.items():
        for setting, of_l2 in settings.items():
            seeds: dict[tuple[int, ...], list[float]] = {}
            for l2, found in of_l2.items():
                seeds.setdefault(tuple(found), []).append(l2)
            for chosen, l2s in seeds.items():
                names = backbones.setdefault((views, setting, tuple(l2s), chosen), [])
                names += [backbone] * (backbone not in names)
    lines = [
        f"split = {_value(run.split_rule)}",
        f"split_seed = {run.split_seed}",
        f"positive = {_value(run.classes[run.positive])}",
    ]
    if windows := {head.config.window for head in run.heads} - {0}:
        lines.append(f"# read from the disk, shuffled in windows of {max(windows)} images: cxr fit-head --memory")
    if any(head.adapted for head in run.heads):
        lines.append("# val and test were brought to the moments of train: CXR_ADAPT=1")
    for (views, setting, l2s, chosen), names in backbones.items():
        table = {"backbone": names, "views": views, **dict(setting), "l2": list(l2s), "seeds": list(chosen)}
        lines += ["", "[[head]]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:  # noqa: ANN401 - text, numbers, truth and lists of them
    """A value as TOML: its strings, numbers, truth and lists are JSON's, but for the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
