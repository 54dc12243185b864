"""The train films of a model, kept in memory, so that the nearest to a new one are found while somebody waits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.decode import UnreadableImageError
from featcache.images import Strings
from featcache.store import open_store
from featcache.thumbnails import thumbnail
from heads.experiments.runs import RUNS_NAME, load_run
from heads.known_cases.nearest import directions, nearest
from heads.known_cases.neighbours import use_of
from heads.prediction.model import Model

MOST_BYTES = 2**30
"""Of directions in memory: 200,000 films of 1,280 features. A search of more would keep the one who asks waiting."""

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class KnownFilm:
    """One of the nearest train films.

    Attributes:
        image_id: its name in the data set.
        label: its class.
        distance: cosine distance of signed square roots, 0 to 2; see ``heads.known_cases.nearest``. Of several
            networks the mean over them.
    """

    image_id: str
    label: str
    distance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownFilms:
    """What is searched.

    Attributes:
        directions: [N, D] float32 of all sources side by side, each row of length 1.
        widths: features of each source.
        image_id: [N].
        label: [N] class names.
        sha256: [N] content hashes.
    """

    directions: Array
    widths: tuple[int, ...]
    image_id: Strings
    label: Strings
    sha256: Strings

    @classmethod
    def of_run(cls, dataset: Path, model: Model) -> KnownFilms | None:
        """The films that the model's heads were fitted on; None where there are more than memory is meant for.

        Args:
            dataset: ``cache/<dataset>``.
            model: made from a run of it.

        Raises:
            StoreError: a store is not there any more, or damaged.
            RunError: nor is the run.
            DataError: see ``splits.split``.
        """
        run = load_run(dataset / RUNS_NAME / model.provenance["run"])
        stores = [open_store(source.path) for source in model.sources]
        table = stores[0].image_table
        rows = np.flatnonzero(use_of(table, run.split_rule, run.split_seed) == "train")
        names = table.image_id[rows]
        widths = tuple(store.features([str(names[0])]).shape[1] for store in stores)
        if len(rows) * sum(widths) * 4 > MOST_BYTES:
            return None
        found = side_by_side([store.features(names.tolist()) for store in stores])
        label = np.array(table.classes, names.dtype)[table.label[rows]]
        return cls(directions=found, widths=widths, image_id=names, label=label, sha256=table.sha256[rows])

    def nearest_to(self, feature: Array, sha256: str, count: int) -> list[KnownFilm]:
        """The films nearest to one, that with its own bytes left out.

        Args:
            feature: [D] of its clean view, all sources side by side.
            sha256: its content hash.
            count: how many are wanted.
        """
        pieces = np.split(feature[None], np.cumsum(self.widths)[:-1], axis=1)
        itself = (self.sha256 == sha256).astype(np.int64)
        rows = np.arange(len(itself))
        distance, row = nearest(
            side_by_side(pieces), [(rows, self.directions)], count, query_group=np.ones(1, np.int64), pool_group=itself
        )
        return [
            KnownFilm(image_id=str(self.image_id[one]), label=str(self.label[one]), distance=float(far))
            for far, one in zip(distance[0], row[0], strict=True)
            if one >= 0
        ]


def side_by_side(features: list[NDArray[np.float32]]) -> Array:
    """Directions of several sources as one, [N, D] of length 1: its cosine is the mean of theirs."""
    found: Array = np.concatenate([directions(one) for one in features], axis=1)
    found /= np.float32(len(features) ** 0.5)
    return found


class Thumbnails:
    """Small pictures of the data set's films, drawn once each.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: Path) -> None:
        self.of = functools.lru_cache(2048)(functools.partial(_drawn, root))

    def __call__(self, image_id: str) -> bytes | None:
        """A JPEG; None where the film is not there any more."""
        return self.of(image_id)


def _drawn(root: Path, image_id: str) -> bytes | None:
    try:
        return thumbnail(root, image_id)
    except UnreadableImageError:
        return None
