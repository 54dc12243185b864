"""One group of heads of equal shape, trained together as one tensor program until each has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from featcache.errors import RunError
from heads.training.adam import Adam
from heads.training.backprop import BatchFigures, backward, decide, inference
from heads.training.config import HeadConfig
from heads.training.early_stopping import FIGURES, EarlyStopping, History, StopReason
from heads.training.model import HeadWeights, Layout, fitted
from heads.training.samples import Feed, Window, batches, epoch_order, epoch_stream, gather
from heads.training.scaling import Scaling

VAL_ROWS = 512  # rows of val features at a time: with its activations, what a cache holds


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedHead:
    """A trained head.

    Args:
        config: what made it.
        weights: its weights of the best epoch, BatchNorm's running statistics included.
        history: a figure an epoch.
        best_epoch: the epoch of the lowest val loss, from 0.
        stop_reason: ``epochs``, ``patience``, or ``not finite`` where a later epoch diverged.
        class_weight: the weight of each class in the train loss, [K].
    """

    config: HeadConfig
    weights: HeadWeights
    history: History
    best_epoch: int
    stop_reason: StopReason
    class_weight: tuple[float, ...]

    @property
    def epochs_run(self) -> int:
        """Epochs in the history."""
        return len(self.history.val_loss)


class Group:
    """The heads of a group that are still in training: a row each in every matrix."""

    def __init__(
        self,
        configs: Sequence[HeadConfig],
        weights: Sequence[tuple[float, ...]],
        train: Feed,
        classes: int,
        scaling: Scaling | None = None,
    ) -> None:
        device = train.device
        first = configs[0]
        self.configs = list(configs)
        self.train = train
        self.scaling = scaling
        self.layout = Layout(features=train.width, hidden=first.hidden, classes=classes)
        self.rows = self.layout.initial([config.seed for config in configs]).to(device)  # [G, width]
        self.best = self.rows.clone()
        lr, self.l2 = (torch.tensor(values) for values in ([c.lr for c in configs], [c.l2 for c in configs]))
        self.adam = Adam(lr, self.l2, self.layout.trained, self.layout.penalised, device)
        self.l2 = self.l2.to(device)  # [G]
        self.class_weight = torch.tensor(weights, dtype=torch.float32, device=device)  # [G, K]
        self.window = first.window
        self.largest_batch = min(first.batch_size, train.images)
        self.low = torch.bfloat16 if first.precision == "bfloat16" else None
        self._allocate()

    def _allocate(self) -> None:
        self.heads = self.layout.views(self.rows)
        self.gradient = torch.zeros_like(self.rows)
        self.gradients = self.layout.views(self.gradient)
        # Heads of one seed and policy take the same batches: gathered once, and one matrix for all of them.
        self.streams = list({epoch_stream(config): config for config in self.configs}.values())
        if len(self.streams) > 1:
            self.streams = self.configs
        self.batch = self.rows.new_empty(len(self.streams) * self.largest_batch, self.layout.features)

    def train_epoch(self, epoch: int, views: int) -> tuple[Tensor, Tensor]:
        """Take one pass over the train split; return each head's mean loss and accuracy, [G]."""
        loss, correct = torch.zeros(2, len(self.configs), device=self.rows.device)
        seen = 0
        for number, window in enumerate(self.train.windows(epoch, self.window)):
            for features, labels in self._batches(window, epoch, number, views):
                figures = self.step(features, labels)
                loss += figures.loss * labels.shape[-1]
                correct += figures.correct
                seen += labels.shape[-1]
        return loss / seen, correct / seen

    def _batches(self, window: Window, epoch: int, number: int, views: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a window's batches: features [B, D], labels [B] where all heads take the same, else [G, B, …]."""
        images, device = len(window.labels), self.rows.device
        drawn = [epoch_order(config, epoch, images, views, number) for config in self.streams]
        order = torch.from_numpy(np.stack([order for order, _ in drawn])).to(device)  # [G or 1, N]
        view = torch.from_numpy(np.stack([view for _, view in drawn])).to(device)
        source = window.rows(order, view)
        labels = window.labels[order]
        for start, stop in batches(images, self.configs[0].batch_size):
            index = source[:, start:stop].reshape(-1)
            gathered = gather(window.features, index, self.batch[: len(index)])
            shape = (-1,) if len(self.streams) == 1 else (len(self.streams), stop - start)
            yield gathered.view(*shape, self.layout.features), labels[:, start:stop].reshape(shape)

    def step(self, features: Tensor, labels: Tensor) -> BatchFigures:
        """Take one step with every head.

        Args:
            features: the batch of all heads, [B, D] float32, or one for each, [G, B, D]; changed where heads are
                trained on standardised features.
            labels: [B] or [G, B] int64.

        Returns:
            Figures of the batch before the step.
        """
        labels = labels.view(-1, labels.shape[-1])  # [G or 1, B]
        sample_weight = self.class_weight.gather(1, labels.expand(len(self.configs), -1))
        if self.scaling is not None:
            self.scaling.standardise_(features)
        if self.low is not None:
            features = features.to(self.low)
        figures = backward(self.heads, self.gradients, features, labels, sample_weight)
        self.adam.update(self.rows[:, : self.layout.trained], self.gradient[:, : self.layout.trained])
        return figures

    def penalty(self) -> Tensor:
        """Return each head's λ·Σw², [G]."""
        norm: Tensor = torch.linalg.vector_norm(self.rows[:, : self.layout.penalised], dim=1)
        return self.l2 * norm.square()

    def validate(self, val: Feed) -> tuple[Tensor, Tensor, Tensor]:
        """Return each head's val loss and accuracy by the clean view, and its loss by the view mean; [G]."""
        model = inference(self.heads if self.scaling is None else self.scaling.fold(self.heads))
        clean, correct, view_mean = torch.zeros(3, len(self.configs), device=self.rows.device)
        for rows, label in val.chunks(chunk_images(val.views)):
            labels = label.expand(len(self.configs), -1)  # [G, n]
            logits = model.logits(rows.float())  # [G, K, n·V]
            logits = logits.view(*logits.shape[:2], -1, val.views)
            first = logits[..., 0]
            clean += cross_entropy(first, labels, reduction="none").sum(1)
            correct += (decide(first) == labels).sum(1)
            if val.views > 1:
                view_mean += cross_entropy(logits.mean(3), labels, reduction="none").sum(1)
        count = val.images
        return clean / count, correct / count, (view_mean if val.views > 1 else clean) / count

    def fitted(self, row: int) -> HeadWeights:
        """Copy a head's best weights, for features as they are."""
        heads = self.layout.views(self.best[row : row + 1])
        return fitted(heads if self.scaling is None else self.scaling.fold(heads), 0)

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all heads but these rows from the computation."""
        self.configs = [self.configs[row] for row in kept]
        rows = torch.tensor(kept, device=self.rows.device)
        self.rows, self.best = self.rows[rows], self.best[rows]
        self.l2, self.class_weight = self.l2[rows], self.class_weight[rows]
        self.adam.keep(rows)
        self._allocate()


def chunk_images(views: int) -> int:
    """Images of val that are taken at a time."""
    return max(1, VAL_ROWS // views)


def train_group(
    stoppings: Sequence[EarlyStopping],
    weights: Sequence[tuple[float, ...]],
    train: Feed,
    val: Feed,
    classes: int,
    scaling: Scaling | None,
    after_epoch: Callable[[], None],
) -> list[FittedHead]:
    """Train heads of equal hidden size, batch size, precision and scaling; in the order given.

    Args:
        stoppings: the heads, untrained; each is told its epochs.
        weights: the class weights of each, [G, K].
        train: the train split.
        val: the val split.
        classes: K.
        scaling: what standardises their features, or None.
        after_epoch: called after each epoch; what it raises ends the training.

    Raises:
        RunError: a head's loss is not finite in its first epoch, or its weights overflow.
    """
    group = Group([stopping.config for stopping in stoppings], weights, train, classes, scaling)
    best: dict[int, HeadWeights] = {}
    running = list(range(len(stoppings)))  # the head of each row of the group
    for epoch in _until_all_stopped(stoppings):
        loss, accuracy = group.train_epoch(epoch, val.views)
        val_loss, val_accuracy, view_mean = group.validate(val)
        columns = [loss, accuracy, group.penalty(), val_loss, val_accuracy, view_mean]  # as in FIGURES
        observed = zip(running, torch.stack(columns, 1).tolist(), strict=True)
        improved = [stoppings[head].observe(dict(zip(FIGURES, row, strict=True))) for head, row in observed]
        better = [row for row, is_better in enumerate(improved) if is_better]
        group.best[better] = group.rows[better]
        kept = [row for row, head in enumerate(running) if stoppings[head].stopped is None]
        for row, head in enumerate(running):
            if stoppings[head].stopped is not None:
                _check_finite(stoppings[head], group.best[row])
                best[head] = group.fitted(row)
        if 0 < len(kept) < len(running):
            group.keep(kept)
        running = [running[row] for row in kept]
        after_epoch()
    return [
        _fitted(stopping, best[head], class_weight)
        for head, (stopping, class_weight) in enumerate(zip(stoppings, weights, strict=True))
    ]


def _until_all_stopped(stoppings: Sequence[EarlyStopping]) -> Iterator[int]:
    for epoch in range(max(stopping.config.epochs for stopping in stoppings)):
        if all(stopping.stopped for stopping in stoppings):
            return
        yield epoch


def _check_finite(stopping: EarlyStopping, best: Tensor) -> None:
    """Refuse a head that never had a finite loss, or whose running variance one huge feature has overflowed."""
    head = f"head l2={stopping.config.l2:g}, lr={stopping.config.lr:g}"
    if stopping.best_epoch < 0:
        raise RunError(f"{head}: the loss is not finite in the first epoch; try a smaller learning rate")
    if not best.isfinite().all():
        raise RunError(f"{head}: its weights are not finite; are some features many times larger than the others?")


def _fitted(stopping: EarlyStopping, weights: HeadWeights, class_weight: tuple[float, ...]) -> FittedHead:
    assert stopping.stopped is not None
    return FittedHead(
        config=stopping.config,
        weights=weights,
        history=stopping.history(),
        best_epoch=stopping.best_epoch,
        stop_reason=stopping.stopped,
        class_weight=class_weight,
    )
