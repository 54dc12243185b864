"""Batches of one fixed size, several under way at once, and half the size where memory does not suffice."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BackboneError
from featcache.runtime import Forward, OutOfMemoryError

Compile = Callable[[int], Forward]
"""Makes the function that runs the network on batches of so many images."""


class Runner:
    """Runs one network on batches, as many at once as it has streams.

    Attributes:
        batch_size: images that the network sees at once now.
        notes: what the user should be told, a line each; whoever tells takes them out.
    """

    def __init__(self, name: str, compile_for: Compile, batch_size: int, streams: int) -> None:
        self.name, self.compile_for, self.batch_size = name, compile_for, batch_size
        self.notes: list[str] = []
        self.lock = threading.Lock()
        self.forward = self._compiled()
        self.pool = ThreadPoolExecutor(streams, "forward")
        self.pool.submit(int)  # Starts a thread while there is memory for one.
        # One waiting for each that runs: no stream idles, and no more memory than that is held.
        self.room = threading.BoundedSemaphore(2 * streams)

    def submit(self, views: list[NDArray[np.uint8]]) -> Future[tuple[NDArray[np.float32], int]]:
        """Start a batch of n views, each [c, S, S] uint8 with c = 1 or 3; waits while too many are under way.

        The future gives features [n, D] float32 and the batch size that they were computed at, or raises what
        ``Forward`` raises.
        """
        self.room.acquire()
        future = self.pool.submit(self._run, views)
        future.add_done_callback(lambda _: self.room.release())
        return future

    def close(self) -> None:
        """Drop what has not begun."""
        self.pool.shutdown(cancel_futures=True)

    def _run(self, views: list[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], int]:
        while True:
            with self.lock:
                forward, size = self.forward, self.batch_size
            try:
                pieces = [views[start : start + size] for start in range(0, len(views), size)]
                return np.concatenate([forward(_stacked(piece, size))[: len(piece)] for piece in pieces]), size
            except (OutOfMemoryError, MemoryError) as error:
                self._halve(size, error)
            _let_go()

    def _halve(self, size: int, error: Exception) -> None:
        """Go on with half of ``size``, unless another batch has seen to it."""
        with self.lock:
            if self.batch_size == size:
                self._shrink(error)
                self.forward = self._compiled()

    def _compiled(self) -> Forward:
        while True:
            try:
                return self.compile_for(self.batch_size)
            except OutOfMemoryError as error:
                self._shrink(error)
            _let_go()

    def _shrink(self, error: Exception) -> None:
        if self.batch_size == 1:
            raise BackboneError(
                f"{self.name} has no room for a single image ({error}): free memory, or use a smaller --image-size"
            ) from error
        half = self.batch_size // 2
        self.notes.append(f"{self.name}: out of memory for {self.batch_size} images at once, went on with {half}")
        self.batch_size = half


def _let_go() -> None:
    """Free what a failed try still holds on the device.

    The error's frames name its tensors, and from Python 3.12 on a context manager on their way leaves them in a circle:
    without this each try would find less room than the one before.
    """
    gc.collect()


def _stacked(views: list[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """Pixels [size, 3, S, S] of some views; where they are fewer, the last are black.

    A fixed size is what makes a feature independent of its neighbours: the network runs the same instructions
    whichever images share the batch.
    """
    side = views[0].shape[-1]
    pixels = np.zeros((size, 3, side, side), np.uint8)
    for place, view in zip(pixels, views, strict=False):
        place[:] = view
    return pixels


class Batches:
    """Gathers the views of one part's images into batches, and collects what comes out.

    Attributes:
        sha256: content hashes of the images, in the order in which they came.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.sha256: list[str] = []
        self.views: list[NDArray[np.uint8]] = []
        self.under_way: list[Future[tuple[NDArray[np.float32], int]]] = []

    def add(self, sha256: str, views: NDArray[np.uint8]) -> None:
        """Add one image's views, [v, c, S, S] uint8 with c = 1 or 3."""
        self.sha256.append(sha256)
        for view in views:
            self.views.append(view)
            if len(self.views) >= self.runner.batch_size:
                self.flush()

    def flush(self) -> None:
        """Start what has been gathered."""
        if self.views:
            self.under_way.append(self.runner.submit(self.views))
            self.views = []

    def computed(self) -> tuple[NDArray[np.float32], int]:
        """All features, [images · views, D] float32, when they are there, and the least batch size among them."""
        features, sizes = zip(*(future.result() for future in self.under_way), strict=True)
        return np.concatenate(features), min(sizes)
