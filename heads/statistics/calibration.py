"""Does a probability of 80 % come true in 80 of 100 images? Figures of calibration, and the temperature that mends it.

The functions speak of the positive class of two. For more classes, give them the largest probability of each image
and whether the decision was right: the calibration of the confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

BINS = 15
"""As in Guo et al. 2017."""

TEMPERATURES = (0.05, 20.0)
"""Temperatures looked at. Logits that are all right call for 0, those without any information for infinity."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images of like probability.

    Attributes:
        probability: their mean probability of the positive class.
        positive: the share of them that are positive.
        n: images.
    """

    probability: float
    positive: float
    n: int


def reliability(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Bins of equal mass, in ascending order: the points of a reliability diagram.

    Equal mass and not equal width: nearly all probabilities of a good head lie close to 0 or 1, where bins of equal
    width put them into two and leave the others to a handful of images. The error estimated from bins of equal mass
    has the smaller bias (Nixon et al. 2019; Roelofs et al. 2022). Equal probabilities share a bin, so bins may hold
    more or fewer than N / bins images; empty ones are left out. The order of the images does not matter.

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N].
        bins: at most so many.

    Raises:
        ValueError: shapes do not fit, there are no images or no bins.
    """
    if probability.ndim != 1 or not len(probability) or truth.shape != probability.shape or bins < 1:
        got = f"{list(probability.shape)}, {list(truth.shape)}, {bins} bins"
        raise ValueError(f"reliability: wanted probability and truth, both [N], N >= 1, and bins >= 1, got {got}")
    # A midrank of 1 to N names the bin; equal probabilities have equal ranks.
    place = ((rankdata(probability) - 0.5) / len(probability) * bins).astype(np.int64)
    n = np.bincount(place, minlength=bins)
    mean = np.bincount(place, probability.astype(np.float64), minlength=bins)
    positive = np.bincount(place, truth, minlength=bins)
    return tuple(
        ReliabilityBin(probability=float(mean[k] / n[k]), positive=float(positive[k] / n[k]), n=int(n[k]))
        for k in np.flatnonzero(n)
    )


def expected_calibration_error(probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int = BINS) -> float:
    """Mean distance of probability and truth over the bins of ``reliability``, weighted by images.

    Naeini, Cooper and Hauskrecht (2015); Guo et al. (2017). With few images a perfectly calibrated head does
    not reach 0 either: chance alone moves a bin of n images by √(p (1 - p) / n).

    Args:
        probability: of the positive class, [N].
        truth: whether the image is positive, [N].
        bins: at most so many.

    Raises:
        ValueError: shapes do not fit, there are no images or no bins.
    """
    parts = reliability(probability, truth, bins)
    return math.fsum(part.n * abs(part.probability - part.positive) for part in parts) / len(probability)


def brier(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Mean square of probability less truth, of the positive class (Brier 1950)."""
    return float(np.mean((probability.astype(np.float64) - truth) ** 2))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature T that makes the cross-entropy of softmax(logits / T) smallest (Guo et al. 2017, §4.2).

    The cross-entropy is convex in 1/T, so it has one valley over log T and a bounded search finds its floor. T keeps
    the order of the probabilities, so the AUC and the decisions at 0.5 of two classes stay as they are; a threshold
    other than 0.5 belongs to the probabilities that it was chosen on.

    Args:
        logits: logits of val, [N, K].
        labels: true classes, [N].

    Returns:
        T > 0, within ``TEMPERATURES``; above 1 for a head that is too sure of itself.

    Raises:
        ValueError: shapes do not fit, or there are no images.
    """
    if logits.ndim != 2 or not len(logits) or labels.shape != logits.shape[:1]:
        got = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"fit_temperature: wanted logits [N, K] and labels [N], N >= 1, got {got}")
    # Less their largest, which any scale leaves the largest: no exponential overflows.
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = float(exact[np.arange(len(exact)), labels].mean())

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.log(np.exp(exact * scale).sum(axis=1)).mean()) - true * scale

    bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))
