"""Pairs of heads on the same images: each row against the selected one, and the view mean against the clean view.

What is selected has been selected by val. These tests say how far test tells the rows apart; they choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.choosing.rows import Row
from heads.experiments.split_logits import KINDS, Kind, SplitLogits
from heads.statistics.metrics import probabilities
from heads.statistics.operating_point import OperatingPoint
from heads.statistics.paired import PairedTest, delong, holm, mcnemar

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A paired test, with its p corrected for the number of rows that were tested (Holm)."""

    test: PairedTest
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the rows differ at 5 % after the correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        """The stable form ``{"difference", "p", "method", "p_holm"}``."""
        return {**self.test.to_json(), "p_holm": self.p_holm}


@dataclass(frozen=True, kw_only=True)
class AgainstSelected:
    """A row less the selected one of its split, on test; each by the head that stands for it.

    Attributes:
        selected: the name of the selected row.
        auc: DeLong's test; None for more than two classes, or where a class has no images.
        accuracy: McNemar's, at threshold 0.5.
        points: McNemar's by rule, each row at its own threshold.
    """

    selected: str
    auc: Corrected | None
    accuracy: Corrected
    points: Mapping[str, Corrected]

    def to_json(self) -> dict[str, Any]:
        """The stable form."""
        points = [{"rule": rule, "accuracy": one.to_json()} for rule, one in self.points.items()]
        auc = self.auc.to_json() if self.auc else None
        return {"selected": self.selected, "auc": auc, "accuracy": self.accuracy.to_json(), "operating_points": points}


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What the mean over the views brings over the clean view, of one head on one split.

    Attributes:
        auc: DeLong's test; None where it is undefined.
        accuracy: McNemar's, at threshold 0.5.
    """

    auc: PairedTest | None
    accuracy: PairedTest

    def to_json(self) -> dict[str, Any]:
        """The stable form."""
        return {"auc": self.auc.to_json() if self.auc else None, "accuracy": self.accuracy.to_json()}


def gain_of_views(row: Row, split: SplitLogits) -> Gain:
    """Test the view mean against the clean view, of the head that stands for a row."""
    clean, mean = (split.of(kind)[row.best] for kind in KINDS)
    positive, patient = row.run.positive, split.patient
    return Gain(
        auc=_delong(mean, clean, split.label == positive, positive, patient),
        accuracy=mcnemar(_decisions(mean, positive), _decisions(clean, positive), split.label, patient),
    )


def against_selected(rows: Sequence[Row], tests: Sequence[SplitLogits], kind: Kind) -> list[AgainstSelected | None]:
    """Test each row against the selected one of its split.

    The p of rows with the same selected row are corrected together, each figure and rule by itself.

    Args:
        rows: as a decision has them.
        tests: their logits of test.
        kind: which logits.

    Returns:
        One a row; None for the selected rows, and for those on other images or classes than theirs.
    """
    found: list[AgainstSelected | None] = [None] * len(rows)
    for chosen, chosen_test in zip(rows, tests, strict=True):
        if not chosen.selected:
            continue
        mine = [
            number
            for number, (row, test) in enumerate(zip(rows, tests, strict=True))
            if row is not chosen
            and row.split == chosen.split
            and row.run.positive == chosen.run.positive
            and test.image_id == chosen_test.image_id
            and np.array_equal(test.label, chosen_test.label)
        ]
        pairs = [_pair(rows[number], tests[number], chosen, chosen_test, kind) for number in mine]
        for number, pair in zip(mine, _corrected(pairs), strict=True):
            found[number] = pair
    return found


def _pair(row: Row, test: SplitLogits, chosen: Row, chosen_test: SplitLogits, kind: Kind) -> AgainstSelected:
    positive, label, patient = row.run.positive, test.label, test.patient
    one, other = test.of(kind)[row.best], chosen_test.of(kind)[chosen.best]
    ours, theirs = row.choices[kind].operating_points, chosen.choices[kind].operating_points

    def accuracy(a: OperatingPoint | None = None, b: OperatingPoint | None = None) -> Corrected:
        decisions = _decisions(one, positive, a), _decisions(other, positive, b)
        return Corrected(test=mcnemar(*decisions, label, patient))

    auc = _delong(one, other, label == positive, positive, patient)
    return AgainstSelected(
        selected=chosen.name,
        auc=Corrected(test=auc) if auc else None,
        accuracy=accuracy(),
        points={rule: accuracy(ours[rule][row.best], theirs[rule][chosen.best]) for rule in ours if rule in theirs},
    )


def _corrected(pairs: Sequence[AgainstSelected]) -> list[AgainstSelected]:
    if not pairs:
        return []

    def correct(tests: Sequence[Corrected | None]) -> list[Corrected | None]:
        corrected = holm([one.test.p if one else None for one in tests])
        return [replace(one, p_holm=p) if one else None for one, p in zip(tests, corrected, strict=True)]

    rules = list(pairs[0].points)
    by_rule = {rule: correct([pair.points.get(rule) for pair in pairs]) for rule in rules}
    made: list[AgainstSelected] = []
    aucs, accuracies = correct([pair.auc for pair in pairs]), correct([pair.accuracy for pair in pairs])
    for number, (pair, auc, accuracy) in enumerate(zip(pairs, aucs, accuracies, strict=True)):
        points = {rule: one for rule in rules if (one := by_rule[rule][number]) is not None}
        assert accuracy is not None
        made.append(replace(pair, auc=auc, accuracy=accuracy, points=points))
    return made


def _decisions(logits: NDArray[np.floating], positive: int, point: OperatingPoint | None = None) -> NDArray[np.int64]:
    if logits.shape[1] != 2:
        decided: NDArray[np.int64] = logits.argmax(axis=1)
        return decided
    probability = probabilities(logits)[:, positive]
    decisions: NDArray[np.int64] = np.where(probability >= (point.threshold if point else 0.5), positive, 1 - positive)
    return decisions


def _delong(
    one: NDArray[np.floating],
    other: NDArray[np.floating],
    truth: NDArray[np.bool_],
    positive: int,
    patient: NDArray[np.intp],
) -> PairedTest | None:
    if one.shape[1] != 2:
        return None
    return delong(probabilities(one)[:, positive], probabilities(other)[:, positive], truth, patient)
