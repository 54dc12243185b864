"""Is one head better than another on the same images? DeLong's test of two AUCs, McNemar's of two accuracies.

Both count patients: with one image a patient they are the textbook tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from heads.statistics.auc import NO_VARIANCE, Components, components, variance
from heads.statistics.intervals import Interval, Z, patients


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A head ``a`` against a head ``b`` on the same images.

    Attributes:
        difference: figure of a less figure of b, with its 95 % interval.
        p: two-sided; None where the images cannot tell.
        method: whose test.
    """

    difference: Interval
    p: float | None
    method: Literal["delong", "mcnemar"]

    def to_json(self) -> dict[str, Any]:
        """The stable form ``{"difference": {"value", "low", "high"}, "p", "method"}``."""
        return {"difference": self.difference.to_json(), "p": self.p, "method": self.method}


def delong(
    a: NDArray[np.floating], b: NDArray[np.floating], truth: NDArray[np.bool_], patient: NDArray[Any] | None
) -> PairedTest | None:
    """Test of two AUCs on the same images (DeLong et al. 1988; Obuchowski 1997 by patient; see ``auc``).

    The AUC is a mean of components, so the variance of a difference is that of the components' differences, and
    z = difference / √variance is normal under equality. It compares heads fitted elsewhere; one nested in the other
    and fitted on these very images it would not (Demler, Pencina and D'Agostino 2012).

    Args:
        a: probabilities of the positive class by the one head, or logits, [N].
        b: by the other, [N].
        truth: whether the image is positive, [N].
        patient: whose image it is, [N]; None counts every image as a patient.

    Returns:
        The test; None where a class has no images. Heads that rank alike have p = 1. Where the AUCs differ without a
        variance (a perfect head against a constant one, a class of one patient), p is None.

    Raises:
        ValueError: shapes do not fit, or there are no images.
    """
    people, number = patients(truth, patient, a, b)
    if truth.all() or not truth.any():
        return None
    one, other = components(a, truth), components(b, truth)
    apart = Components(positive=one.positive - other.positive, negative=one.negative - other.negative)
    if not apart.positive.any() and not apart.negative.any():
        return PairedTest(difference=Interval(value=0.0, low=0.0, high=0.0), p=1.0, method="delong")
    difference, spread = one.auc - other.auc, variance(apart, truth, people, number)
    if not spread > NO_VARIANCE:  # NaN too
        return PairedTest(difference=Interval(value=difference, low=-1.0, high=1.0), p=None, method="delong")
    error = math.sqrt(spread)
    low, high = max(difference - Z * error, -1.0), min(difference + Z * error, 1.0)
    p = float(2 * ndtr(-abs(difference) / error))
    return PairedTest(difference=Interval(value=difference, low=low, high=high), p=p, method="delong")


def mcnemar(a: NDArray[Any], b: NDArray[Any], truth: NDArray[Any], patient: NDArray[Any] | None) -> PairedTest:
    """McNemar's test of two accuracies on the same images, mid-p, by patient.

    Of the images that one head alone decides rightly, each is as likely a's as b's if the heads are equal: a's count
    is binomial with ½ (McNemar 1947). The mid-p value takes what is more extreme and half of what is as extreme. It is
    used for any count, in place of the exact test below 25 and the corrected χ² above: both of these reject too
    seldom, mid-p keeps its level and does not, and nothing jumps at 25 (Fagerland, Lydersen and Laake 2013, BMC
    Medical Research Methodology 13:91).

    By patient: under equality a patient's net difference dₚ, images that a alone has right less those that b alone
    has, is as likely -dₚ (Fisher's randomisation test over patients). |Σ dₚ| is held against Σ ±dₚ over all signs,
    whose distribution is computed exactly. With one image a patient, Σ ±1 is the binomial again.

    The interval of the difference is that of Agresti and Min (2005, Statistics in Medicine 24:729-740), normal after
    half an image is added to each cell of the 2 x 2 table, with patients' sums in the variance.

    Args:
        a: decisions of the one head, any number of classes, [N].
        b: of the other, [N].
        truth: the true classes, coded as the decisions are, [N].
        patient: whose image it is, [N]; None counts every image as a patient.

    Raises:
        ValueError: shapes do not fit, or there are no images.
    """
    people, number = patients(truth, patient, a, b)
    gain = (a == truth).astype(np.int64) - (b == truth)  # 1: a alone is right, -1: b alone
    net = np.rint(np.bincount(number, gain, minlength=people)).astype(np.int64)  # dₚ, [patients]
    images = np.bincount(number, minlength=people)
    total = int(net.sum())
    chance = _chance_of_sums(net)
    size = np.abs(np.arange(len(chance)) - len(chance) // 2)
    # Without any difference, "half of what is as extreme" would claim evidence for one.
    p = min(float(chance[size > abs(total)].sum() + chance[size == abs(total)].sum() / 2), 1.0) if total else 1.0
    count = len(gain) + 2
    centre = total / count
    # The half images come as 1 image of difference 0 and half an image of each of ±1.
    square = float(((net - images * centre) ** 2).sum()) + 1 + 2 * centre**2
    half = Z * math.sqrt(square) / count
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return PairedTest(difference=Interval(value=total / len(gain), low=low, high=high), p=p, method="mcnemar")


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for the number of tests: the largest of (m - i + 1) · p₍ᵢ₎ so far, at most 1 (Holm 1979).

    The chance that any of the true equalities has a corrected p below 0.05 is at most 5 %, however they depend.

    Args:
        p: of m tests; those that are None stay so, and do not count.
    """
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * value, 1.0))
        corrected[place] = largest
    return corrected


def _chance_of_sums(net: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities of the sums Σ ±dₚ with random signs, from -Σ|dₚ| to Σ|dₚ|, [2 Σ|dₚ| + 1]."""
    chance = np.ones(1)
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        # k of the count signs are plus: the sum is size · (2k - count).
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chance = np.convolve(chance, steps)
    return chance
