"""Fitting the heads of a grid once more without each of several folds, to see what they say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.folds import Fold, block_folds, series_folds
from featcache.images import ImageTable
from featcache.splits import Split
from heads.experiments.grids import StoreGrid
from heads.experiments.held_out import FoldKind, HeldOut
from heads.experiments.split_logits import SplitLogits
from heads.training.config import HeadConfig
from heads.training.feeding import adapted, clean_and_mean
from heads.training.samples import Samples
from heads.training.train import EpochProgress, KeptGroups, fit
from heads.training.windows import IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ShiftFold:
    """A fold and its kind."""

    kind: FoldKind
    fold: Fold


def shift_folds(images: ImageTable, divided: Split, rule: str | None = None) -> tuple[ShiftFold, ...]:
    """Blocks of consecutive patients, and name series where a class has two, of the images of train and val.

    Left out are folds without which train or val would lack a class: on splits that cut by name, whole series lie in
    one of the two.

    Args:
        images: the image table.
        divided: its split.
        rule: the rule of selection that asks for them, if one does; without one there may be none.

    Raises:
        DataError: what the rule asks for cannot be had.
    """
    rows = np.sort(np.concatenate([divided.train, divided.val]))
    try:
        blocks, series = block_folds(images, rows), series_folds(images, rows)
    except DataError:
        if rule is not None:
            raise
        return ()
    every = (*(ShiftFold(kind="blocks", fold=f) for f in blocks), *(ShiftFold(kind="series", fold=f) for f in series))
    classes = len(np.unique(images.label[rows]))

    def whole(part: IntArray) -> bool:
        return len(np.unique(images.label[part])) == classes

    usable = tuple(
        one for one in every if all(whole(np.intersect1d(one.fold.rest, of)) for of in (divided.train, divided.val))
    )
    if rule is not None and not any(rule in ("worst", one.kind) for one in usable):
        what = "series" if rule == "series" else "blocks"
        raise DataError(
            f"no {what} of patients can be held out so that train and val keep every class: choose by another --select"
        )
    return usable


def seedless(configs: Sequence[HeadConfig]) -> list[HeadConfig]:
    """The configurations, each with the first of its seeds."""
    return list({replace(config, seed=0): config for config in reversed(configs)}.values())[::-1]


def cross_fit(
    grid: StoreGrid,
    images: ImageTable,
    divided: Split,
    folds: Sequence[ShiftFold],
    *,
    device: str,
    adapt: bool,
    kept: Callable[[str], KeptGroups],
    tell: Callable[[str, int], Callable[[EpochProgress], None]],
) -> SplitLogits:
    """Fit each configuration without each fold; return every head's logits of all folds, one behind the other.

    Args:
        grid: the heads and their features.
        images: the image table.
        divided: its split; test is not read.
        folds: of train and val.
        device: a torch device.
        adapt: bring val and the fold to the moments of what is trained on.
        kept: where the groups of a fold's heads are kept, by the fold's name.
        tell: asked, for each fold's fit, by its name and epochs in all, for what is told how it goes.

    Raises:
        StoreError: features are missing or damaged.
        RunError: a fold leaves one class to learn from, or a head diverged.
    """
    rows = np.sort(np.concatenate([divided.train, divided.val]))
    place = np.full(len(images), -1)
    place[rows] = np.arange(len(rows))
    features = grid.source.views(images.image_id[rows].tolist(), grid.views)
    in_val = np.isin(rows, divided.val)

    def part(chosen: IntArray) -> Samples:
        return Samples(features=features[chosen], labels=images.label[rows[chosen]], classes=len(images.classes))

    configs = seedless(grid.configs)
    number_of = {replace(config, seed=0): number for number, config in enumerate(configs)}
    of_head = [number_of[replace(config, seed=0)] for config in grid.configs]
    clean: list[list[NDArray[np.float32]]] = [[] for _ in configs]
    mean: list[list[NDArray[np.float32]]] = [[] for _ in configs]
    for number, one in enumerate(folds, 1):
        rest, held_out = place[one.fold.rest], place[one.fold.held_out]
        train, val, outside = part(rest[~in_val[rest]]), part(rest[in_val[rest]]), part(held_out)
        if adapt:
            val, outside = adapted(train, val), adapted(train, outside)
        fitted = fit(
            train,
            val,
            configs,
            device=device,
            on_epoch=tell(
                f"{grid.source.backbone}, fold {number} of {len(folds)}", sum(config.epochs for config in configs)
            ),
            kept=kept(one.fold.name),
        )
        for head, (clean_logits, mean_logits) in enumerate(clean_and_mean(fitted, outside)):
            clean[head].append(clean_logits)
            mean[head].append(mean_logits)
    every = np.concatenate([one.fold.held_out for one in folds])
    return SplitLogits(
        logits=np.stack([np.concatenate(clean[number]) for number in of_head]),
        logits_view_mean=np.stack([np.concatenate(mean[number]) for number in of_head]),
        label=images.label[every],
        image_id=tuple(images.image_id[every].tolist()),
        patient_id=tuple(images.patient_id[every].tolist()),
    )


def held_out_of(parts: Sequence[SplitLogits], folds: Sequence[ShiftFold]) -> HeldOut:
    """Bring the grids' logits of the folds together, in the order of the run's heads."""
    first = parts[0]
    sizes = [len(one.fold.held_out) for one in folds]
    return HeldOut(
        split=replace(
            first,
            logits=np.concatenate([part.logits for part in parts]),
            logits_view_mean=np.concatenate([part.logits_view_mean for part in parts]),
        ),
        fold=np.repeat(np.arange(len(folds)), sizes),
        names=tuple(one.fold.name for one in folds),
        kinds=tuple(one.kind for one in folds),
    )
