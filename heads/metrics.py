"""What a head's logits are worth: figures from scikit-learn, in float64, at a threshold that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, log_loss, roc_auc_score

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Decisions of two classes, counted."""

    tn: int
    fp: int
    fn: int
    tp: int


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of one head on one split.

    Args:
        n: images.
        accuracy: share of right decisions.
        loss: mean cross-entropy, unweighted, without any penalty.
        auc: area under the ROC curve, for K > 2 the macro mean of one against the rest; None where a class
            has no images.
        f1: of the positive class, for K > 2 the macro mean.
        sensitivity: recall of the positive class; None for K > 2 or where it has no images.
        specificity: recall of the negative class; None likewise.
        confusion: decisions of two classes; None for K > 2.
        confusion_matrix: images by true class (rows) and decided class (columns), [K][K].
    """

    n: int
    accuracy: float
    loss: float
    auc: float | None
    f1: float
    sensitivity: float | None
    specificity: float | None
    confusion: Confusion | None
    confusion_matrix: tuple[tuple[int, ...], ...]


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in float64; no logit is too large for it."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = np.exp(shifted)
    result /= result.sum(axis=-1, keepdims=True)
    return result


def evaluate(
    logits: NDArray[np.floating], labels: NDArray[np.int64], positive: int = 1, threshold: float = 0.5
) -> Metrics:
    """Evaluate logits against labels.

    Args:
        logits: logits, [N, K].
        labels: true classes, [N].
        positive: the positive class, of two.
        threshold: of two classes, the positive one is decided from this probability on. More than two are
            decided by the largest logit.

    Raises:
        ValueError: shapes do not fit, there are no images, or a threshold is given for more than two classes.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        got = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"evaluate: wanted logits [N, K] and labels [N], N >= 1, K >= 2, got {got}")
    classes = logits.shape[1]
    binary = classes == 2
    if not 0 <= positive < classes:
        raise ValueError(f"evaluate: wanted positive of 0 to {classes - 1}, got {positive}")
    if not binary and threshold != 0.5:
        raise ValueError(f"evaluate: a threshold ({threshold}) decides between two classes, got {classes}")
    probability = probabilities(logits)
    if binary:
        decisions = np.where(probability[:, positive] >= threshold, positive, 1 - positive)
    else:
        decisions = probability.argmax(axis=1)
    every = list(range(classes))
    counts = confusion_matrix(labels, decisions, labels=every)
    confusion = None
    if binary:
        negative = 1 - positive
        confusion = Confusion(
            tn=int(counts[negative, negative]),
            fp=int(counts[negative, positive]),
            fn=int(counts[positive, negative]),
            tp=int(counts[positive, positive]),
        )
    f1_of = {"labels": [positive], "average": "macro"} if binary else {"labels": every, "average": "macro"}
    return Metrics(
        n=len(labels),
        accuracy=float(np.mean(decisions == labels)),
        loss=float(log_loss(labels, probability, labels=every)),
        auc=_auc(labels, probability, positive),
        f1=float(f1_score(labels, decisions, zero_division=0.0, **f1_of)),
        sensitivity=_share(confusion.tp, confusion.fn) if confusion else None,
        specificity=_share(confusion.tn, confusion.fp) if confusion else None,
        confusion=confusion,
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in counts),
    )


def _auc(labels: NDArray[np.int64], probability: NDArray[np.float64], positive: int) -> float | None:
    """Return the AUC, or None where it is undefined: a class without images has no curve."""
    classes = probability.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(labels == positive, probability[:, positive]))
    return float(roc_auc_score(labels, probability, multi_class="ovr", average="macro", labels=range(classes)))


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
