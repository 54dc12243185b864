"""Fitting heads: any number of configurations on one train and val split, grouped by shape.

A head's gradient never depends on its neighbours, nor do its batches: a head trained in a grid equals the
same head trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import Protocol

import torch

from featcache.errors import RunError
from featcache.runtime import has_fast_bfloat16
from heads.training.config import HeadConfig, ViewPolicy
from heads.training.early_stopping import EarlyStopping, History
from heads.training.group import FittedHead, train_group
from heads.training.model import Layout
from heads.training.samples import Feed, Rows, Samples, check, class_weights, epoch_order, epoch_stream
from heads.training.scaling import Scaling
from heads.training.streaming import StoredSamples, StreamedRows
from heads.training.workers import run_groups

__all__ = ["EpochProgress", "FittedHead", "History", "Samples", "epoch_order", "fit"]

# A group's weights, gradients, moments, batch and activations are walked through in every step by one thread;
# while those of all threads stay in the last-level cache that costs little beside the products.
CPU_GROUP_BYTES = 12 * 2**20
DEVICE_GROUP_SHARE = 0.5  # of an accelerator's free memory


@dataclass(frozen=True, kw_only=True)
class EpochProgress:
    """Where a fit stands after an epoch of a group.

    Args:
        heads: heads in all.
        heads_done: heads that have stopped.
        epoch: epochs that the group has trained; 0 where it was trained before an interruption.
        head_epochs_done: epochs trained, summed over the heads.
        head_epochs_left: epochs that are left at most; falls faster where heads stop early.
        best_val_loss: the lowest so far of all heads.
    """

    heads: int
    heads_done: int
    epoch: int
    head_epochs_done: int
    head_epochs_left: int
    best_val_loss: float


class KeptGroups(Protocol):
    """Where trained groups are kept, so that an interrupted fit goes on."""

    def load(self, configs: Sequence[HeadConfig]) -> list[FittedHead] | None:
        """Return the group of exactly these heads, where it has been trained before."""

    def keep(self, heads: Sequence[FittedHead]) -> None:
        """Keep a group that has been trained."""


def fit(
    train: Samples | StoredSamples,
    val: Samples | StoredSamples,
    configs: Sequence[HeadConfig],
    *,
    device: str = "cpu",
    on_epoch: Callable[[EpochProgress], None] | None = None,
    kept: KeptGroups | None = None,
) -> list[FittedHead]:
    """Train one head for each configuration.

    Args:
        train: the train split; of ``StoredSamples`` a head reads one window after the other (``HeadConfig.window``).
        val: the val split, which stops the heads and chooses their epoch.
        configs: the heads.
        device: a torch device.
        on_epoch: told after each epoch of each group.
        kept: asked for each group before it is trained, and given it afterwards. Groups are formed of all heads, so
            that those trained before and after an interruption are the same to the bit.

    Returns:
        The fitted heads, in the order of ``configs``.

    Raises:
        StoreError: a part of stored samples is missing or damaged.
        RunError: the splits can not train a head, one diverged in its first epoch, or the device has no fast
            products in the precision asked for; the message says which.
        ValueError: the splits do not fit each other.
    """
    check(train, val)
    _check_precision(configs, device)
    place = torch.device(device)
    clean_only = all(config.view_policy == "clean" for config in configs)
    # One is the whole split where any head's is.
    window = 0 if any(config.window == 0 for config in configs) else max((c.window for c in configs), default=0)
    train_rows = _feed(train, place, window, clean_only=clean_only)
    val_rows = _feed(val, place, window)
    stoppings = [EarlyStopping(config) for config in configs]
    fitted: dict[int, FittedHead] = {}
    in_order = Lock()  # what is told never goes back

    @cache
    def scaling(policy: ViewPolicy) -> Scaling:
        return Scaling.of(train, policy, place)

    def train_members(members: Sequence[int], tell: Callable[[EpochProgress], None]) -> None:
        def tell_progress(epoch: int | None = None) -> None:
            with in_order:
                tell(_progress(stoppings, members, epoch))

        group = [configs[head] for head in members]
        heads = None if kept is None else kept.load(group)
        if heads is None:
            with torch.no_grad():  # which torch keeps a thread
                heads = train_group(
                    [stoppings[head] for head in members],
                    [class_weights(train.labels, train.classes, config.class_weights) for config in group],
                    train_rows,
                    val_rows,
                    train.classes,
                    scaling(group[0].view_policy) if group[0].standardise else None,
                    tell_progress,
                )
            if kept is not None:
                kept.keep(heads)
        else:
            for head, trained in zip(members, heads, strict=True):
                stoppings[head].resume(trained.history, trained.stop_reason)
            tell_progress(epoch=0)
        fitted.update(zip(members, heads, strict=True))

    groups = [partial(train_members, members) for members in _groups(configs, train_rows, train.classes)]
    # An accelerator takes one group after the other, as large as its memory; and so does a budget of memory.
    side_by_side = place.type == "cpu" and not isinstance(train, StoredSamples)
    threads = torch.get_num_threads()
    with closing(run_groups(groups, threads, at_once=threads if side_by_side else 1)) as told:
        for progress in told:
            if on_epoch is not None:
                on_epoch(progress)
    return [fitted[head] for head in range(len(configs))]


def _feed(samples: Samples | StoredSamples, device: torch.device, window: int, *, clean_only: bool = False) -> Feed:
    if isinstance(samples, StoredSamples):
        return StreamedRows(samples, device, window, clean_only=clean_only)
    return Rows.of(samples, device, clean_only=clean_only)


def _check_precision(configs: Sequence[HeadConfig], device: str) -> None:
    if any(config.precision == "bfloat16" for config in configs) and not has_fast_bfloat16(device):
        what = f"{device} has no products in bfloat16 of its own, and emulated ones are slower than float32's"
        raise RunError(f"{what}: say precision float32")


def _groups(configs: Sequence[HeadConfig], train: Feed, classes: int) -> Iterator[list[int]]:
    """Yield the heads of each group: of equal shape and treatment, and no more than the memory suits.

    On a processor also of equal batches, which they then share.
    """
    device = train.device
    alike: dict[tuple[object, ...], list[int]] = {}
    for head, config in enumerate(configs):
        key = (config.hidden, config.batch_size, config.view_policy, config.standardise, config.precision)
        shared = epoch_stream(config) if device.type == "cpu" else ()
        alike.setdefault((*key, config.window, *shared), []).append(head)
    for members in alike.values():
        first = configs[members[0]]
        layout = Layout(features=train.width, hidden=first.hidden, classes=classes)
        size = group_size(layout, min(first.batch_size, train.images), device)
        # Evenly: 9 heads in groups of at most 4 are 3 + 3 + 3.
        count = math.ceil(len(members) / size)
        for part in range(count):
            yield members[part * len(members) // count : (part + 1) * len(members) // count]


def group_size(layout: Layout, batch: int, device: torch.device) -> int:
    """Return how many heads to train at once: as many as the cache, or the accelerator's memory, holds."""
    # Weights, gradient, two moments; a, c and dh of the backward pass, or z and dz of a linear head. Four bytes each.
    floats = 4 * layout.width + batch * (3 * layout.hidden + 2 * layout.classes)
    shared = batch * layout.features  # the batch
    if device.type == "cuda":
        return max(1, int(DEVICE_GROUP_SHARE * torch.cuda.mem_get_info(device)[0] // (4 * (floats + shared))))
    return max(1, (CPU_GROUP_BYTES // 4 - shared) // floats)


def _progress(stoppings: Sequence[EarlyStopping], members: Sequence[int], epoch: int | None) -> EpochProgress:
    return EpochProgress(
        heads=len(stoppings),
        heads_done=sum(stopping.stopped is not None for stopping in stoppings),
        epoch=max(stoppings[head].epochs_run for head in members) if epoch is None else epoch,
        head_epochs_done=sum(stopping.epochs_run for stopping in stoppings),
        head_epochs_left=sum(0 if s.stopped else s.config.epochs - s.epochs_run for s in stoppings),
        best_val_loss=min(stopping.best_loss for stopping in stoppings),
    )
