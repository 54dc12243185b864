"""Reading ahead: files to views, in a bounded pool of threads, while the network computes."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.check import forget_folders, read_file
from featcache.decode import Decoded, UnreadableImageError, decode_for, oversize_is_an_error
from featcache.runtime import keep_to_one_thread
from featcache.views import Geometry, render

T = TypeVar("T")
R = TypeVar("R")

IMAGES_A_TASK = 4
"""To hand a small image to another thread and back costs a third of reading it."""

LEAST_TASKS = 6
"""Tasks that may be under way or wait, decoded, for the network, or two a thread: enough to even out slow files."""

SMALL_FILM = 1_000_000
"""Pixels below which a film is small."""

DECODERS_OF_SMALL = 4
"""Threads of one process that read small films.

Each holds Python's lock for a quarter of a film's time, so that more of them only fight over it: on 16 cores 4 read
2,400 films of 224 pixels a second and 16 read 1,650; of four views 260 and 150 (docs/log.md). A film of native size
takes nine times as long, most of it in decoders that do without the lock.
"""

READ_AHEAD_BYTES = 512 * 2**20
"""What their views may take: a bound on memory, however many views there are."""


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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of one image: its name below the root, the hash of its content, and renderings of it."""

    image_id: str
    sha256: str
    renderings: frozenset[Rendering]


def are_small(pixels: NDArray[np.int64]) -> bool:
    """Whether most films are small, by the pixels of each, [N], 0 where that is not known."""
    known = pixels[pixels > 0]
    return bool(known.size and np.median(known) < SMALL_FILM)


def decoders_for(threads: int, *, small_films: bool) -> int:
    """How many of the threads that there may be read films best."""
    return min(threads, DECODERS_OF_SMALL) if small_films else threads


@contextlib.contextmanager
def load_ahead(root: Path, work: Iterable[Wanted | None], threads: int) -> Iterator[Iterator[ImageViews]]:
    """Yield an iterator over the views of each piece of work, in order, some of it already under way.

    Args:
        root: the folder that ``image_id`` is relative to.
        work: asked for its next piece no sooner than needed; None where that is not known yet.
        threads: threads that read, decode and render.
    """
    with in_threads(lambda one: load_image(root, one), work, threads, lambda one: one.renderings) as images:
        yield images


@contextlib.contextmanager
def in_threads(
    load: Callable[[T], R],
    work: Iterable[T | None],
    threads: int,
    renderings: Callable[[T], Iterable[Rendering]],
) -> Iterator[Iterator[R]]:
    """Yield an iterator over what ``load`` makes of each piece of work; see ``load_ahead``."""
    forget_folders()
    # Each thread renders one image; torch splitting a small image further would only get in the network's way.
    pool = ThreadPoolExecutor(threads, "decode", initializer=keep_to_one_thread)
    try:
        with oversize_is_an_error():
            yield _in_order(pool, load, work, max(LEAST_TASKS, 2 * threads), renderings)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor,
    load: Callable[[T], R],
    work: Iterable[T | None],
    tasks: int,
    renderings: Callable[[T], Iterable[Rendering]],
) -> Iterator[R]:
    under_way: deque[Future[list[R]]] = deque()
    gathered: list[T] = []

    def start() -> None:
        if gathered:
            under_way.append(pool.submit(lambda some: [load(one) for one in some], gathered.copy()))
            gathered.clear()

    for wanted in work:
        if wanted is not None:
            gathered.append(wanted)
        if wanted is None or len(gathered) == IMAGES_A_TASK:
            start()
        # Of one data set all images take about the same room.
        room = 0 if wanted is None else READ_AHEAD_BYTES // (IMAGES_A_TASK * _bytes(renderings(wanted)))
        if under_way and len(under_way) >= min(tasks, room):
            yield from under_way.popleft().result()
    start()
    while under_way:
        yield from under_way.popleft().result()


def _bytes(renderings: Iterable[Rendering]) -> int:
    """What the views of one image take at the most, in bytes."""
    return sum(3 * one.geometry.image_size**2 * len(one.views) for one in renderings)


def load_image(root: Path, wanted: Wanted) -> ImageViews:
    """Read one file once, decode it once a size, and render all that is wanted of it.

    The bytes are hashed again: a file that was replaced since the scan would put its features in another's row.
    """
    try:
        data = read_file(root, wanted.image_id)
        if hashlib.sha256(data).hexdigest() != wanted.sha256:
            raise UnreadableImageError("its content changed while the command ran, or is not that of the table")
        return ImageViews(views=render_all(data, wanted.sha256, wanted.renderings))
    except UnreadableImageError as error:
        return ImageViews(views={}, reason=str(error))


def render_all(data: bytes, sha256: str, renderings: Collection[Rendering]) -> dict[Rendering, NDArray[np.uint8]]:
    """Decode a file once a size, and render all that is wanted of it.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    films = decode_for(data, {rendering.floor for rendering in renderings})
    return {rendering: _rendered(films[rendering.floor], sha256, rendering) for rendering in renderings}


def _rendered(film: Decoded, sha256: str, rendering: Rendering) -> NDArray[np.uint8]:
    return render(film.pixels, sha256, rendering.views, rendering.geometry, (film.height, film.width)).numpy()
