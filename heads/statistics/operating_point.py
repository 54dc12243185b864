"""Where to cut: a threshold on the probability of the positive class, chosen by a rule that is written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RULES = ("youden", "f1", "sensitivity>=X", "specificity>=X")
"""The known rules; X is a number of 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold, the rule that chose it and the split it came from.

    The positive class is decided from this probability on, as in ``heads.statistics.metrics.evaluate``. It may lie just
    above 1, where deciding none positive is what the rule chose and a probability is 1.
    """

    threshold: float
    rule: str
    split: str


def choose(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], rule: str, *, split: str = "val"
) -> OperatingPoint:
    """Choose the threshold that a rule asks for.

    - ``youden``: the largest sensitivity + specificity - 1 (Youden 1950); of equals, the most sensitive.
    - ``f1``: the largest F1 of the positive class; of equals, the most sensitive.
    - ``sensitivity>=X``: the most specific of those with a sensitivity of X or more; of equals, the most sensitive.
    - ``specificity>=X``: the most sensitive of those with a specificity of X or more; of equals, the most specific.

    No two thresholds decide alike, so nothing is left to chance. The last two rules can always be met, at worst by
    deciding all images positive, or none: whoever asks for more than a head can give gets that, and sees it in the
    other figure. What holds on the split it was chosen on need not hold on another.

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N].
        rule: one of ``RULES``.
        split: where the images come from; never test.

    Raises:
        ValueError: an unknown rule, shapes that do not fit, probabilities outside 0 to 1, a class without images, or
            the test split.
    """
    name, least = parse_rule(rule)
    if split == "test":
        raise ValueError("choose: a threshold chosen on test makes the test figures worthless: choose on val")
    if probability.ndim != 1 or truth.shape != probability.shape:
        got = f"{list(probability.shape)} and {list(truth.shape)}"
        raise ValueError(f"choose: wanted probability and truth, both [N], got {got}")
    positives, negatives = int(np.sum(truth)), int(np.sum(~truth))
    if not positives or not negatives:
        raise ValueError(f"choose: wanted images of both classes, got {positives} positive, {negatives} negative")
    if not np.all((probability >= 0) & (probability <= 1)):
        raise ValueError("choose: wanted probabilities of 0 to 1")
    values, threshold = thresholds(probability)
    # Images decided positive by each threshold: those at or above its value, counted from the top.
    place = np.searchsorted(values, probability.astype(np.float64))
    tp = _from_the_top(np.bincount(place[truth], minlength=len(values)))
    fp = _from_the_top(np.bincount(place[~truth], minlength=len(values)))
    # Integers, or one division of integers: equals are equal, and rounding breaks no tie. The first of the largest
    # is the lowest threshold, and so the most sensitive.
    if name == "youden":
        best = int(np.argmax(tp * negatives - fp * positives))
    elif name == "f1":
        best = int(np.argmax(2 * tp / (tp + fp + positives)))
    elif name == "sensitivity":
        best = int(np.argmin(np.where(tp / positives >= least, fp, negatives + 1)))
    else:
        sensitive = np.where((negatives - fp) / negatives >= least, tp, -1)
        best = len(sensitive) - 1 - int(np.argmax(sensitive[::-1]))  # the last of the largest: the most specific
    return OperatingPoint(threshold=float(threshold[best]), rule=rule, split=split)


def parse_rule(rule: str) -> tuple[str, float]:
    """Take a rule apart: its name, and X or 0.

    Raises:
        ValueError: an unknown rule, or an X that is not a number of 0 to 1.
    """
    if rule in ("youden", "f1"):
        return rule, 0.0
    name, sign, number = rule.partition(">=")
    if sign and name in ("sensitivity", "specificity"):
        try:
            least = float(number)
        except ValueError:
            least = -1.0
        if 0 <= least <= 1:
            return name, least
        raise ValueError(f"rule {rule!r}: wanted a number of 0 to 1 after '>=', got {number!r}")
    raise ValueError(f"no rule {rule!r}; there are: {', '.join(RULES)}")


def thresholds(probability: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The U distinct probabilities in order, [U], and the U + 1 thresholds that tell them apart, ascending, [U + 1].

    The first decides all images positive, the last none. Those between lie halfway between neighbours: a threshold
    that sat on an image would hang on the last bit of its probability.
    """
    values = np.unique(probability.astype(np.float64))
    below, above = np.concatenate([[0.0], values]), np.concatenate([values, [1.0]])
    # Halfway between adjacent floats is one of the two; the next above the lower one tells them apart still.
    middle = np.maximum((below + above) / 2, np.nextafter(below, 2.0))
    middle[0] = values[0] / 2  # 0 has nothing below it to be told from
    return values, middle


def _from_the_top(counts: NDArray[np.intp]) -> NDArray[np.int64]:
    """Images at or above each of U values, and 0 above them all: [U] → [U + 1]."""
    return np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]).astype(np.int64)
