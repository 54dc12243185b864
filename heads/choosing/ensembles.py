"""Ensembles as rows of the table: means of logits over seeds and over backbones, their members chosen on val."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from heads.choosing.row_names import TRANSDUCTIVE
from heads.choosing.rows import Ensemble, Load, LoadHeldOut, Member, Row, held_out_scores, logits_of
from heads.choosing.selection import FOLD_RULES, best_subset, scale_of_member, select
from heads.experiments.runs import HeadRecord
from heads.experiments.split_logits import KINDS, Kind
from heads.statistics.metrics import cross_entropy, evaluate


def ensemble_rows(rows: Sequence[Row], load: Load, load_held_out: LoadHeldOut, rule: str = "clean") -> list[Row]:
    """Rows of the ensembles that can be made of rows; see docs/adr/0006-sealed-test.md for what chooses.

    - Over seeds: of every row with several, the mean of their raw logits. Heads that differ in the seed alone have
      logits of one scale.
    - Over backbones, among rows of the same images, split and positive class: of each backbone the row that the rule
      selects, its seeds averaged, and its logits divided by its temperature (``selection.scale_of_member``). One row is
      the mean of all of them; where another subset has a lower score by the rule (``selection.best_subset``), that is
      one too.

    Args:
        rows: plain rows.
        load: reads a run's logits of val.
        load_held_out: reads its logits of held-out folds.
        rule: of ``selection.SELECTION_RULES``.

    Raises:
        RunError: logits are damaged, or the images of members differ.
    """
    made = [_over_seeds(row, load) for row in rows if row.seeds > 1]
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if rule not in row.candidate.scores:
            continue
        key = (*row.split, row.run.positive, row.run.images_sha256, row.transductive)
        groups.setdefault(key, {}).setdefault(row.records[0].backbone, []).append(row)
    for key, by_backbone in groups.items():
        if len(by_backbone) > 1:
            apart = _apart(next(iter(by_backbone.values()))[0], list(groups), key)
            made += _over_backbones(list(by_backbone.values()), load, load_held_out, rule, apart)
    return [replace(row, held_out=held_out_scores(row.members, load_held_out)) for row in made]


def _apart(row: Row, keys: Sequence[tuple[Any, ...]], key: tuple[Any, ...]) -> str:
    """What tells a group's ensembles from those of the other groups."""
    rule, seed, _, images, transductive = key
    words = (f"{rule} split" + (f" {seed}" if seed else ""), "", row.run.classes[row.run.positive], images[:6])
    several = [len({other[place] for other in keys}) > 1 for place in range(4)]
    shown = [several[0] or several[1], False, several[2], several[3]]
    labels = ("", "", "positive ", "images ")
    told = "".join(f", {label}{word}" for label, word, show in zip(labels, words, shown, strict=True) if show)
    return told + (f", {TRANSDUCTIVE}" if transductive else "")


def _over_seeds(row: Row, load: Load) -> Row:
    ensemble = Ensemble(kind="seeds", of=(row.name,))
    return _row(f"{row.name}, mean of {row.seeds} seeds", row, row.members, row.records, ensemble, load)


def _over_backbones(
    by_backbone: Sequence[Sequence[Row]], load: Load, load_held_out: LoadHeldOut, rule: str, apart: str
) -> list[Row]:
    """The mean of each backbone's best row; and of the best subset of them, where that is not all."""
    best = [rows[select([row.candidate for row in rows], rule)] for rows in by_backbone]
    means = [logits_of(row.members, load, averaged=True) for row in best]
    scales = [{kind: scale_of_member(mean.of(kind)[0], mean.label) for kind in KINDS} for mean in means]
    members = [replace(row.members[0], scale=scale) for row, scale in zip(best, scales, strict=True)]
    # What the rule looks at decides the members too.
    kind: Kind = "clean" if rule == "clean" else "view_mean"
    scaled = [mean.of(kind)[0] / scale[kind] for mean, scale in zip(means, scales, strict=True)]

    def score(subset: tuple[int, ...]) -> float:
        if rule in FOLD_RULES:
            return held_out_scores([members[k] for k in subset], load_held_out).get(rule, math.inf)
        return float(cross_entropy(np.mean([scaled[k] for k in subset], axis=0), means[0].label).mean())

    everyone = tuple(range(len(best)))
    made: list[Row] = []
    for subset in dict.fromkeys((everyone, best_subset(len(members), score))):
        count = f"{len(subset)} backbones" if subset == everyone else f"{len(subset)} of {len(best)} backbones"
        ensemble = Ensemble(kind="backbones", of=tuple(best[k].name for k in subset))
        made.append(_row(f"mean of {count}{apart}", best[subset[0]], [members[k] for k in subset], (), ensemble, load))
    return made


def _row(
    name: str, first: Row, members: Sequence[Member], records: tuple[HeadRecord, ...], ensemble: Ensemble, load: Load
) -> Row:
    val = logits_of(members, load, averaged=True)
    metrics = {kind: (evaluate(val.of(kind)[0], val.label, first.run.positive),) for kind in KINDS}
    return Row(
        name=name,
        run=first.run,
        members=tuple(members),
        records=records,
        ensemble=ensemble,
        transductive=first.transductive,
        val=val,
        metrics=metrics,
        best=0,
    )
