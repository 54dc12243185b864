"""The films of the data set nearest to an image: the cases that a head has learnt from, to look at beside it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError
from featcache.images import ImageTable, Strings, strings
from featcache.named_images import NamedImage, features_of, find_images, only_store
from featcache.settings import Settings
from featcache.splits import SplitRule, patient_groups, split
from featcache.store import FeatureStore
from heads.known_cases.nearest import blocks_of, directions, nearest

COLUMNS = ("Distance", "Label", "Split", "Patient", "Image", "Remark")
USES = ("train", "val", "test", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One of the nearest films.

    Attributes:
        image_id: which.
        label: its class.
        patient_id: its patient.
        split: what the split that heads are fitted with makes of it; empty where that leaves it out.
        distance: cosine distance of signed square roots, 0 to 2; see ``heads.known_cases.nearest``.
        same_patient: whether it is another film of the patient of the image asked about.
    """

    image_id: str
    label: str
    patient_id: str
    split: str
    distance: float
    same_patient: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """An image and the films nearest to it.

    Attributes:
        image: as it was asked for.
        sha256: its content hash.
        label: its class; None, as the next two, where the data set does not hold it.
        patient_id: its patient.
        split: as of a neighbour.
        copies: images of the data set with the very same bytes, itself among them; they are no neighbours.
        neighbours: nearest first.
    """

    image: str
    sha256: str
    label: str | None
    patient_id: str | None
    split: str | None
    copies: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]

    def in_words(self) -> str:
        """What it is and how its neighbours are labelled, in a line."""
        known = ", ".join(filter(None, (self.label, self.split, self.patient_id)))
        votes = Counter(found.label for found in self.neighbours).most_common()
        said = ", ".join(f"{count} {label}" for label, count in votes)
        others = [copy for copy in self.copies if copy != self.image and not self.image.endswith(f"/{copy}")]
        same = f"; the same bytes as {', '.join(others)}" if others else ""
        return f"{self.image} ({known or 'not in the data set'}): {said or 'no films to compare with'}{same}"

    def cells(self) -> list[tuple[str, ...]]:
        """The neighbours as text, in the columns of ``COLUMNS``."""
        return [
            (
                f"{found.distance:.4f}",
                found.label,
                found.split or "–",
                found.patient_id,
                found.image_id,
                "same patient" if found.same_patient else "",
            )
            for found in self.neighbours
        ]


def neighbours(
    images: Sequence[NamedImage],
    features: NDArray[np.float32],
    store: FeatureStore,
    rows: NDArray[np.int64],
    use: Strings,
    *,
    k: int = 5,
    other_patients: bool = False,
) -> list[Neighbourhood]:
    """The k films nearest to each image.

    What has the image's own bytes is left out, since it says nothing but itself; other films of its patient are
    marked.

    Args:
        images: the images asked about.
        features: theirs, [n, D].
        store: the store to search.
        rows: the rows of its image table to search.
        use: [N] what each row is used for: train, val, test, or empty.
        k: films an image.
        other_patients: leave out all films of the image's patient, and of those who share a film with it.

    Raises:
        StoreError: a part is damaged.
    """
    table = store.image_table
    _, content = np.unique(table.sha256.astype(str), return_inverse=True)
    group = patient_groups(table) if other_patients else content.astype(np.int64)
    own = np.array([-1 if image.row is None else group[image.row] for image in images], np.int64)
    distance, row = nearest(directions(features), blocks_of(rows, store), k, own, group)
    return [
        _neighbourhood(image, table, use, near, found) for image, near, found in zip(images, distance, row, strict=True)
    ]


def _neighbourhood(
    image: NamedImage, table: ImageTable, use: Strings, distance: NDArray[np.float32], rows: NDArray[np.int64]
) -> Neighbourhood:
    patient = None if image.row is None else table.patient_id[image.row]
    return Neighbourhood(
        image=image.name,
        sha256=image.sha256,
        label=None if image.row is None else table.classes[table.label[image.row]],
        patient_id=patient,
        split=None if image.row is None else use[image.row],
        copies=tuple(table.image_id[table.sha256 == image.sha256].tolist()),
        neighbours=tuple(
            Neighbour(
                image_id=table.image_id[row],
                label=table.classes[table.label[row]],
                patient_id=table.patient_id[row],
                split=use[row],
                distance=float(near),
                same_patient=table.patient_id[row] == patient,
            )
            for near, row in zip(distance, rows, strict=True)
            if row >= 0
        ),
    )


def use_of(table: ImageTable, rule: SplitRule, seed: int) -> Strings:
    """[N] what a fit by this rule and seed uses each image for: train, val, test, or nothing (empty).

    Raises:
        DataError: see ``splits.split``.
    """
    divided = split(table, rule, seed=seed)
    use = strings([""] * len(table))
    use[divided.train], use[divided.val], use[divided.test] = "train", "val", "test"
    return use


def look_up(
    settings: Settings,
    names: Sequence[str],
    *,
    weights: str | None = None,
    k: int = 5,
    searched: str = "train",
    other_patients: bool = False,
) -> list[Neighbourhood]:
    """What ``cxr neighbours`` shows.

    Args:
        settings: name data set, cache, backbone, split rule and seed.
        names: files or image ids.
        weights: the store's, where they were a file and an image is new.
        k: films an image.
        searched: ``train``, ``val`` or ``test`` of the split that heads are fitted with, or ``all``.
        other_patients: see ``neighbours``.

    Raises:
        CxrError: no such image or store, or no network for a new image.
    """
    store = only_store(settings)
    table = store.image_table
    root = settings.data if settings.data is not None or settings.table is None else settings.table.parent
    images = find_images(names, table, root)
    use = use_of(table, settings.split, settings.split_seed)
    rows = np.flatnonzero(use == searched) if searched != "all" else np.arange(len(table))
    if not len(rows):
        raise DataError(f"{store.path} has no images in {searched}: say --among all")
    features = features_of(images, store, settings, weights)
    return neighbours(images, features, store, rows, use, k=k, other_patients=other_patients)
