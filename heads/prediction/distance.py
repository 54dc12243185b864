"""How far a film lies from those that a head was fitted on, as a rank among the films of val.

A head answers whatever it is shown. Two signals tell what it should not have been shown:

- its *features*: the Mahalanobis distance of the feature scaled to length 1 (Sun et al., ICML 2022) from the mean of
  train, within the first principal axes of train: d² = Σ ((x - m)·aᵢ / sᵢ)² over the axes aᵢ with their standard
  deviations sᵢ (Lee et al., NeurIPS 2018, for one class and in fewer dimensions);
- its *outline* (``featcache.outlines``): one less its correlation with the mean outline of train. A negative has nearly
  the features of the film itself, and the opposite outline.

Each is divided by its 95th percentile of val, so that they compare; the greater one is the distance. The measure and
its numbers were chosen on train and val, and on the foreign pictures of docs/trust.md: of measures that flag 99 % of
each kind of them, the one that flags the fewest of held-out folds (docs/log.md, 2026-11-25). So that those pictures
are flagged is what the choice asked for, and no test of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from featcache.errors import RunError
from featcache.outlines import SIDE

AXES = 128
"""Principal axes at most: 128 · D numbers in a bundle."""

LIMIT = 95.0
"""The percentile past which an answer is flagged: 5 % of val are."""

LEAST_VARIANCE, ROUNDING = 1e-6, 1e-12
"""Along an axis train varies at least so much of what it does along the first, and more than float32 rounds."""

UNITS = (0.95, 0.95)
"""The share of val that lies nearer than 1, by features alone and by outline alone."""

SIGNALS = ("features", "outline")

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said beside an answer.

    Attributes:
        distance: see ``DistanceReference.distance``.
        percentile: share of val films that lie nearer, 0 to 100.
        flagged: whether that is past the limit.
        signal: ``features`` or ``outline``: which of them is the greater.
        words: a sentence for a person; empty where nothing is flagged.
    """

    distance: float
    percentile: float
    flagged: bool
    signal: str
    words: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceReference:
    """What distances are measured by; a bundle keeps it.

    Attributes:
        centre: mean of the train features scaled to length 1, [D] float32.
        axes: their principal axes, each divided by its standard deviation, [D, A] float32.
        outline: mean outline of train scaled to length 1, [64] float32; [0] where there were no pixels to be had.
        units: what divides each signal, [S] float32; S is 2, or 1 without outlines.
        val: each signal of the val films in its unit, [M, S] float32.
        limit: percentile past which an answer is flagged.
    """

    centre: Array
    axes: Array
    outline: Array
    units: Array
    val: Array
    limit: float = LIMIT

    @classmethod
    def fit(
        cls,
        train_features: NDArray[np.floating],
        val_features: NDArray[np.floating],
        train_outlines: Array | None = None,
        val_outlines: Array | None = None,
        *,
        limit: float = LIMIT,
    ) -> Self:
        """Learn what films look like from train, and how far they usually lie from val.

        Args:
            train_features: of the clean view, [N, D]; of several backbones side by side where heads are stacked.
            val_features: [M, D], of patients that are not in train: else all others look far.
            train_outlines: [N', 64], of all train films or of some.
            val_outlines: [M, 64].
            limit: percentile past which an answer is flagged.

        Raises:
            ValueError: fewer than four train films or no val film, train films all alike, shapes that do not fit, or
                features that are not finite.
        """
        if train_features.ndim != 2 or len(train_features) < 4 or not len(val_features):
            raise ValueError(
                f"distance: wanted 4 train films and a val film, got {len(train_features)}, {len(val_features)}"
            )
        if (train_outlines is None) != (val_outlines is None):
            raise ValueError("distance: outlines of train and val go together")
        # normalize refuses what is not finite.
        train = normalize(train_features.astype(np.float32))
        pca = PCA(min(AXES, (len(train) - 1) // 2, train.shape[1] - 1), svd_solver="arpack", random_state=0).fit(train)
        kept = pca.explained_variance_ > max(LEAST_VARIANCE * pca.explained_variance_[0], ROUNDING)
        if not kept.any():
            raise ValueError("distance: all train films have the same features")
        axes = (pca.components_[kept] / np.sqrt(pca.explained_variance_[kept])[:, None]).T
        mean = np.zeros(0) if train_outlines is None else train_outlines.mean(axis=0, dtype=np.float64)
        bare = cls(
            centre=pca.mean_.astype(np.float32),
            axes=np.ascontiguousarray(axes, np.float32),
            outline=(mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32),
            units=np.ones(1 if train_outlines is None else 2, np.float32),
            val=np.zeros((0, 0), np.float32),
            limit=limit,
        )
        signals = bare.signals(val_features, val_outlines)
        if not np.isfinite(signals).all():
            raise ValueError("distance: features of val are not finite")
        shares = [np.quantile(signal, share) for signal, share in zip(signals.T, UNITS, strict=False)]
        units = np.maximum(shares, 1e-6).astype(np.float32)
        return replace(bare, units=units, val=(signals / units).astype(np.float32))

    def signals(
        self, features: NDArray[np.floating], outlines: NDArray[np.floating] | None = None
    ) -> NDArray[np.float64]:
        """Each signal in its unit, [n, S]; infinite where a feature is not finite.

        Args:
            features: of the clean view, [n, D].
            outlines: [n, 64]; where None, or where the reference has none, only the features count: S is 1.

        Raises:
            ValueError: shapes that do not fit.
        """
        if features.ndim != 2 or features.shape[1] != len(self.centre):
            raise ValueError(f"distance: wanted features [n, {len(self.centre)}], got {features.shape}")
        finite = np.isfinite(features).all(axis=1)
        # In double precision, so that a film's rank does not hang on which others are asked about with it.
        along = normalize(np.where(finite[:, None], features, 0).astype(np.float64)) - self.centre
        found = [np.where(finite, np.linalg.norm(along @ self.axes.astype(np.float64), axis=1), np.inf)]
        if outlines is not None and len(self.outline):
            if outlines.shape != (len(features), SIDE * SIDE):
                raise ValueError(f"distance: wanted outlines [{len(features)}, {SIDE * SIDE}], got {outlines.shape}")
            found.append(np.maximum(1 - outlines.astype(np.float64) @ self.outline, 0))
        scaled: NDArray[np.float64] = np.stack(found, axis=1) / self.units[: len(found)]
        return scaled

    def distance(
        self, features: NDArray[np.floating], outlines: NDArray[np.floating] | None = None
    ) -> NDArray[np.float64]:
        """The greatest signal, [n]; about 1 is as far as the farthest twentieth of val. See ``signals``."""
        greatest: NDArray[np.float64] = self.signals(features, outlines).max(axis=1)
        return greatest

    def percentile(
        self, features: NDArray[np.floating], outlines: NDArray[np.floating] | None = None
    ) -> NDArray[np.float64]:
        """Share of val films that lie nearer by the same signals, [n], 0 to 100. See ``signals``."""
        return self._ranks(self.signals(features, outlines))

    def flagged(
        self, features: NDArray[np.floating], outlines: NDArray[np.floating] | None = None
    ) -> NDArray[np.bool_]:
        """Whether that is past the limit, [n]. See ``signals``."""
        return self.percentile(features, outlines) > self.limit

    def judge(self, features: NDArray[np.floating], outlines: NDArray[np.floating] | None = None) -> list[Verdict]:
        """All that is said of each film, in words too. See ``signals``."""
        signals = self.signals(features, outlines)
        ranks, greatest = self._ranks(signals), signals.argmax(axis=1)
        return [
            Verdict(
                distance=float(row.max()),
                percentile=float(rank),
                flagged=bool(rank > self.limit),
                signal=SIGNALS[which],
                words=distance_words(float(rank), self.limit, SIGNALS[which]),
            )
            for row, rank, which in zip(signals, ranks, greatest, strict=True)
        ]

    def _ranks(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        known = np.sort(self.val[:, : signals.shape[1]].max(axis=1))
        # The stored type's rounding must not put a val film before itself.
        nearer = np.searchsorted(known, signals.max(axis=1).astype(np.float32))
        return np.asarray(100 * nearer / len(known), np.float64)

    def to_arrays(self) -> dict[str, Array]:
        """What a bundle stores; ``from_arrays`` reads it."""
        arrays = {name: getattr(self, name) for name in ("centre", "axes", "outline", "units", "val")}
        # safetensors writes the bytes of an array as they lie, whatever its strides.
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()} | {
            "limit": np.array([self.limit], np.float32)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what ``to_arrays`` gave.

        Raises:
            RunError: an array is missing, of another type or shape, or holds what no fit gives.
        """
        wanted = {"centre": 1, "axes": 2, "outline": 1, "units": 1, "val": 2, "limit": 1}
        if arrays.keys() != wanted.keys():
            raise RunError(f"the distance reference is damaged: it has {sorted(arrays)}, wanted {sorted(wanted)}")
        found: dict[str, Array] = {}
        for name, dimensions in wanted.items():
            array = arrays[name]
            if array.dtype != np.float32 or array.ndim != dimensions or not np.isfinite(array).all():
                raise RunError(f"the distance reference is damaged: {name} is not finite float32 of {dimensions} axes")
            found[name] = array.astype(np.float32, copy=False)
        signals = 2 if len(found["outline"]) else 1
        shapes = {
            "axes": (len(found["centre"]), found["axes"].shape[1]),
            "outline": (SIDE * SIDE if signals == 2 else 0,),
            "units": (signals,),
            "val": (len(found["val"]), signals),
            "limit": (1,),
        }
        wrong = [name for name, shape in shapes.items() if found[name].shape != shape]
        empty = [name for name in ("axes", "val") if not found[name].size]
        if wrong or empty:
            raise RunError(f"the distance reference is damaged: {', '.join(wrong or empty)} does not fit")
        limit = float(found["limit"][0])
        if not 0 <= limit <= 100 or (found["units"] <= 0).any() or (found["val"] < 0).any():
            raise RunError("the distance reference is damaged: its limit, units or val are out of range")
        return cls(**{name: found[name] for name in ("centre", "axes", "outline", "units", "val")}, limit=limit)


def distance_words(percentile: float, limit: float = LIMIT, signal: str = "features") -> str:
    """The sentence that a person is shown beside a flagged answer; empty where it is not flagged.

    Args:
        percentile: of the image, 0 to 100.
        limit: past which it is flagged.
        signal: ``features`` or ``outline``: what tells it apart the most.
    """
    if percentile <= limit:
        return ""
    held_out = (
        "all films that were held out" if percentile >= 100 else f"{min(percentile, 99.9):.1f} % of held-out films"
    )
    why = {
        "features": "it may show something else than a chest, or come from another kind of patient or device",
        "outline": "it may be inverted, turned, cut or badly framed, or show something else than a chest",
    }[signal]
    return f"Do not trust this answer: the image lies farther from the films learnt from than {held_out}; {why}."
