"""What the table calls its rows: as the study does (``ResNet50 + L2``), with whatever else tells them apart."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.joined import part_names
from heads.experiments.runs import HeadRecord, RunRecord
from heads.training.config import HeadConfig

TRANSDUCTIVE = "transductive"
"""Marks heads whose val and test were brought to the moments of train: what they say of a film hangs on the others."""

TOLD = ("hidden", "lr", "epochs", "patience", "batch_size", "class_weights", "view_policy", "precision", "window")
"""Fields of a configuration that a name tells where rows differ in them."""


def row_names(heads: Sequence[HeadRecord], runs: Sequence[RunRecord]) -> list[str]:
    """Name rows by their first heads and the runs that these stand in; no two alike."""
    differing = [field for field in TOLD if len({getattr(head.config, field) for head in heads}) > 1]
    standardised = {head.config.standardise for head in heads} == {False, True}
    prints: dict[str, set[str]] = {}
    for head in heads:
        prints.setdefault(head.backbone, set()).add(head.fingerprint)
    short = {head.backbone: _short(head) for head in heads}
    view_counts = {(head.fingerprint, head.views) for head in heads}
    splits = {(run.split_rule, run.split_seed) for run in runs}
    positives = {run.positive for run in runs}
    names: list[str] = []
    for head, run in zip(heads, runs, strict=True):
        # Library and options only where two backbones would share the short name.
        unique = list(short.values()).count(short[head.backbone]) == 1
        name = short[head.backbone] if unique else head.backbone
        if len(prints[head.backbone]) > 1:
            name += f" [{'+'.join(part[:6] for _, part in part_names(head.backbone, head.fingerprint))}]"
        name += f" + L2 {head.config.l2:g}" if head.config.l2 else ""
        extras = [_told(head.config, field) for field in differing]
        extras += ["standardised"] * (head.config.standardise and standardised)
        extras += [TRANSDUCTIVE] * head.adapted
        if len({count for fingerprint, count in view_counts if fingerprint == head.fingerprint}) > 1:
            extras.append(f"{head.views} view{'s' * (head.views > 1)}")
        if len(positives) > 1:
            extras.append(f"positive {run.classes[run.positive]}")
        if len(splits) > 1:
            extras.append(f"{run.split_rule} split" + (f" {run.split_seed}" if run.split_seed else ""))
        names.append(", ".join([name, *extras]))
    return names


def _told(config: HeadConfig, field: str) -> str:
    if field == "hidden":
        return f"hidden {config.hidden}" if config.hidden else "linear"
    return f"{field} {getattr(config, field)}"


def _short(head: HeadRecord) -> str:
    """The backbone, or each of those joined, without library and options."""
    parts = part_names(head.backbone, head.fingerprint)
    return "+".join(name.removeprefix("torchvision:").partition("@")[0] for name, _ in parts)
