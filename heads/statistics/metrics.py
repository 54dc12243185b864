"""What a head's logits are worth: figures in float64, at a threshold that is given.

They are scikit-learn's, which the tests hold them to; a report counts thousands, and its checks of every call take
twenty times as long as the counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from heads.statistics.auc import components

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
class DecisionFigures:
    """What decisions between two classes are worth.

    Attributes:
        accuracy: share of right decisions.
        sensitivity: recall of the positive class; None where it has no images.
        specificity: recall of the negative class; None likewise.
        f1: of the positive class; 0 where nothing is positive, neither in truth nor by decision.
        confusion: the decisions, counted.
    """

    accuracy: float
    sensitivity: float | None
    specificity: float | None
    f1: float
    confusion: Confusion


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
    figures = None
    if binary:
        figures = decide(probability[:, positive], labels == positive, threshold)
        decisions = np.where(probability[:, positive] >= threshold, positive, 1 - positive)
    else:
        decisions = probability.argmax(axis=1)
    counts = np.bincount(labels * classes + decisions, minlength=classes**2).reshape(classes, classes)
    return Metrics(
        n=len(labels),
        accuracy=float(np.mean(decisions == labels)),
        loss=float(cross_entropy(logits, labels).mean()),
        auc=_auc(labels, probability, positive),
        f1=figures.f1 if figures else _macro_f1(counts),
        sensitivity=figures.sensitivity if figures else None,
        specificity=figures.specificity if figures else None,
        confusion=figures.confusion if figures else None,
        confusion_matrix=tuple(tuple(line) for line in counts.tolist()),
    )


def decide(probability: NDArray[np.floating], truth: NDArray[np.bool_], threshold: float) -> DecisionFigures:
    """Figures of the decisions of a threshold: positive from it on.

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N].
        threshold: the least probability that is decided positive.
    """
    decision = probability >= threshold
    tn, fp, fn, tp = np.bincount(2 * truth + decision, minlength=4).tolist()
    return DecisionFigures(
        accuracy=(tn + tp) / len(truth),
        sensitivity=_share(tp, fn),
        specificity=_share(tn, fp),
        f1=2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        confusion=Confusion(tn=tn, fp=fp, fn=fn, tp=tp),
    )


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each image, [N], of logits [N, K] and true classes [N]; finite for any finite logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    entropy: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return entropy


def _auc(labels: NDArray[np.int64], probability: NDArray[np.float64], positive: int) -> float | None:
    """Return the AUC, or None where it is undefined: a class without images has no curve."""
    classes = probability.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return components(probability[:, positive], labels == positive).auc
    return float(np.mean([components(probability[:, k], labels == k).auc for k in range(classes)]))


def _macro_f1(counts: NDArray[np.int64]) -> float:
    """Mean over the classes of 2 tp / (2 tp + fp + fn), 0 for a class that neither is there nor is decided."""
    borne = counts.sum(0) + counts.sum(1)
    return float(np.mean(2 * np.diag(counts) / np.maximum(borne, 1)))


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
