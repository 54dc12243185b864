"""How far a run is: the progress of each of its fits, turned into that of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from heads.experiments.cross_fit import ShiftFold, seedless
from heads.experiments.grids import StoreGrid
from heads.training.train import EpochProgress


class RunProgress:
    """Epochs of all fits of a run, in the order in which they are made: of each grid its own, then its folds'."""

    def __init__(
        self,
        grids: Sequence[StoreGrid],
        folds: Sequence[ShiftFold],
        on_progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._tell = on_progress
        self._done = 0
        self._total = 0
        for grid in grids:
            self._total += sum(config.epochs for config in grid.configs)
            self._total += len(folds) * sum(config.epochs for config in seedless(grid.configs))

    def fit(self, what: str, epochs: int) -> Callable[[EpochProgress], None]:
        """Return what a fit tells its progress: ``epochs`` in all, of ``what``. The next fit begins where it ends."""
        self._done += epochs
        end = self._done

        def tell(now: EpochProgress) -> None:
            alive = now.heads - now.heads_done
            remark = f"{what}: {alive} heads left, epoch {now.epoch}, best val loss {now.best_val_loss:.4f}"
            if self._tell is not None:
                self._tell(end - now.head_epochs_left, self._total, remark)

        return tell
