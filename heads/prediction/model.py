"""Everything that a prediction needs: networks by their specs, heads, temperature, thresholds, the known distances.

A model comes from a run (``from_run.model_of_run``) or from a bundle (``bundle.load_bundle``), and knows nothing of
where it came from but to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from featcache.errors import RunError, UsageError
from featcache.joined import JOINT
from featcache.spec import FeatureSpec
from heads.experiments.split_logits import Kind
from heads.prediction.distance import DistanceReference
from heads.prediction.measured import Measured
from heads.statistics.metrics import probabilities
from heads.statistics.operating_point import OperatingPoint
from heads.training.model import HeadWeights, logits

HALF = OperatingPoint(threshold=0.5, rule="0.5", split="")
"""The larger of two probabilities: what a head decides without a rule."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A frozen network and what it sees of a film.

    Attributes:
        spec: what features are made with.
        path: the store's folder or the bundle's, for errors.
        weights: the file of its weights, where the bundle holds them.
    """

    spec: FeatureSpec
    path: Path
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelMember:
    """Heads on the features of one source, or of several side by side.

    Attributes:
        sources: numbers of the model's sources, in the order of the heads' features.
        heads: their logits are averaged.
        scale: what that mean is divided by before it meets other members', by kind of logits; see
            ``heads.choosing.selection.scale_of_member``.
    """

    sources: tuple[int, ...]
    heads: tuple[HeadWeights, ...]
    scale: Mapping[Kind, float]


@dataclass(frozen=True, kw_only=True)
class ModelChoices:
    """What val chose for the logits of one kind.

    Attributes:
        temperature: T of softmax(logits / T).
        operating_points: by rule; their thresholds are of the probabilities before the temperature, on which they were
            chosen. Empty for more than two classes.
    """

    temperature: float
    operating_points: Mapping[str, OperatingPoint]

    def point(self, rule: str | None) -> OperatingPoint | None:
        """The operating point of a rule, ``0.5``, or the first that val chose (None); None where it chose none.

        Raises:
            RunError: there is none of that rule.
        """
        if rule == HALF.rule:
            return HALF
        if rule is None:
            return next(iter(self.operating_points.values()), None)
        if rule not in self.operating_points:
            known = ", ".join(dict.fromkeys((*self.operating_points, HALF.rule)))
            raise RunError(f"no operating point {rule!r} was chosen on val; there are: {known}")
        return self.operating_points[rule]

    def scaled(self, threshold: float) -> float:
        """Where a threshold lies among the temperature-scaled probabilities of two classes."""
        if not 0 < threshold < 1:
            return threshold
        return float(expit(logit(threshold) / self.temperature))


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One head, or several as an ensemble, ready to judge films.

    Attributes:
        name: what the comparison table calls it.
        dataset: the data set that it was fitted on.
        classes: class names.
        positive: index of the positive class.
        views: views an image that the heads were trained on.
        sources: the networks.
        members: the heads.
        choices: temperature and thresholds, by kind of logits.
        distance: of films from the train images; None where it could not be had.
        provenance: run, heads, versions: what it came from, for a person.
        notes: what a user must know.
        bundle: the hash that names the bundle it came from; empty where it came from a run.
        measured: what test says of it; None where test was not opened.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    positive: int
    views: int
    sources: tuple[Source, ...]
    members: tuple[ModelMember, ...]
    choices: Mapping[Kind, ModelChoices]
    distance: DistanceReference | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bundle: str = ""
    measured: Measured | None = None

    @property
    def origin(self) -> str:
        """Where it came from, in a few words."""
        if self.bundle:
            return f"bundle {self.bundle[:12]}"
        return f"run {self.provenance.get('run', 'not known')}"

    @property
    def fingerprint(self) -> str:
        """The specs' fingerprints, joined as a joined store's."""
        return JOINT.join(source.spec.fingerprint for source in self.sources)

    def point(self, kind: Kind, rule: str | None) -> OperatingPoint | None:
        """By what the positive class is decided; None for more than two classes, of which the likeliest is.

        Args:
            kind: of the logits that are decided on.
            rule: see ``ModelChoices.point``.

        Raises:
            UsageError: a rule for more than two classes.
            RunError: no operating point of that rule was chosen.
        """
        if len(self.classes) == 2:
            return self.choices[kind].point(rule)
        if rule is not None:
            raise UsageError(
                f"--operating-point {rule}: {self.name} ({self.origin}) tells {len(self.classes)} classes apart and "
                "decides for the likeliest: leave it out"
            )
        return None

    def led_by(self, rule: str) -> Model:
        """The same model, whose default operating points are those of a rule; see ``point``.

        Raises:
            UsageError: a rule for more than two classes.
            RunError: no operating point of that rule was chosen.
        """
        led: dict[Kind, ModelChoices] = {}
        for kind, chosen in self.choices.items():
            point = self.point(kind, rule)
            assert point is not None
            led[kind] = replace(chosen, operating_points={rule: point} | dict(chosen.operating_points))
        return replace(self, choices=led)

    def logits(self, features: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits of the clean view and of the mean over the views, [N, K] each, as a run keeps them.

        Args:
            features: of each source, [N, V, D].
        """
        clean, mean = zip(*(_logits_of(member, features) for member in self.members), strict=True)
        if len(self.members) == 1 and len(self.members[0].heads) == 1:
            return clean[0][0], mean[0][0]
        kinds: tuple[Kind, Kind] = ("clean", "view_mean")
        # The same operations in the same order as heads.choosing.rows.logits_of.
        averaged = [
            np.stack([heads.mean(0) / one.scale[kind] for one, heads in zip(self.members, members, strict=True)]).mean(
                0, dtype=np.float32
            )
            for kind, members in zip(kinds, (clean, mean), strict=True)
        ]
        return averaged[0], averaged[1]

    def probability(self, of_logits: NDArray[np.float32], kind: Kind) -> NDArray[np.float64]:
        """Temperature-scaled probabilities [N, K] of logits [N, K]."""
        return probabilities(of_logits.astype(np.float64) / self.choices[kind].temperature)

    def decisions(self, of_logits: NDArray[np.float32], point: OperatingPoint | None) -> NDArray[np.intp]:
        """The decided class of each film, [N], as the report decides: by the probability before the temperature."""
        unscaled = probabilities(of_logits)
        if point is None:
            decided: NDArray[np.intp] = unscaled.argmax(axis=1)
        else:
            assert unscaled.shape[1] == 2, "a threshold decides between two classes"
            decided = np.where(unscaled[:, self.positive] >= point.threshold, self.positive, 1 - self.positive)
        return decided


def _logits_of(
    member: ModelMember, features: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [heads, N, K] of the clean view, and their means over the views."""
    side_by_side = np.concatenate([features[source] for source in member.sources], axis=2)
    images, views, width = side_by_side.shape
    rows = side_by_side.reshape(-1, width)
    # In float64, so that no answer hangs on the films that are asked about together.
    every = np.stack([logits(head, rows, np.float64).reshape(images, views, -1) for head in member.heads])
    return every[:, :, 0], every.mean(axis=2, dtype=np.float32)
