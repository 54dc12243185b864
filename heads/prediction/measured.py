"""What test says of a finished model: its figures with intervals, as a bundle keeps and a server tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from heads.experiments.split_logits import KINDS, Kind

NAMES = ("accuracy", "auc", "sensitivity", "specificity", "f1")
"""Figures that are told of a model; what each is: ``heads.statistics.metrics``."""

STRICT = ConfigDict(extra="forbid", strict=True)
"""They are read from bundles of others."""


@dataclass(frozen=True, kw_only=True)
class MeasuredFigure:
    """One figure.

    Attributes:
        name: which of ``NAMES``.
        rule: the operating point at which it holds, or ``0.5``; empty where no threshold moves it.
        value: of the head, or the ensemble, that answers.
        low: lower end of its 95 % interval, by patient.
        high: upper end.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    rule: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All of them.

    Attributes:
        n: images of test.
        patients: they are of so many.
        flagged: share of the images that the distance flags; None where that is not known.
        figures: by kind of logits, those of the clean view and of the mean over the views.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    n: int
    patients: int
    flagged: float | None
    figures: dict[Kind, tuple[MeasuredFigure, ...]]

    @property
    def wrong(self) -> bool:
        """Whether there is a figure that cannot be."""
        figures = [one for of_kind in self.figures.values() for one in of_kind]
        return (
            set(self.figures) != set(KINDS)
            or not 1 <= self.patients <= self.n
            or not (self.flagged is None or 0 <= self.flagged <= 1)
            or not all(one.name in NAMES for one in figures)
            or not all(0 <= number <= 1 for one in figures for number in (one.value, one.low, one.high))
        )
