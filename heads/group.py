"""One group of heads of equal shape, trained together as one tensor program until each has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from featcache.errors import RunError
from heads.adam import Adam
from heads.backprop import backward, inference
from heads.config import HeadConfig
from heads.early_stopping import FIGURES, EarlyStopping, History, StopReason
from heads.model import HeadWeights, Layout
from heads.samples import Feed, Window, batches, epoch_order, gather

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
        self, configs: Sequence[HeadConfig], weights: Sequence[tuple[float, ...]], train: Feed, classes: int
    ) -> None:
        device = train.device
        first = configs[0]
        self.configs = list(configs)
        self.train = train
        self.layout = Layout(features=train.width, hidden=first.hidden, classes=classes)
        self.rows = self.layout.initial([config.seed for config in configs]).to(device)  # [G, width]
        self.best = self.rows.clone()
        self.adam = Adam(len(configs), self.layout.trained, device)
        self.l2 = torch.tensor([[config.l2] for config in configs], device=device)  # [G, 1]
        self.lr = torch.tensor([[config.lr] for config in configs], device=device)  # [G, 1]
        self.class_weight = torch.tensor(weights, dtype=torch.float32, device=device)  # [G, K]
        self.window = first.window
        self.largest_batch = min(first.batch_size, train.images)
        self._allocate()

    def _allocate(self) -> None:
        self.heads = self.layout.views(self.rows)
        self.gradient = torch.zeros_like(self.rows)
        self.gradients = self.layout.views(self.gradient)
        self.batch = self.rows.new_empty(len(self.configs) * self.largest_batch, self.layout.features)

    def train_epoch(self, epoch: int, views: int) -> tuple[Tensor, Tensor]:
        """Take one pass over the train split; return each head's mean loss and accuracy, [G]."""
        loss, correct = torch.zeros(2, len(self.configs), device=self.rows.device)
        seen = 0
        for number, window in enumerate(self.train.windows(epoch, self.window)):
            seen += self._train_window(window, epoch, number, views, loss, correct)
        return loss / seen, correct / seen

    def _train_window(self, window: Window, epoch: int, number: int, views: int, loss: Tensor, correct: Tensor) -> int:
        """Take one pass over a window; add to each head's summed loss and right answers, and return the images."""
        images, device = len(window.labels), self.rows.device
        drawn = [epoch_order(config, epoch, images, views, number) for config in self.configs]
        order = torch.from_numpy(np.stack([order for order, _ in drawn])).to(device)  # [G, N]
        view = torch.from_numpy(np.stack([view for _, view in drawn])).to(device)
        source = window.rows(order, view)
        labels = window.labels[order]
        sample_weight = self.class_weight.gather(1, labels)
        penalised, trained = self.layout.penalised, self.layout.trained
        decays = bool(self.l2.any())
        stop = 0
        for start, stop in batches(images, self.configs[0].batch_size):
            count = len(self.configs) * (stop - start)
            index = source[:, start:stop].reshape(-1)
            gathered = gather(window.features, index, self.batch[:count])
            features = gathered.view(len(self.configs), stop - start, -1)  # [G, B, D]
            figures = backward(
                self.heads, self.gradients, features, labels[:, start:stop], sample_weight[:, start:stop]
            )
            if decays:  # the gradient of λ·Σw² is 2λw
                self.gradient[:, :penalised].addcmul_(self.rows[:, :penalised], 2 * self.l2)
            self.adam.update(self.rows[:, :trained], self.gradient[:, :trained], self.lr)
            loss += figures.loss * (stop - start)
            correct += figures.correct
        return stop

    def penalty(self) -> Tensor:
        """Return each head's λ·Σw², [G]."""
        norm: Tensor = torch.linalg.vector_norm(self.rows[:, : self.layout.penalised], dim=1)
        return self.l2[:, 0] * norm.square()

    def validate(self, val: Feed) -> tuple[Tensor, Tensor, Tensor]:
        """Return each head's val loss and accuracy by the clean view, and its loss by the view mean; [G]."""
        model = inference(self.heads)
        clean, correct, view_mean = torch.zeros(3, len(self.configs), device=self.rows.device)
        for rows, label in val.chunks(chunk_images(val.views)):
            labels = label.expand(len(self.configs), -1)  # [G, n]
            logits = model.logits(rows.float())  # [G, n·V, K]
            by_view = logits.reshape(len(logits), -1, val.views, logits.shape[2])
            logits = by_view.permute(0, 3, 1, 2)  # [G, K, n, V]
            clean += cross_entropy(logits[..., 0], labels, reduction="none").sum(1)
            view_mean += cross_entropy(logits.mean(3), labels, reduction="none").sum(1)
            correct += (logits[..., 0].argmax(1) == labels).sum(1)
        count = val.images
        return clean / count, correct / count, view_mean / count

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all heads but these rows from the computation."""
        self.configs = [self.configs[row] for row in kept]
        rows = torch.tensor(kept, device=self.rows.device)
        self.rows, self.best = self.rows[rows], self.best[rows]
        self.l2, self.lr, self.class_weight = self.l2[rows], self.lr[rows], self.class_weight[rows]
        self.adam.keep(rows)
        self._allocate()


def chunk_images(views: int) -> int:
    """Images of val that are taken at a time."""
    return max(1, VAL_ROWS // views)


def train_group(
    configs: Sequence[HeadConfig],
    weights: Sequence[tuple[float, ...]],
    train: Feed,
    val: Feed,
    classes: int,
    after_epoch: Callable[[Sequence[EarlyStopping]], None],
) -> list[FittedHead]:
    """Train heads of equal hidden size and batch size; in the order given.

    Args:
        configs: the heads.
        weights: the class weights of each, [G, K].
        train: the train split.
        val: the val split.
        classes: K.
        after_epoch: told every head's state, the stopped ones' included.

    Raises:
        RunError: a head's loss is not finite in its first epoch, or its weights overflow.
    """
    group = Group(configs, weights, train, classes)
    stoppings = [EarlyStopping(config) for config in configs]
    best: dict[int, HeadWeights] = {}
    running = list(range(len(configs)))  # the head of each row of the group
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
                best[head] = group.layout.head_weights(group.best[row])
        if 0 < len(kept) < len(running):
            group.keep(kept)
        running = [running[row] for row in kept]
        after_epoch(stoppings)
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
