"""The distances that a run's films have: measured once, kept in the cache.

They are fitted on the train images of the run's split and ranked among its val images; test is not looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featcache import atomic
from featcache.errors import RunError, UnreadableImageError
from featcache.images import ImageTable
from featcache.outlines import outlines_of
from featcache.splits import split
from featcache.store import FeatureStore
from heads.experiments.identity import images_sha256
from heads.experiments.runs import RunRecord
from heads.prediction.distance import AXES, LIMIT, UNITS, DistanceReference

FOLDER = "distances"

VERSION = 2
"""To be raised when the same films would give another reference."""

MOST_TRAIN, MOST_VAL, MOST_OUTLINES = 20_000, 4_096, 1_024
"""Films that are looked at, evenly over the split: a mean, some axes and a rank want no more."""


def reference_of(
    dataset: Path,
    run: RunRecord,
    stores: Sequence[FeatureStore],
    root: Path | None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[DistanceReference | None, str]:
    """What tells how far a film lies from those that a run was fitted on.

    Args:
        dataset: ``cache/<dataset>``, which keeps it.
        run: the run.
        stores: whose features are taken, side by side.
        root: the data set's folder, whose files give the outlines; where they are not at hand, and were not when it
            was measured, features alone count.
        tell: is told, in a line, when many films are about to be read.

    Returns:
        The reference, or None where it cannot be had; and what a user must know of it.

    Raises:
        StoreError: a store is damaged.
    """
    table = table_of(run, stores)
    if table is None:
        return None, CHANGED
    divided = split(table, run.split_rule, seed=run.split_seed)
    train, val = _evenly(divided.train, MOST_TRAIN), _evenly(divided.val, MOST_VAL)
    places = {outlined: dataset / FOLDER / f"{_key(run, stores, outlined)}.safetensors" for outlined in (True, False)}
    if (known := _read(places[True])) is not None:
        return known, ""
    outlines: list[NDArray[np.float32]] = []
    why = "the films of the data set are not at hand"
    if root is not None and root.is_dir():
        some = (_evenly(train, MOST_OUTLINES), val)
        tell(f"measuring how far films lie, once for this run: {sum(map(len, some))} films of {root} are read")
        try:
            outlines = [outlines_of(table, rows, root, stores[0].spec) for rows in some]
        except UnreadableImageError as error:
            why = f"{error} ({root})"
    remark = "" if outlines else f"{why}: {BY_FEATURES}"
    if not outlines and (known := _read(places[False])) is not None:
        return known, remark
    try:
        made = DistanceReference.fit(*(_features(stores, table, rows) for rows in (train, val)), *outlines)
    except ValueError as error:
        return None, f"how far films lie is not told: {error}"
    content = save({name: np.ascontiguousarray(one) for name, one in made.to_arrays().items()})
    atomic.write_bytes(places[bool(outlines)], content)
    return made, remark


CHANGED = "how far films lie is not told: the images have changed since the run, run 'cxr extract' and 'cxr fit-head'"

BY_FEATURES = (
    "how far a film lies is told by features alone, which hardly know a negative from a film; name the folder that "
    "holds the films as they were with --data"
)


def table_of(run: RunRecord, stores: Sequence[FeatureStore]) -> ImageTable | None:
    """The images that a run was fitted on; None where the stores hold others, though by the same names."""
    tables = [store.image_table for store in stores]
    found = next((table for table in tables if images_sha256(table) == run.images_sha256), None)
    if found is None:
        return None
    wanted = set(zip(found.image_id, found.sha256, strict=True))
    return found if all(wanted <= set(zip(one.image_id, one.sha256, strict=True)) for one in tables) else None


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
