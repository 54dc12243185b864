"""Reading ahead: files to views, in a bounded pool of threads, while the network computes."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.check import read_file
from featcache.decode import UnreadableImageError, decode, oversize_is_an_error
from featcache.images import ImageTable
from featcache.views import Geometry, render

READ_AHEAD = 24
"""Images that may wait, decoded, for the network: enough to even out slow files, and a bound on memory."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Some views of an image by one geometry, decoded no smaller than ``floor`` pixels."""

    geometry: Geometry
    floor: int
    views: range


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """An image's views, [v, c, S, S] uint8 a rendering; or the reason why there are none."""

    views: dict[Rendering, NDArray[np.uint8]]
    reason: str = ""


@contextlib.contextmanager
def load_ahead(
    table: ImageTable, root: Path, work: Sequence[tuple[int, Collection[Rendering]]], threads: int
) -> Iterator[Iterator[ImageViews]]:
    """Yield an iterator over the views of each piece of work, in order, some of it already under way.

    Args:
        table: the images, with hashes.
        root: the folder that ``image_id`` is relative to.
        work: (row of the table, what is wanted of it).
        threads: threads that read, decode and render.
    """
    # Each thread renders one image; torch splitting a small image further would only get in the network's way.
    pool = ThreadPoolExecutor(threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with oversize_is_an_error():
            yield _in_order(pool, table, root, work)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, table: ImageTable, root: Path, work: Sequence[tuple[int, Collection[Rendering]]]
) -> Iterator[ImageViews]:
    under_way: deque[Future[ImageViews]] = deque()
    for row, renderings in work:
        under_way.append(pool.submit(load_image, root, table.image_id[row], table.sha256[row], renderings))
        if len(under_way) >= READ_AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def load_image(root: Path, image_id: str, sha256: str, renderings: Collection[Rendering]) -> ImageViews:
    """Read one file once, decode it once a floor, and render all that is wanted of it.

    The bytes are hashed again: a file that was replaced since the scan would put its features in another's row.
    """
    try:
        data = read_file(root, image_id)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UnreadableImageError("the file changed while the command ran; run it again")
        pixels = {floor: decode(data, floor) for floor in {wanted.floor for wanted in renderings}}
    except UnreadableImageError as error:
        return ImageViews(views={}, reason=str(error))
    return ImageViews(
        views={
            wanted: render(pixels[wanted.floor], sha256, wanted.views, wanted.geometry).numpy() for wanted in renderings
        }
    )
