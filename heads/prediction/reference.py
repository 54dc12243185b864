"""The distances that a run's films have: measured once, kept in the cache.

They are fitted on the train images of the run's split and ranked among its val images; test is not looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featcache import atomic
from featcache.errors import DataError, RunError, UnreadableImageError
from featcache.images import ImageTable
from featcache.outlines import outlines_of
from featcache.splits import split
from featcache.store import FeatureStore
from heads.experiments.runs import RunRecord, load_logits
from heads.prediction.distance import AXES, LIMIT, UNITS, DistanceReference

FOLDER = "distances"

VERSION = 1
"""To be raised when the same films would give another reference."""

MOST_TRAIN, MOST_VAL, MOST_OUTLINES = 20_000, 4_096, 1_024
"""Films that are looked at, evenly over the split: a mean, some axes and a rank want no more."""


def reference_of(
    dataset: Path, folder: Path, run: RunRecord, stores: Sequence[FeatureStore], root: Path | None
) -> tuple[DistanceReference | None, str]:
    """What tells how far a film lies from those that a run was fitted on.

    Args:
        dataset: ``cache/<dataset>``, which keeps it.
        folder: the run's.
        run: the run.
        stores: whose features are taken, side by side.
        root: the data set's folder, whose files give the outlines; where they are not at hand features alone count.

    Returns:
        The reference, or None where it cannot be had; and what a user must know of it.

    Raises:
        StoreError: a store is damaged.
        RunError: the run's logits of val are damaged.
    """
    table = stores[0].image_table
    divided = _split_of(table, run, folder)
    if divided is None:
        return None, "how far films lie is not told: the images have changed since the run, run 'cxr fit-head' again"
    train, val = divided
    for with_outlines in (True, False) if root is not None and root.is_dir() else (False,):
        path = dataset / FOLDER / f"{_key(run, stores, with_outlines)}.safetensors"
        if (known := _read(path)) is not None:
            return known, "" if with_outlines else BY_FEATURES
        outlines: list[NDArray[np.float32]] | None = None
        if with_outlines and root is not None:
            try:
                some = (_evenly(train, MOST_OUTLINES), val)
                outlines = [outlines_of(table, rows, root, stores[0].spec) for rows in some]
            except UnreadableImageError:
                continue
        features = [_features(stores, table, rows) for rows in (train, val)]
        try:
            made = DistanceReference.fit(*features, *(outlines or []))
        except ValueError as error:
            return None, f"how far films lie is not told: {error}"
        atomic.write_bytes(path, save({name: np.ascontiguousarray(one) for name, one in made.to_arrays().items()}))
        return made, "" if with_outlines else BY_FEATURES
    raise AssertionError("the features alone always do")


BY_FEATURES = (
    "the films of the data set are not at hand: how far a film lies is told by features alone, which hardly know a "
    "negative from a film; name their folder with --data"
)


def _split_of(table: ImageTable, run: RunRecord, folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows of train and val, at most as many as are looked at; None where the run's val is another."""
    try:
        divided = split(table, run.split_rule, seed=run.split_seed)
    except DataError:
        return None
    if table.image_id[divided.val].tolist() != list(load_logits(folder).image_id):
        return None
    return _evenly(divided.train, MOST_TRAIN), _evenly(divided.val, MOST_VAL)


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(np.int64)]


def _features(stores: Sequence[FeatureStore], table: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    names = table.image_id[rows].tolist()
    return np.concatenate([store.features(names) for store in stores], axis=1)


def _key(run: RunRecord, stores: Sequence[FeatureStore], with_outlines: bool) -> str:
    """Names a reference by all that determines it."""
    known = [store.fingerprint for store in stores]
    fitted = [VERSION, AXES, LIMIT, UNITS, MOST_TRAIN, MOST_VAL, MOST_OUTLINES, with_outlines]
    content = [run.images_sha256, run.split_rule, run.split_seed, known, fitted]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(path: Path) -> DistanceReference | None:
    """One that was kept; None where there is none, or a damaged one, which is made again."""
    try:
        return DistanceReference.from_arrays(load(path.read_bytes()))
    except (OSError, SafetensorError, ValueError, RunError):
        return None
