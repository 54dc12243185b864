"""Training from a store that is larger than memory: a window is read from the disk while the one before is trained on.

The budget covers the features: two train windows (one in training, one being read) and two pieces of val. Beside it the
process holds what it always holds (torch; the image table, some 500 bytes an image), the heads with their gradients and
moments, a window's shuffles for each head of a group, and the logits of val and test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ByteSize
from torch import Tensor

from featcache.errors import SettingsError
from featcache.parts import FeatureArray
from featcache.reading import FeatureReader
from heads.training.config import BLOCK_IMAGES
from heads.training.group import chunk_images
from heads.training.samples import Window
from heads.training.windows import IntArray, epoch_windows, images_of


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSamples:
    """One split whose features stay in the store: what ``Samples`` is for those in memory.

    Args:
        reader: reads the features, [N, V, D].
        dtype: that they are read as, float16 or float32.
        labels: class of each image, [N] int64, 0 to classes - 1.
        classes: K.
    """

    reader: FeatureReader
    dtype: np.dtype[np.float16] | np.dtype[np.float32]
    labels: IntArray
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """[N, V, D]."""
        return self.reader.shape

    def chunks(self, images: int) -> Iterator[FeatureArray]:
        """Yield so many images' features at a time, [n, V, D]; they are overwritten later.

        Raises:
            StoreError: a part is missing or damaged.
        """
        count = self.shape[0]
        read = _images_read(images)
        ahead = _ReadAhead(self.reader, self.dtype, min(read, count))
        ahead.start([(0, min(read, count))])
        for start in range(0, count, read):
            piece = ahead.finish()
            if start + read < count:
                ahead.start([(start + read, min(start + 2 * read, count))])
            for first in range(0, len(piece), images):
                yield piece[first : first + images]


class StreamedRows:
    """Feeds training from the store; a ``heads.training.samples.Feed``.

    Args:
        samples: the split.
        device: where each window comes to.
        window: the largest window that will be asked for, in images; 0: the whole split.
        clean_only: read no view but 0.
    """

    def __init__(
        self, samples: StoredSamples, device: torch.device, window: int = 0, *, clean_only: bool = False
    ) -> None:
        self._samples = samples
        self._reader = samples.reader.clean() if clean_only else samples.reader
        self._labels = torch.tensor(samples.labels)
        self.images, self.views, self.width = self._reader.shape
        self.device = device
        largest = window if 0 < window < self.images else self.images
        self._ahead = _ReadAhead(self._reader, samples.dtype, largest)
        self._whole: Window | None = None  # the only window, where all is one
        self._coming: tuple[int, int] | None = None  # epoch and window whose first blocks are being read

    def windows(self, epoch: int, window: int) -> Iterator[Window]:
        """Yield an epoch's windows; each is overwritten once the next but one is asked for.

        Raises:
            StoreError: a part is missing or damaged.
        """
        if self._whole is not None:
            yield self._whole
            return
        plan = epoch_windows(self.images, window, epoch)
        following = epoch_windows(self.images, window, epoch + 1)[0]
        if self._coming != (epoch, window):
            self._start(plan[0])
        self._coming = None  # An epoch that is broken off leaves another piece behind.
        if len(plan) == 1:
            self._whole = self._window(plan[0])
            yield self._whole
            return
        for blocks, coming in zip(plan, [*plan[1:], following], strict=True):
            read = self._window(blocks)
            self._start(coming)
            yield read
        self._coming = epoch + 1, window

    def chunks(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield so many images at a time, in order: features [n·V, D], labels [n].

        Raises:
            StoreError: a part is missing or damaged.
        """
        for start, features in zip(range(0, self.images, images), self._samples.chunks(images), strict=True):
            rows = torch.from_numpy(features.reshape(-1, self.width))
            yield rows.to(self.device), self._labels[start : start + images].to(self.device)

    def _window(self, blocks: IntArray) -> Window:
        """The window that was being read."""
        features = self._ahead.finish()
        images = torch.from_numpy(images_of(blocks, self.images))
        return Window(
            features=torch.from_numpy(features.reshape(-1, self.width)).to(self.device),
            labels=self._labels[images].to(self.device),
            views=self.views,
        )

    def _start(self, blocks: IntArray) -> None:
        starts = blocks * BLOCK_IMAGES
        self._ahead.start([(start, min(start + BLOCK_IMAGES, self.images)) for start in starts.tolist()])


class _ReadAhead:
    """Two buffers and a thread: a piece is read while the one before is in use."""

    def __init__(self, reader: FeatureReader, dtype: np.dtype[Any], images: int) -> None:
        self._reader, self._dtype, self._images = reader, dtype, images
        self._buffers: list[FeatureArray | None] = [None, None]  # the second is not needed where all is one piece
        self._pool = ThreadPoolExecutor(1, "streaming")
        self._reading: Future[FeatureArray] | None = None
        self._turn = 0

    def start(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to read some stretches of images, one behind the other, into the buffer that is not in use."""
        if self._reading is not None:
            self.finish()
        self._turn = 1 - self._turn
        buffer = self._buffers[self._turn]
        if buffer is None:
            buffer = self._buffers[self._turn] = np.empty((self._images, *self._reader.shape[1:]), self._dtype)
        self._reading = self._pool.submit(self._fill, buffer, ranges)

    def finish(self) -> FeatureArray:
        """Wait for what was begun and return it, [n, V, D].

        Raises:
            StoreError: a part is missing or damaged.
        """
        assert self._reading is not None
        reading, self._reading = self._reading, None
        return reading.result()

    def _fill(self, buffer: FeatureArray, ranges: Sequence[tuple[int, int]]) -> FeatureArray:
        end = 0
        for start, stop in ranges:
            begin, end = end, end + stop - start
            self._reader.read(start, stop, buffer[begin:end])
        return buffer[:end]


def window_of(memory: int, train: tuple[int, int, int], val: tuple[int, int, int], itemsize: int) -> int:
    """The largest window that a budget allows, in images, a multiple of 256.

    Args:
        memory: bytes for features.
        train: [N, V, D] of the train split, with the views that are read.
        val: [N, V, D] of the val split.
        itemsize: bytes a feature.

    Raises:
        SettingsError: not even the smallest window fits; the message says what would.
    """
    _, views, width = train
    block = 2 * BLOCK_IMAGES * views * width * itemsize  # two windows
    pieces = 2 * _images_read(chunk_images(val[1])) * val[1] * width * itemsize
    if memory < pieces + block:
        least = math.ceil((pieces + block) / 2**20)
        raise SettingsError(
            f"--memory {ByteSize(memory).human_readable()} is too little for features of {views} views × {width}: the "
            f"smallest window takes {least}MiB"
        )
    return (memory - pieces) // block * BLOCK_IMAGES


def _images_read(images: int) -> int:
    """Images that are read at once where so many are asked for at a time: many small readings take longer."""
    return images * math.ceil(BLOCK_IMAGES / images)
