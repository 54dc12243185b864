"""The shuffle window: how an epoch is drawn from a split that is larger than memory.

A split is cut into blocks of 256 images that follow one another, as they do in the store, so that a block is read in
one go. Each epoch puts the blocks in an order of its own, the same one for every head, and fills windows of whole
blocks, one after the other; inside a window every head shuffles by its own seed. So all heads share one reading of the
disk, and a window of some hundred blocks holds images from all over the split, however it is sorted.

The window's size is part of what makes a head (``HeadConfig.window``), whether the features are in memory or not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from heads.training.config import BLOCK_IMAGES

_BLOCK_ORDER = 0x626C6F636B73  # "blocks": keeps their draws apart from those of a head's seed

IntArray = NDArray[np.int64]


def epoch_windows(images: int, window: int, epoch: int) -> list[IntArray]:
    """Return the blocks of each of an epoch's windows, in the order of the disk inside a window.

    Args:
        images: of the split.
        window: images a window at most, a multiple of 256; 0, or no fewer than the split has: all in one.
        epoch: determines the order, and nothing else does.
    """
    blocks = math.ceil(images / BLOCK_IMAGES)
    if not 0 < window < images:
        return [np.arange(blocks)]
    order = np.random.default_rng((_BLOCK_ORDER, epoch)).permutation(blocks)
    # Evenly: 9 blocks in windows of at most 4 are 3 + 3 + 3, for a window of one would hardly be shuffled.
    count = math.ceil(blocks / (window // BLOCK_IMAGES))
    return [np.sort(blocks_of_window) for blocks_of_window in np.array_split(order, count)]


def images_of(blocks: IntArray, images: int) -> IntArray:
    """Return the images of some blocks, in order; the split's last block may be short."""
    inside = (blocks[:, None] * BLOCK_IMAGES + np.arange(BLOCK_IMAGES)).reshape(-1)
    return inside[inside < images]
