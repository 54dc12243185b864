"""The outline of a film: its clean view averaged over 8 × 8 fields, which says which way up and how dark its parts are.

Networks trained on photographs hardly mind a negative; its outline is the opposite of a film's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import UnreadableImageError
from featcache.images import ImageTable
from featcache.settings import usable_cores
from featcache.spec import FeatureSpec

SIDE = 8


def outline(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness of the fields of a clean view, less their mean and scaled to length 1; zero where all are equal.

    The product of two outlines is the correlation of their fields, -1 to 1: neither exposure nor contrast counts.

    Args:
        view: view 0 of an image as the network is given it, [c, S, S], of 8 pixels a side at least.

    Returns:
        [64] float32, fields row by row.
    """
    # What is grey is its own mean, which numpy would take ten times as long to find.
    grey = view[0].astype(np.float32) if len(view) == 1 else view.mean(axis=0, dtype=np.float32)
    edges = np.arange(SIDE) * grey.shape[0] // SIDE
    sums = np.add.reduceat(np.add.reduceat(grey, edges, axis=0), edges, axis=1)
    widths = np.diff([*edges, grey.shape[0]])
    fields = (sums / np.outer(widths, widths)).ravel()
    fields -= fields.mean()
    length = float(np.linalg.norm(fields))
    # A tenth of a grey level in all is rounding, not a film.
    return np.asarray(fields / length if length > 0.1 else np.zeros_like(fields), np.float32)


def outlines_of(
    table: ImageTable, rows: NDArray[np.int64], root: Path, spec: FeatureSpec, threads: int | None = None
) -> NDArray[np.float32]:
    """Outlines of some images of a data set, [n, 64] float32, read from their files.

    Args:
        table: the images, with their hashes.
        rows: which of them, [n].
        root: the folder that their ids are relative to.
        spec: says how a file becomes the clean view.
        threads: readers; as many as read best when None.

    Raises:
        UnreadableImageError: a file is missing, cannot be read, or has changed since the store was made; the message
            begins with the image's id.
    """
    # Here, so that those who have views need no torch.
    from featcache.loading import Rendering, Wanted, are_small, decoders_for, load_ahead
    from featcache.making import geometry_of

    clean = Rendering(geometry=geometry_of(spec), floor=spec.decode_floor, views=range(1))
    names: Sequence[str] = table.image_id[rows].tolist()
    digests: Sequence[str] = table.sha256[rows].tolist()
    work = (
        Wanted(image_id=name, sha256=digest, renderings=frozenset([clean]))
        for name, digest in zip(names, digests, strict=True)
    )
    found = np.empty((len(names), SIDE * SIDE), np.float32)
    small = are_small(table.height[rows].astype(np.int64) * table.width[rows])
    with load_ahead(root, work, threads or decoders_for(usable_cores(), small_films=small)) as images:
        for place, name, image in zip(found, names, images, strict=True):
            if image.reason:
                raise UnreadableImageError(f"{name}: {image.reason}")
            place[:] = outline(image.views[clean][0])
    return found
