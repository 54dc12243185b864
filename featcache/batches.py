"""Batches of one fixed size, several under way at once, and half the size where memory does not suffice."""

from __future__ import annotations

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
        # One waiting for each that runs: no stream idles, and no more memory than that is held.
        self.room = threading.BoundedSemaphore(2 * streams)

    def submit(self, pixels: NDArray[np.uint8]) -> Future[NDArray[np.float32]]:
        """Start a batch, [n, 3, S, S] uint8 with n at most ``batch_size``; waits while too many are under way.

        The future gives [n, D] float32, or raises what ``Forward`` raises.
        """
        self.room.acquire()
        future = self.pool.submit(self._run, pixels)
        future.add_done_callback(lambda _: self.room.release())
        return future

    def close(self) -> None:
        """Drop what has not begun."""
        self.pool.shutdown(cancel_futures=True)

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        while True:
            with self.lock:
                forward, size = self.forward, self.batch_size
            try:
                pieces = [pixels[start : start + size] for start in range(0, len(pixels), size)]
                return np.concatenate([forward(_padded(piece, size))[: len(piece)] for piece in pieces])
            except OutOfMemoryError as error:
                self._halve(size, error)

    def _halve(self, size: int, error: OutOfMemoryError) -> None:
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

    def _shrink(self, error: OutOfMemoryError) -> None:
        if self.batch_size == 1:
            raise BackboneError(
                f"{self.name} has no room for a single image ({error}): free memory, or use a smaller --image-size"
            ) from error
        half = self.batch_size // 2
        self.notes.append(f"{self.name}: out of memory for {self.batch_size} images at once, went on with {half}")
        self.batch_size = half


def _padded(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pixels of ``size`` images, the last ones black.

    A fixed size is what makes a feature independent of its neighbours: the network runs the same instructions
    whichever images share the batch.
    """
    if len(pixels) == size:
        return pixels
    return np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])


class Batches:
    """Gathers the views of one part's images into batches, and collects what comes out.

    Attributes:
        sha256: content hashes of the images, in the order in which they came.
    """

    def __init__(self, runner: Runner, side: int) -> None:
        self.runner, self.side = runner, side
        self.sha256: list[str] = []
        self.under_way: list[Future[NDArray[np.float32]]] = []
        self._start()

    def _start(self) -> None:
        self.filled = 0
        self.pixels = np.empty((self.runner.batch_size, 3, self.side, self.side), np.uint8)

    def add(self, sha256: str, views: NDArray[np.uint8]) -> None:
        """Add one image's views, [v, c, S, S] uint8 with c = 1 or 3."""
        self.sha256.append(sha256)
        for view in views:
            self.pixels[self.filled] = view
            self.filled += 1
            if self.filled == len(self.pixels):
                self.flush()

    def flush(self) -> None:
        """Start what has been gathered."""
        if self.filled:
            self.under_way.append(self.runner.submit(self.pixels[: self.filled]))
            self._start()

    def features(self) -> NDArray[np.float32]:
        """All features, [images · views, D] float32, when they are there."""
        return np.concatenate([future.result() for future in self.under_way])
