"""Fitting heads: any number of configurations on one train and val split, grouped by shape.

A head's gradient never depends on its neighbours, nor do its batches: a head trained in a grid equals the
same head trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from heads.config import HeadConfig
from heads.early_stopping import EarlyStopping, History
from heads.group import FittedHead, train_group
from heads.model import Layout
from heads.samples import Rows, Samples, check, class_weights, epoch_order

__all__ = ["EpochProgress", "FittedHead", "History", "Samples", "epoch_order", "fit"]

# A group's weights, gradients, moments, batch and activations are walked through in every step; while they
# stay in the last-level cache that costs little beside the products.
CPU_GROUP_BYTES = 24 * 2**20
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
    train: Samples,
    val: Samples,
    configs: Sequence[HeadConfig],
    *,
    device: str = "cpu",
    on_epoch: Callable[[EpochProgress], None] | None = None,
    kept: KeptGroups | None = None,
) -> list[FittedHead]:
    """Train one head for each configuration.

    Args:
        train: the train split.
        val: the val split, which stops the heads and chooses their epoch.
        configs: the heads.
        device: a torch device.
        on_epoch: told after each epoch of each group.
        kept: asked for each group before it is trained, and given it afterwards. Groups are formed of all heads, so
            that those trained before and after an interruption are the same to the bit.

    Returns:
        The fitted heads, in the order of ``configs``.

    Raises:
        RunError: the splits can not train a head, or one diverged in its first epoch; the message says which.
        ValueError: the splits do not fit each other.
    """
    check(train, val)
    place = torch.device(device)
    clean_only = all(config.view_policy == "clean" for config in configs)
    train_rows = Rows.of(train, place, clean_only=clean_only)
    val_rows = Rows.of(val, place)
    weights = [class_weights(train.labels, train.classes, config.class_weights) for config in configs]
    fitted: dict[int, FittedHead] = {}
    for members in _groups(configs, train_rows, train.classes):
        finished = list(fitted.values())
        waiting = [configs[head] for head in range(len(configs)) if head not in fitted and head not in members]

        def tell(
            stoppings: Sequence[EarlyStopping],
            finished: Sequence[FittedHead] = finished,
            waiting: Sequence[HeadConfig] = waiting,
        ) -> None:
            if on_epoch is not None:
                on_epoch(_progress(finished, stoppings, waiting))

        group = [configs[head] for head in members]
        heads = None if kept is None else kept.load(group)
        if heads is None:
            with torch.no_grad():
                heads = train_group(
                    group, [weights[head] for head in members], train_rows, val_rows, train.classes, tell
                )
            if kept is not None:
                kept.keep(heads)
        elif on_epoch is not None:
            on_epoch(_progress([*finished, *heads], (), waiting))
        fitted.update(zip(members, heads, strict=True))
    return [fitted[head] for head in range(len(configs))]


def _groups(configs: Sequence[HeadConfig], train: Rows, classes: int) -> Iterator[list[int]]:
    """Yield the heads of each group: of equal hidden and batch size, and no more than the memory suits."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for head, config in enumerate(configs):
        shapes.setdefault((config.hidden, config.batch_size), []).append(head)
    for (hidden, batch_size), members in shapes.items():
        layout = Layout(features=train.features.shape[1], hidden=hidden, classes=classes)
        size = group_size(layout, min(batch_size, len(train.labels)), train.features.device)
        # Evenly: 9 heads in groups of at most 4 are 3 + 3 + 3.
        count = math.ceil(len(members) / size)
        for part in range(count):
            yield members[part * len(members) // count : (part + 1) * len(members) // count]


def group_size(layout: Layout, batch: int, device: torch.device) -> int:
    """Return how many heads to train at once: as many as the cache, or the accelerator's memory, holds."""
    # Weights, gradient, two moments; the batch; a, c and dh of the backward pass. Four bytes each.
    floats = 4 * layout.width + batch * (layout.features + 3 * layout.hidden)
    budget = float(CPU_GROUP_BYTES)
    if device.type == "cuda":
        budget = DEVICE_GROUP_SHARE * torch.cuda.mem_get_info(device)[0]
    return max(1, int(budget // (4 * floats)))


def _progress(
    finished: Sequence[FittedHead], stoppings: Sequence[EarlyStopping], waiting: Sequence[HeadConfig]
) -> EpochProgress:
    runs = [stopping.epochs_run for stopping in stoppings]
    left = [0 if s.stopped else s.config.epochs - run for s, run in zip(stoppings, runs, strict=True)]
    losses = [head.history.val_loss[head.best_epoch] for head in finished]
    return EpochProgress(
        heads=len(finished) + len(stoppings) + len(waiting),
        heads_done=len(finished) + sum(stopping.stopped is not None for stopping in stoppings),
        epoch=max(runs, default=0),
        head_epochs_done=sum(head.epochs_run for head in finished) + sum(runs),
        head_epochs_left=sum(left) + sum(config.epochs for config in waiting),
        best_val_loss=min(losses + [stopping.best_loss for stopping in stoppings]),
    )
