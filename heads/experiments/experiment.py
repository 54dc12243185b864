"""From feature stores to a saved run: divide the images, fit every head on every store, seal test away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from featcache.errors import RunError, SettingsError, StoreError
from featcache.images import ImageTable, positive_class
from featcache.joined import FeatureSource, stores_of
from featcache.splits import Split, SplitRule, split
from heads.choosing.selection import FOLD_RULES
from heads.experiments.checks import require_classes, require_images, require_views
from heads.experiments.cross_fit import cross_fit, held_out_of, shift_folds
from heads.experiments.grids import StoreGrid
from heads.experiments.held_out import FOLDS_NAME
from heads.experiments.identity import images_sha256, provenance, run_id
from heads.experiments.run_progress import RunProgress
from heads.experiments.runs import FORMAT_VERSION, RUNS_NAME, HeadRecord, Outcome, RunRecord, load_run, save_run
from heads.experiments.split_logits import SplitLogits
from heads.experiments.unfinished import UnfinishedRun
from heads.statistics.metrics import evaluate
from heads.training.config import HeadConfig
from heads.training.feeding import adapted, clean_and_mean, samples_of, window_for
from heads.training.group import FittedHead
from heads.training.train import EpochProgress, KeptGroups, fit


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the fits of a run share.

    Attributes:
        positive: the positive class.
        device: a torch device.
        stream: leave the features in the store.
        adapt: bring val and test to the moments of train.
    """

    positive: int
    device: str
    stream: bool
    adapt: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _StoreHeads:
    """The heads of one store, with their logits by split: (clean, view mean), each [n, K]."""

    fitted: list[FittedHead]
    records: list[HeadRecord]
    val: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    test: list[tuple[NDArray[np.float32], NDArray[np.float32]]]


class Options(TypedDict, total=False):
    """What ``run_experiment`` passes on to ``run_grids``."""

    table: ImageTable | None
    rule: SplitRule
    split_seed: int
    positive: str | None
    device: str
    memory: int | None
    select: str | None
    adapt: bool
    on_progress: Callable[[int, int, str], None] | None


def run_experiment(
    stores: Sequence[FeatureSource],
    dataset: Path,
    configs: Sequence[HeadConfig],
    *,
    views: int | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Fit all configurations on all stores and save the run; see ``run_grids``.

    Args:
        stores: features of the same images by different backbones.
        dataset: ``cache/<dataset>``, where the run is saved.
        configs: the heads.
        views: views to train on; None takes all that every image has.
        options: as ``run_grids`` takes them.
    """
    grids = [StoreGrid.of(store, configs, views) for store in stores]
    return run_grids(grids, dataset, **options)


def run_grids(
    grids: Sequence[StoreGrid],
    dataset: Path,
    *,
    table: ImageTable | None = None,
    rule: SplitRule = "patient",
    split_seed: int = 0,
    positive: str | None = None,
    device: str = "cpu",
    memory: int | None = None,
    select: str | None = "clean",
    adapt: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Fit the heads of every grid and save them as one run.

    A run is determined by its images, features, split and configurations: the same ones again are not trained
    again but read back. An interrupted one goes on after the last group of heads that was trained, and ends with the
    same heads.

    Args:
        grids: what is fitted on which features; all of the same images.
        dataset: ``cache/<dataset>``, where the run is saved.
        table: the data set's images as they are now; None takes the first store's.
        rule: how the images are divided.
        split_seed: the seed of that.
        positive: name of the positive class; None takes the second.
        device: a torch device.
        memory: bytes for the features of a store at most (``heads.training.streaming``): what is larger is read in
            shuffle windows, whose size is part of each head's configuration; None reads everything into memory.
        select: the rule that will select. For one of ``heads.choosing.selection.FOLD_RULES`` each configuration is
            fitted also without each of several folds of train and val (``heads.experiments.cross_fit``), which copies
            the features; None does so where there are patients enough and no limit to the memory.
        adapt: bring val, test and folds to the moments of train (``heads.training.feeding.adapted``): transductive.
        on_progress: told the epochs done of all heads, the epochs in all, and how it goes.

    Raises:
        StoreError: a store lacks images or views, or two stores do not fit.
        DataError: the split leaves a part empty, or there is no such class.
        RunError: the train split has one class, or a head diverged.
        SettingsError: the memory is too little for the smallest window, or for folds.
        WriteError: the disk is full.
    """
    if not grids:
        raise StoreError(f"no feature stores in {dataset}: run 'cxr extract' first")
    first = stores_of(grids[0].source)[0]
    images = first.image_table if table is None else table
    for grid_ in grids:
        for store in stores_of(grid_.source):
            require_images(store, images, first)
            require_views(store, grid_.views)
    divided = split(images, rule, seed=split_seed)
    require_classes(images, divided)
    positive_index = positive_class(images.classes, positive)
    sizes = len(divided.train), len(divided.val), len(divided.test)
    windows = [window_for(grid_, sizes, memory) for grid_ in grids]
    grids = [_windowed(grid_, window) for grid_, window in zip(grids, windows, strict=True)]
    streamed = any(window is not None for window in windows)
    if select in FOLD_RULES:
        shifts = shift_folds(images, divided, select)
    else:
        shifts = shift_folds(images, divided) if select is None and memory is None else ()
    if (shifts or adapt) and streamed:
        raise SettingsError(
            "folds are held out, and splits adapted, in memory: give more --memory, select by clean or views, or leave "
            "--adapt out"
        )
    name = run_id(grids, images, divided, positive_index, [one.fold.name for one in shifts], adapt=adapt)
    folder, unfinished = dataset / RUNS_NAME / name, UnfinishedRun(dataset, name)
    if (known := _known(folder)) is not None:
        unfinished.remove()
        return known
    # Before heads are trained: what cannot be told of the machine must not cost them.
    made_with, started = provenance(device), time.perf_counter()
    results: list[_StoreHeads] = []
    held_out: list[SplitLogits] = []
    progress = RunProgress(grids, shifts, on_progress)
    for grid_, window in zip(grids, windows, strict=True):
        kept = partial(unfinished.of, grid_.source.fingerprint, grid_.views)
        how = Conditions(positive=positive_index, device=device, stream=window is not None, adapt=adapt)
        backbone, epochs = grid_.source.backbone, sum(config.epochs for config in grid_.configs)
        told = progress.fit(backbone, epochs)
        results.append(_fit_store(grid_, images, divided, how, told, kept()))
        if shifts:
            held_out.append(
                cross_fit(grid_, images, divided, shifts, device=device, adapt=adapt, kept=kept, tell=progress.fit)
            )
    record = RunRecord(
        format_version=FORMAT_VERSION,
        run_id=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dataset.name,
        images_sha256=images_sha256(images),
        classes=images.classes,
        positive=positive_index,
        split_rule=rule,
        split_seed=split_seed,
        n={"train": len(divided.train), "val": len(divided.val), "test": len(divided.test)},
        straddling=len(divided.straddling),
        seconds=time.perf_counter() - started,
        provenance=made_with,
        heads=tuple(record for result in results for record in result.records),
    )
    with unfinished.exclusive():
        # Another process may have made the same run meanwhile: a whole one is never replaced.
        if (known := _known(folder)) is None:
            save_run(
                dataset,
                record,
                [head.weights.tensors() for result in results for head in result.fitted],
                _split_logits(images, divided.val, [pair for result in results for pair in result.val]),
                _split_logits(images, divided.test, [pair for result in results for pair in result.test]),
                {FOLDS_NAME: held_out_of(held_out, shifts).to_bytes()} if shifts else None,
            )
        unfinished.remove()
    return known or Outcome(folder=folder, record=record, reused=False, continued=unfinished.heads)


def _known(folder: Path) -> Outcome | None:
    """The run that is saved there."""
    if not (folder / "run.json").is_file():
        return None
    try:
        known = Outcome(folder=folder, record=load_run(folder), reused=True)
    except RunError:
        return None  # A damaged run is made again.
    (folder / "run.json").touch()  # The report takes the run that was asked for last.
    return known


def _fit_store(
    grid_: StoreGrid,
    images: ImageTable,
    divided: Split,
    how: Conditions,
    on_epoch: Callable[[EpochProgress], None] | None,
    kept: KeptGroups,
) -> _StoreHeads:
    store, count = grid_.source, grid_.views
    label, splits = images.label, (divided.train, divided.val, divided.test)
    train_samples, val_samples, test_samples = samples_of(store, images, splits, count, stream=how.stream)
    if how.adapt:
        val_samples, test_samples = adapted(train_samples, val_samples), adapted(train_samples, test_samples)
    fitted = fit(train_samples, val_samples, grid_.configs, device=how.device, on_epoch=on_epoch, kept=kept)
    val, test = clean_and_mean(fitted, val_samples), clean_and_mean(fitted, test_samples)
    records = [
        HeadRecord(
            backbone=store.backbone,
            fingerprint=store.fingerprint,
            views=count,
            adapted=how.adapt,
            config=head.config,
            class_weight=head.class_weight,
            history=head.history,
            best_epoch=head.best_epoch,
            stop_reason=head.stop_reason,
            penalty=head.history.penalty[head.best_epoch],
            val=evaluate(val[number][0], label[divided.val], how.positive),
            val_view_mean=evaluate(val[number][1], label[divided.val], how.positive),
        )
        for number, head in enumerate(fitted)
    ]
    return _StoreHeads(fitted=fitted, records=records, val=val, test=test)


def _split_logits(
    images: ImageTable, rows: NDArray[np.int64], pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> SplitLogits:
    return SplitLogits(
        logits=np.stack([clean for clean, _ in pairs]),
        logits_view_mean=np.stack([mean for _, mean in pairs]),
        label=images.label[rows],
        image_id=tuple(images.image_id[rows].tolist()),
        patient_id=tuple(images.patient_id[rows].tolist()),
    )


def _windowed(grid_: StoreGrid, window: int | None) -> StoreGrid:
    """The same heads, with the shuffle window that the memory allows."""
    if window is None:
        return grid_
    return replace(grid_, configs=tuple(replace(config, window=window) for config in grid_.configs))
