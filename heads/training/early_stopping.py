"""A head's history, and when it stops."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from heads.training.config import HeadConfig

StopReason = Literal["epochs", "patience", "not finite"]


@dataclass(frozen=True, kw_only=True)
class History:
    """One figure an epoch; all of one length, all finite.

    ``train_loss`` is the class-weighted cross-entropy that was descended and ``train_accuracy`` goes with it,
    both means over the epoch while the head changes. ``penalty`` is λ·Σw² after the epoch. ``val_loss`` and
    ``val_accuracy`` are of the clean view, unweighted; ``val_loss_view_mean`` is the cross-entropy of the
    logits' mean over the views.
    """

    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    penalty: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    val_loss_view_mean: tuple[float, ...]


FIGURES = tuple(field.name for field in fields(History))


class EarlyStopping:
    """Follows one head: keeps its history, knows its best epoch and says when to stop.

    The best epoch is the first of the lowest val loss. A head stops when ``patience`` epochs in a row brought
    no lower one, when its epochs are used up, or when a figure is not finite; that epoch is not recorded.
    """

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.best_epoch = -1  # none yet
        self.best_loss = math.inf
        self.stopped: StopReason | None = None
        self._epochs: list[dict[str, float]] = []

    def observe(self, figures: dict[str, float]) -> bool:
        """Record an epoch's figures, by the names in ``FIGURES``; return whether it is the best so far."""
        if not all(map(math.isfinite, figures.values())):
            self.stopped = "not finite"
            return False
        epoch = len(self._epochs)
        self._epochs.append(figures)
        if improved := figures["val_loss"] < self.best_loss:
            self.best_epoch, self.best_loss = epoch, figures["val_loss"]
        if epoch - self.best_epoch >= self.config.patience:
            self.stopped = "patience"
        elif epoch + 1 == self.config.epochs:
            self.stopped = "epochs"
        return improved

    @property
    def epochs_run(self) -> int:
        """Epochs observed, but for one that was not finite."""
        return len(self._epochs)

    def resume(self, history: History, stopped: StopReason) -> None:
        """Take over the end of a training that was interrupted after it."""
        for epoch in range(len(history.val_loss)):
            self.observe({name: getattr(history, name)[epoch] for name in FIGURES})
        self.stopped = stopped

    def history(self) -> History:
        """Return what was observed so far."""
        return History(**{name: tuple(epoch[name] for epoch in self._epochs) for name in FIGURES})
