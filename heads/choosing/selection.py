"""Choosing: among rows, thresholds, temperatures and ensembles. It is given train and val, and nothing else.

Neither this module nor anything that it imports can reach ``heads.reporting.sealed``, which alone reads the logits of
test (docs/adr/0006-sealed-test.md); ``tests/test_layering.py`` keeps it so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from heads.statistics.calibration import TEMPERATURES, fit_temperature
from heads.statistics.metrics import probabilities
from heads.statistics.operating_point import OperatingPoint, choose

SELECTION_RULES = {
    "clean": "lowest mean val loss of the clean view",
    "views": "lowest mean val loss of the mean over the views",
    "blocks": "lowest mean loss on held-out blocks of consecutive patients",
    "series": "lowest mean loss on held-out name series",
    "worst": "lowest loss on the worst of the held-out blocks and series",
}
"""The rules, each by the name of the score that it compares, in words."""

FOLD_RULES = ("blocks", "series", "worst")
"""Those that need heads fitted without whole folds of train and val (``heads.experiments.cross_fit``)."""

OPERATING_RULES = ("youden", "sensitivity>=0.95", "f1")
"""The operating points that a report always has."""

MOST_BACKBONES = 8
"""Subsets are tried of so many members at most: 255 of them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table as selection sees it. It has no room for a test figure.

    Attributes:
        name: what it is called.
        scores: by the name of a score its values, one a seed, the lower the better. All are of val or train.
    """

    name: str
    scores: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What val chose for the logits of one kind (clean view, or mean over the views) of one row.

    Attributes:
        temperature: of the head that stands for the row.
        operating_points: by rule, one a seed; empty for more than two classes, or where val lacks one.
    """

    temperature: float
    operating_points: Mapping[str, tuple[OperatingPoint, ...]]


def select(candidates: Sequence[Candidate], rule: str = "clean") -> int:
    """Index of the candidate of the lowest mean of the rule's score over its seeds; the first of equals.

    A candidate without that score is passed over.

    Raises:
        ValueError: there are none, or none has the score.
    """
    means = [(_mean(one.scores[rule]), number) for number, one in enumerate(candidates) if rule in one.scores]
    if not means:
        raise ValueError(f"select: wanted at least one candidate with a score {rule!r}, got none of {len(candidates)}")
    return min(means)[1]


def best_seed(candidate: Candidate) -> int:
    """Index of the seed of the lowest val loss (clean view): the head that stands for its row."""
    losses = candidate.scores["clean"]
    return losses.index(min(losses))


def settle(
    logits: NDArray[np.floating], labels: NDArray[np.int64], *, positive: int, best: int, rules: Sequence[str]
) -> Choices:
    """Choose temperature and thresholds of a row on its val logits.

    Args:
        logits: of val, one head a seed, [S, n, K].
        labels: true classes, [n].
        positive: the positive class, of two.
        best: the head that stands for the row, whose temperature is fitted.
        rules: of the operating points, as ``heads.statistics.operating_point.choose`` knows them.
    """
    temperature = fit_temperature(logits[best], labels)
    truth = labels == positive
    if logits.shape[2] != 2 or truth.all() or not truth.any():
        return Choices(temperature=temperature, operating_points={})
    probability = [probabilities(head)[:, positive] for head in logits]
    return Choices(
        temperature=temperature,
        operating_points={rule: tuple(choose(one, truth, rule) for one in probability) for rule in rules},
    )


def scale_of_member(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """What a member's logits [n, K] are divided by before they are averaged with those of other backbones.

    It is the temperature. Members differ in the scale of their logits, by width, penalty and how long they trained; a
    mean of raw logits would weigh each by how sure it is of itself. Divided by their temperatures all are log odds of
    like calibration on val, and count alike (a logarithmic opinion pool of equal weights). Where val cannot tell the
    temperature, as where a member makes no error on it, the scale is 1: else that member would outweigh all others.
    """
    temperature = fit_temperature(logits, labels)
    low, high = TEMPERATURES
    return temperature if low * 1.01 < temperature < high / 1.01 else 1.0


def best_subset(members: int, score: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The subset of two or more members of the lowest score; the first of equals.

    Smaller subsets come first. More than ``MOST_BACKBONES`` members are all taken: their subsets would be too many to
    choose among on one val.

    Args:
        members: how many there are.
        score: of the mean of a subset, on val or on folds of train and val.

    Raises:
        ValueError: fewer than two members.
    """
    everyone = tuple(range(members))
    if members < 2:
        raise ValueError(f"best_subset: wanted two members or more, got {members}")
    if members > MOST_BACKBONES:
        return everyone
    subsets = [subset for size in range(2, members + 1) for subset in combinations(everyone, size)]
    scores = [score(one) for one in subsets]
    return subsets[scores.index(min(scores))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
