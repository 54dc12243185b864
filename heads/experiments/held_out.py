"""What heads say of folds held out from train and val (``featcache.folds``): which of them bear a shift.

For each configuration and fold one head is fitted without the fold's patients, with the first seed, and stopped by the
rest of val. Its logits of the fold lie in a run's ``folds.npz``; scores are losses on them, the lower the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from heads.experiments.split_logits import SplitLogits, damaged, logits_in, npz_bytes, read_arrays
from heads.statistics.metrics import cross_entropy

FOLDS_NAME = "folds.npz"

FoldKind = Literal["blocks", "series"]
FOLD_KINDS: tuple[FoldKind, ...] = get_args(FoldKind)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Logits of held-out images, fold after fold; an image stands in as many folds as hold it out.

    Attributes:
        split: the heads' logits, [heads, n, K], heads as the run has them; those that differ in the seed alone share.
        fold: [n] which of the folds.
        names: [F] what each holds out.
        kinds: [F] what kind it is of.
    """

    split: SplitLogits
    fold: NDArray[np.int64]
    names: tuple[str, ...]
    kinds: tuple[FoldKind, ...]

    def losses(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean cross-entropy of logits [n, K] on each fold, [F]."""
        loss = cross_entropy(logits, self.split.label)
        return np.bincount(self.fold, loss, len(self.names)) / np.bincount(self.fold, minlength=len(self.names))

    def scores(self, logits: NDArray[np.floating]) -> dict[str, float]:
        """What selection compares, of logits [n, K]: the mean loss over the folds of a kind, and the worst fold's."""
        losses = self.losses(logits)
        found = {kind: losses[np.array([one == kind for one in self.kinds])] for kind in dict.fromkeys(self.kinds)}
        return {**{kind: float(of.mean()) for kind, of in found.items()}, "worst": float(losses.max())}

    def to_bytes(self) -> bytes:
        """The file's content."""
        return npz_bytes(self.split, {"fold": self.fold, "names": np.array(self.names), "kinds": np.array(self.kinds)})


def load_held_out(folder: Path) -> HeldOut | None:
    """Read a run's logits of held-out folds; None where it was fitted without.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FOLDS_NAME
    if not path.exists():
        return None
    arrays = read_arrays(path)
    split = logits_in(arrays, path)
    if not {"fold", "names", "kinds"} <= arrays.keys():
        raise damaged(path, "it lacks its folds")
    fold, names, kinds = arrays["fold"], tuple(arrays["names"].tolist()), tuple(arrays["kinds"].tolist())
    whole = fold.shape == split.label.shape and fold.dtype == np.int64 and len(names) == len(kinds)
    if not whole or sorted(set(fold.tolist())) != list(range(len(names))) or not set(kinds) <= set(FOLD_KINDS):
        raise damaged(path, "its folds do not fit")
    return HeldOut(split=split, fold=fold, names=names, kinds=kinds)


def pooled(
    members: Sequence[tuple[HeldOut | None, tuple[int, ...], float]],
) -> tuple[HeldOut, NDArray[np.float32]] | None:
    """Mean of the members' logits on the folds (view means), [n, K], as that of ``heads.choosing.rows.logits_of``.

    Args:
        members: a run's held-out logits, which of its heads, and what their mean is divided by.

    Returns:
        None where a run was fitted without folds, or the members' folds are not the same.
    """
    held = [one for one, _, _ in members if one is not None]
    if len(held) < len(members) or not same_folds(held):
        return None
    means = [
        one.split.logits_view_mean[list(heads)].mean(0) / scale
        for one, (_, heads, scale) in zip(held, members, strict=True)
    ]
    return held[0], np.stack(means).mean(0, dtype=np.float32)


def same_folds(held: Sequence[HeldOut]) -> bool:
    """Whether all are of the same folds of the same images."""
    first = held[0]
    return all(
        one.names == first.names
        and one.split.image_id == first.split.image_id
        and np.array_equal(one.fold, first.fold)
        and np.array_equal(one.split.label, first.split.label)
        for one in held
    )
