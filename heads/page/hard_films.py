"""Which images of a split a head gets most wrong, and of which it is least sure.

Both go by the margin: the log-odds of the class that the image is of, less what the threshold asks of them; for more
than two classes the logit of that class less the largest of the others. It is negative where the decision is wrong,
and near zero where a little more evidence would have turned it. The sign
is that of the decision itself, which no rounding turns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from heads.statistics.metrics import probabilities

SHARPEST = 1e-9
"""Thresholds nearer to 0 or 1 have no log-odds to speak of."""


def margins(
    logits: NDArray[np.floating], label: NDArray[np.int64], positive: int, threshold: float = 0.5
) -> NDArray[np.float64]:
    """How far each image is on the right side of its decision, [n]; never 0.

    Args:
        logits: [n, K].
        label: true classes, [n].
        positive: the positive class, of two.
        threshold: of the positive class's probability; of two classes.
    """
    rows, exact = np.arange(len(label)), logits.astype(np.float64)
    if logits.shape[1] == 2:
        asked = min(max(threshold, SHARPEST), 1 - SHARPEST)
        towards = exact[:, positive] - exact[:, 1 - positive] - math.log(asked / (1 - asked))
        called = probabilities(logits)[:, positive] >= threshold
        right, size = called == (label == positive), np.where(called, towards, -towards)
    else:
        right = exact.argmax(axis=1) == label
        own = exact[rows, label]
        exact[rows, label] = -np.inf
        size = np.abs(own - exact.max(axis=1))
    # On the threshold itself there is no distance, and still a decision.
    size = np.maximum(size, np.finfo(np.float64).tiny)
    signed: NDArray[np.float64] = np.where(right, size, -size)
    return signed


def most_wrong(margin: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Up to ``count`` images that are decided wrongly, the most confidently wrong first."""
    order = np.argsort(margin, kind="stable")
    return order[: min(count, int((margin < 0).sum()))]


def least_sure(margin: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Up to ``count`` images, those nearest to being decided otherwise first."""
    return np.argsort(np.abs(margin), kind="stable")[:count]
