"""Films that are nearly the same and should not be: of different patients, or on both sides of train and test.

The rule. d is the distance of a film to its nearest one of another patient (or of its own patient in another folder),
s that to the tenth nearest: how close films lie thereabouts. Of the logarithms of d/s of all films, those below Tukey's
outer fence, Q1 - 3·(Q3 - Q1) (Exploratory Data Analysis, 1977, ch. 2), are far out; a pair whose d/s lies there from
either side is listed. No film is close or far as such: blurred films of infants lie close together all, sharp ones far
apart (on the real set the quotient finds copies at JPEG quality 50 that no limit on d alone does; docs/log.md).
Films with the very same bytes are listed without a rule, and do not take part in it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from featcache.images import ImageTable
from heads.known_cases.nearest import directions, nearest

NEIGHBOURS = 10
"""The rank of s: more copies of one film than that would hide each other, unless their bytes are the same."""

COLUMNS = ("Distance", "Relative", "Labels", "Splits", "First", "Second", "Remark")
EPSILON = float(np.finfo(np.float32).eps)
"""What rounding leaves of a distance of zero."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilmPair:
    """Two films that are the same or nearly so.

    Attributes:
        image_id: which.
        label: their classes.
        patient_id: their patients.
        split: their folders.
        distance: cosine distance of signed square roots; 0 for the same bytes.
        relative_distance: d/s, the lesser of the two sides'; 0 for the same bytes.
        identical: whether their bytes are the same.
    """

    image_id: tuple[str, str]
    label: tuple[str, str]
    patient_id: tuple[str, str]
    split: tuple[str, str]
    distance: float
    relative_distance: float
    identical: bool

    @property
    def remark(self) -> str:
        """What makes the pair worth knowing, in words."""
        return ", ".join(
            said
            for said, holds in (
                ("same bytes", self.identical),
                ("across splits", self.split[0] != self.split[1]),
                ("other label", self.label[0] != self.label[1]),
                ("same patient", self.patient_id[0] == self.patient_id[1]),
            )
            if holds
        )

    def cells(self) -> tuple[str, ...]:
        """The pair as text, in the columns of ``COLUMNS``."""
        label, split = ("/".join(dict.fromkeys(both)) for both in (self.label, self.split))
        figures = f"{self.distance:.4f}", f"{self.relative_distance:.3f}"
        return (*figures, label, split or "–", *self.image_id, self.remark)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """What was found.

    Attributes:
        pairs: those with the same bytes first, then by relative distance.
        fence: the relative distance below which a pair is listed; 0 where there are too few films to say.
        median: of the relative distances of all films to their nearest.
    """

    pairs: tuple[FilmPair, ...]
    fence: float
    median: float


def near_duplicates(table: ImageTable, features: NDArray[np.floating]) -> NearDuplicates:
    """List pairs of films that are nearly the same, of different patients or in different folders.

    Every film is compared with every other: time grows with the square of N (34 million pairs in some two seconds).

    Args:
        table: the images, with content hashes.
        features: of the clean view, [N, D].
    """
    _, first = np.unique(table.sha256.astype(str), return_index=True)
    rows = np.sort(first)
    # Films of one patient in one folder are alike, and may be.
    where = [f"{patient}\0{folder}" for patient, folder in zip(table.patient_id, table.split, strict=True)]
    group = np.unique(np.array(where), return_inverse=True)[1].astype(np.int64)
    queries = directions(features[rows])
    distance, row = nearest(queries, [(rows, queries)], NEIGHBOURS, group[rows], group)
    scale = np.max(distance, axis=1, initial=0, where=np.isfinite(distance))
    full: NDArray[np.bool_] = np.isfinite(distance[:, -1])
    relative = np.maximum(distance, EPSILON) / np.maximum(scale, EPSILON)[:, None]
    pairs = list(_identical(table, group))
    fence, median = 0.0, 1.0
    if full.any():
        # A film with fewer others than ten has no scale of its own.
        logarithm = np.log(relative[full, 0])
        low, middle, high = np.quantile(logarithm, [0.25, 0.5, 0.75])
        fence, median = float(np.exp(low - 3 * (high - low))), float(np.exp(middle))
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for one, place in np.argwhere((relative < fence) & full[:, None]).tolist():
            ends = int(rows[one]), int(row[one, place])
            pair = min(ends), max(ends)
            quotient = min(float(relative[one, place]), found.get(pair, (np.inf, 0.0))[0])
            found[pair] = quotient, float(distance[one, place])
        near = sorted(found.items(), key=lambda item: item[1])
        pairs += [_pair(table, *pair, away, quotient) for pair, (quotient, away) in near]
    return NearDuplicates(pairs=tuple(pairs), fence=fence, median=median)


def _identical(table: ImageTable, group: NDArray[np.int64]) -> Iterator[FilmPair]:
    """Pairs with the same bytes: each film with the first of its content, where patient or folder differ."""
    holders: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(table.sha256):
        holders[digest].append(row)
    for first, *others in holders.values():
        for other in others:
            if group[first] != group[other]:
                yield _pair(table, first, other, 0.0, 0.0, identical=True)


def _pair(
    table: ImageTable, one: int, other: int, distance: float, relative: float, *, identical: bool = False
) -> FilmPair:
    return FilmPair(
        image_id=(table.image_id[one], table.image_id[other]),
        label=(table.classes[table.label[one]], table.classes[table.label[other]]),
        patient_id=(table.patient_id[one], table.patient_id[other]),
        split=(table.split[one], table.split[other]),
        distance=distance,
        relative_distance=relative,
        identical=identical,
    )
