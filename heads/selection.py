"""Choosing among heads. What stands here is given figures of val and of nothing else.

``Candidate`` has no room for a test figure: whoever wants to choose by one has to change this type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the table as selection sees it.

    Attributes:
        name: what it is called.
        val_losses: cross-entropy of the clean view of val, one a seed.
    """

    name: str
    val_losses: tuple[float, ...]


def select(candidates: Sequence[Candidate]) -> int:
    """Index of the candidate of the lowest mean val loss over its seeds; the first of equals.

    Raises:
        ValueError: there are none.
    """
    if not candidates:
        raise ValueError("select: wanted at least one candidate, got none")
    means = [sum(candidate.val_losses) / len(candidate.val_losses) for candidate in candidates]
    return means.index(min(means))


def best_seed(candidate: Candidate) -> int:
    """Index of the seed of the lowest val loss: the head that stands for its row in pictures and matrices."""
    return candidate.val_losses.index(min(candidate.val_losses))
