"""Rows of the table before test is looked at: the heads of a configuration on a backbone and split, seeds folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featcache.errors import OutdatedRunError, RunError
from heads.choosing.row_names import row_names
from heads.choosing.selection import Candidate, Choices, best_seed
from heads.experiments.held_out import FOLDS_NAME, HeldOut, pooled
from heads.experiments.runs import RUNS_NAME, HeadRecord, RunRecord, load_run, run_folders
from heads.experiments.split_logits import KINDS, Kind, SplitLogits, damaged
from heads.statistics.metrics import Metrics
from heads.training.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class Member:
    """Heads of one run, whose logits are a row's or go into an ensemble.

    Attributes:
        folder: the run's.
        heads: their indices in it.
        scale: what the mean of their logits is divided by before it meets other members', by kind.
    """

    folder: Path
    heads: tuple[int, ...]
    scale: Mapping[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What a row is the mean of.

    Attributes:
        kind: over the ``seeds`` of one row, or over ``backbones``.
        of: names of the rows it was made from.
    """

    kind: Literal["seeds", "backbones"]
    of: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One configuration on one backbone and split, its seeds side by side; or an ensemble, which is one head.

    Attributes:
        name: what the table calls it.
        run: the run it stands in; of an ensemble over backbones, that of the first.
        members: where its logits come from: one member, or the several of an ensemble over backbones.
        records: its fitted heads, one a seed; none of an ensemble over backbones.
        ensemble: what it averages, if it does.
        val: its logits on val, [S, n, K].
        metrics: figures of val, by kind one a seed.
        best: index of the seed of the lowest val loss: the head that stands for the row.
        choices: temperature and operating points, by kind.
        transductive: whether some of its heads saw all images of val and test, without labels.
        held_out: scores on the folds that were held out from train and val, by name; empty without such folds.
        selected: whether val chose this row.
    """

    name: str
    run: RunRecord
    members: tuple[Member, ...]
    records: tuple[HeadRecord, ...]
    ensemble: Ensemble | None = None
    val: SplitLogits
    metrics: Mapping[Kind, tuple[Metrics, ...]]
    best: int
    choices: Mapping[Kind, Choices] = field(default_factory=dict)
    transductive: bool = False
    held_out: Mapping[str, float] = field(default_factory=dict)
    selected: bool = False

    @property
    def seeds(self) -> int:
        """Heads side by side; an ensemble is one."""
        return len(self.val.logits)

    @property
    def config(self) -> HeadConfig | None:
        """The configuration, with the first seed; an ensemble over backbones has none."""
        return self.records[0].config if self.records else None

    @property
    def chosen(self) -> HeadRecord | None:
        """The record of the head that stands for the row; an ensemble has none."""
        return None if self.ensemble else self.records[self.best]

    @property
    def split(self) -> tuple[str, int]:
        """Rule and seed of the split: val losses compare within one only."""
        return self.run.split_rule, self.run.split_seed

    @property
    def candidate(self) -> Candidate:
        """The row as selection sees it."""
        scores = {"clean": self.metrics["clean"], "views": self.metrics["view_mean"]}
        losses = {name: tuple(one.loss for one in of) for name, of in scores.items()}
        return Candidate(name=self.name, scores={**losses, **{name: (score,) for name, score in self.held_out.items()}})


Load = Callable[[Path], SplitLogits]


def logits_of(members: Sequence[Member], load: Load, *, averaged: bool) -> SplitLogits:
    """Logits of a row on one split: of its only member's heads, or the mean of means over all members' heads.

    Args:
        members: where they come from.
        load: reads a run's logits of that split.
        averaged: whether the row is an ensemble.

    Raises:
        RunError: a run's logits are damaged, or the members' images differ.
    """
    every = [load(member.folder) for member in members]
    first = every[0]
    for one, member in zip(every, members, strict=True):
        if max(member.heads) >= len(one.logits):
            raise RunError(
                f"{member.folder} is damaged: of {max(member.heads) + 1} heads or more {len(one.logits)} have logits"
            )
        if one.image_id != first.image_id or not np.array_equal(one.label, first.label):
            raise RunError(f"{member.folder} and {members[0].folder} are of other images: run 'cxr fit-head' again")
    if not averaged:
        heads = list(members[0].heads)
        return replace(first, logits=first.logits[heads], logits_view_mean=first.logits_view_mean[heads])
    means = {
        kind: np.stack(
            [
                one.of(kind)[list(member.heads)].mean(0) / member.scale[kind]
                for one, member in zip(every, members, strict=True)
            ]
        ).mean(0, keepdims=True, dtype=np.float32)
        for kind in KINDS
    }
    return replace(first, logits=means["clean"], logits_view_mean=means["view_mean"])


LoadHeldOut = Callable[[Path], HeldOut | None]


def held_out_scores(members: Sequence[Member], load: LoadHeldOut) -> dict[str, float]:
    """Scores of a row or an ensemble on the held-out folds, by name; none where a member lacks them.

    Raises:
        RunError: a run's logits of its folds are damaged, or fewer than its heads.
    """
    for one in members:
        if (held := load(one.folder)) is not None and max(one.heads) >= len(held.split.logits):
            raise damaged(
                one.folder / FOLDS_NAME, f"it has {len(held.split.logits)} heads, wanted {max(one.heads) + 1}"
            )
    found = pooled([(load(one.folder), one.heads, one.scale["view_mean"]) for one in members])
    return found[0].scores(found[1]) if found else {}


def read_rows(dataset: Path, run_ids: Sequence[str], load: Load) -> tuple[list[Row], list[str]]:
    """Read the runs of a data set and fold them into rows; runs of an older format are noted and passed over.

    Where several runs hold a configuration, the one of the most seeds counts, of equals one with held-out folds, and of
    these the newest; on other images, the newest.

    Args:
        dataset: ``cache/<dataset>``.
        run_ids: take these runs only.
        load: reads a run's logits of val.

    Returns:
        The rows in the order split, backbone, configuration, named; and what a reader must know.

    Raises:
        RunError: no runs, an unknown run, or a damaged one; no run of this format, or one asked for is not.
    """
    runs, notes = _read_runs(dataset, run_ids)
    kept: dict[tuple[Any, ...], tuple[RunRecord, Path, list[int]]] = {}

    def told(folder: Path, heads: Sequence[int]) -> tuple[int, bool]:
        return len(heads), (folder / FOLDS_NAME).exists()

    for run, folder in runs:
        grouped: dict[tuple[Any, ...], list[int]] = {}
        for head, record in enumerate(run.heads):
            grouped.setdefault(_key(run, record), []).append(head)
        for key, heads in grouped.items():
            older = kept.get(key)
            if older is None or run.images_sha256 != older[0].images_sha256 or told(folder, heads) >= told(*older[1:]):
                kept[key] = run, folder, heads
    rows = [_row(*one, load) for one in kept.values()]
    rows.sort(key=lambda row: (*row.split, row.records[0].backbone, row.records[0].fingerprint))
    names = row_names([row.records[0] for row in rows], [row.run for row in rows])
    return [replace(row, name=name) for row, name in zip(rows, names, strict=True)], notes


def _read_runs(dataset: Path, run_ids: Sequence[str]) -> tuple[list[tuple[RunRecord, Path]], list[str]]:
    folders = run_folders(dataset)
    unknown = sorted(set(run_ids) - {folder.name for folder in folders})
    if unknown:
        known = ", ".join(folder.name for folder in folders) or "none"
        raise RunError(f"no run {unknown[0]} in {dataset}; there are: {known}")
    chosen = [folder for folder in folders if not run_ids or folder.name in run_ids]
    if not chosen:
        others = sorted(path.parent.name for path in dataset.parent.glob(f"*/{RUNS_NAME}"))
        held = f" (there are runs of {', '.join(others)})" if others else ""
        raise RunError(f"no runs in {dataset}: run 'cxr fit-head' first{held}")
    # By when a run was last asked for: one that was read back is as new as one that was fitted.
    chosen.sort(key=lambda folder: (folder / "run.json").stat().st_mtime_ns)
    runs: list[tuple[RunRecord, Path]] = []
    outdated: list[OutdatedRunError] = []
    for folder in chosen:
        try:
            runs.append((load_run(folder), folder))
        except OutdatedRunError as error:
            if run_ids:
                raise
            outdated.append(error)
    if not runs:
        more = f" ({len(outdated)} runs are of older formats)" if len(outdated) > 1 else ""
        raise RunError(f"{outdated[0]}{more}") from outdated[0]
    return runs, [f"left out: {error}" for error in outdated]


def _key(run: RunRecord, record: HeadRecord) -> tuple[Any, ...]:
    seedless = replace(record.config, seed=0)
    return (
        run.split_rule,
        run.split_seed,
        run.positive,
        record.backbone,
        record.fingerprint,
        record.views,
        record.adapted,
        seedless,
    )


def _row(run: RunRecord, folder: Path, heads: Sequence[int], load: Load) -> Row:
    members = (Member(folder=folder, heads=tuple(heads)),)
    records = tuple(run.heads[head] for head in heads)
    row = Row(
        name="",
        run=run,
        members=members,
        records=records,
        transductive=any(one.adapted for one in records),
        val=logits_of(members, load, averaged=False),
        metrics={"clean": tuple(one.val for one in records), "view_mean": tuple(one.val_view_mean for one in records)},
        best=0,
    )
    return replace(row, best=best_seed(row.candidate))
