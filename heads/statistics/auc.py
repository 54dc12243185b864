r"""The area under the ROC curve with its variance and interval: DeLong's method, by patient.

AUC is the mean of ψ(xᵢ, yⱼ) over all pairs of a positive xᵢ and a negative yⱼ, where ψ is 1 for x > y, ½ for x = y and
0 otherwise. DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44:837-845) split it into structural components

    V₁₀(xᵢ) = 1/n Σⱼ ψ(xᵢ, yⱼ),  V₀₁(yⱼ) = 1/m Σᵢ ψ(xᵢ, yⱼ),  var AUC = var V₁₀ / m + var V₀₁ / n.

Σⱼ ψ(xᵢ, yⱼ) is the place of xᵢ among the sorted negatives, half a step on for each equal one, so sorting finds every
component (as midranks do: Sun and Xu 2014, IEEE Signal Processing Letters 21:1389-1393).

Where patients bring several images, let Xₚ and Yₚ be the sums of V₁₀ - AUC and V₀₁ - AUC over patient p's positive and
negative images. Obuchowski (1997, Biometrics 53:567-578) takes the sums as the independent quantities:

    var AUC = I₁₀/(I₁₀ - 1) Σ Xₚ² / m² + I₀₁/(I₀₁ - 1) Σ Yₚ² / n² + 2 I/(I - 1) Σ XₚYₚ / (mn),

I₁₀ patients with a positive image, I₀₁ with a negative one, I in all. With one image a patient it is DeLong's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from heads.statistics.intervals import Interval, Z, patients

NO_VARIANCE = 1e-24
"""Variances below it are rounding: the components of a perfect or constant head are all equal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Structural components of one AUC: of the positive images [m] and of the negative images [n], in their order."""

    positive: NDArray[np.float64]
    negative: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """The area itself."""
        return float(self.positive.mean())


def components(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> Components:
    """Structural components of the AUC of probabilities [N], or of anything that grows with them."""
    high, low = probability[truth], probability[~truth]
    return Components(positive=_above(high, low), negative=1 - _above(low, high))


def _above(values: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each value the mean of ψ over the others: the share below it, and half of those equal to it."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(others))


def variance(of: Components, truth: NDArray[np.bool_], people: int, number: NDArray[np.intp]) -> float:
    """Obuchowski's variance of an AUC, or of a difference of two when given the differences of their components.

    Args:
        of: the components.
        truth: [N].
        people: how many patients there are.
        number: each image's patient, [N].

    Returns:
        The variance; NaN where one patient alone brings all images of a class.
    """
    m, n = len(of.positive), len(of.negative)
    with_positive, with_negative = len(np.unique(number[truth])), len(np.unique(number[~truth]))
    if min(with_positive, with_negative) < 2:
        return math.nan
    x = np.bincount(number[truth], of.positive - of.positive.mean(), minlength=people) / m
    y = np.bincount(number[~truth], of.negative - of.negative.mean(), minlength=people) / n
    own = with_positive / (with_positive - 1) * float(x @ x) + with_negative / (with_negative - 1) * float(y @ y)
    # The covariance of a patient's two classes is negative as a rule and could carry an estimate below 0.
    return max(own + 2 * people / (people - 1) * float(x @ y), 0.0)


def auc_interval(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], patient: NDArray[Any] | None
) -> Interval | None:
    """AUC with its 95 % interval, normal on the logit scale so that it stays within 0 and 1.

    Pepe (2003), *The Statistical Evaluation of Medical Tests for Classification and Prediction*, chapter 5.

    A perfect or constant head, and a class that one patient alone brings, have no estimate of the variance. They get
    the score interval of Newcombe (2006, Statistics in Medicine 25:559-573, method 5), with patients for images.

    Args:
        probability: of the positive class, or its logit, [N].
        truth: whether the image is positive, [N].
        patient: whose image it is, [N]; None counts every image as a patient.

    Returns:
        The interval; None where a class has no images.

    Raises:
        ValueError: shapes do not fit, or there are no images.
    """
    people, number = patients(truth, patient, probability)
    if truth.all() or not truth.any():
        return None
    parts = components(probability, truth)
    auc, spread = parts.auc, variance(parts, truth, people, number)
    if not spread > NO_VARIANCE:  # NaN too
        return _score_interval(auc, len(np.unique(number[truth])), len(np.unique(number[~truth])))
    # d logit(A) / dA = 1 / (A (1 - A)) carries the standard error over.
    logit, half = math.log(auc / (1 - auc)), Z * math.sqrt(spread) / (auc * (1 - auc))
    low, high = (0.5 * (1 + math.tanh((logit + side * half) / 2)) for side in (-1, 1))
    return Interval(value=auc, low=low, high=high)


def _score_interval(auc: float, m: int, n: int) -> Interval:
    """The θ for which (AUC - θ)² = Z² V(θ): as Wilson's for a share, with the variance at θ and not at the estimate.

    V(θ) = θ (1 - θ) [1 + ((m + n)/2 - 1) ((1 - θ)/(2 - θ) + θ/(1 + θ))] / (mn), after Hanley and McNeil (1982).
    """

    def excess(theta: float) -> float:
        pairs = 1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auc - theta) ** 2 - Z**2 * theta * (1 - theta) * pairs / (m * n)

    # Beside the estimate the variance outweighs the square; at 0 and 1 it vanishes. One sign change on either side.
    low = float(brentq(excess, 0.0, auc - 1e-12)) if auc > 0 else 0.0
    high = float(brentq(excess, auc + 1e-12, 1.0)) if auc < 1 else 1.0
    return Interval(value=auc, low=low, high=high)
