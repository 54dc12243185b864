"""From a store to what heads take: its splits in memory, or streamed where they exceed the memory given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.errors import SettingsError
from featcache.images import ImageTable
from featcache.index import stored_dtype
from featcache.joined import FeatureSource, stores_of
from featcache.store import FeatureStore
from heads.experiments.grids import StoreGrid
from heads.training.group import FittedHead, chunk_images
from heads.training.model import logits
from heads.training.samples import Samples
from heads.training.scaling import Scaling
from heads.training.streaming import StoredSamples, window_of
from heads.training.windows import IntArray


def samples_of(
    store: FeatureSource, images: ImageTable, splits: Sequence[IntArray], views: int, *, stream: bool
) -> list[Samples | StoredSamples]:
    """Splits of a store: read at once, each part once for all of them, or left in the store.

    Args:
        store: the features.
        images: the images, with their labels.
        splits: rows of ``images``, of each split.
        views: views an image.
        stream: leave them in the store.

    Raises:
        StoreError: the store lacks some; or, read at once, a part is damaged.
    """
    labels, classes = [images.label[rows] for rows in splits], len(images.classes)
    if stream:
        assert isinstance(store, FeatureStore), "window_for refuses joined stores"
        place = store.rows(images.image_id)
        dtype = stored_dtype(store.path)
        readers = [store.reader(place[rows], range(views)) for rows in splits]
        return [
            StoredSamples(reader=reader, dtype=dtype, labels=label, classes=classes)
            for reader, label in zip(readers, labels, strict=True)
        ]
    features = store.views(images.image_id[np.concatenate(splits)].tolist(), views)
    ends = np.cumsum([len(rows) for rows in splits]).tolist()
    return [
        Samples(features=features[end - len(label) : end], labels=label, classes=classes)
        for end, label in zip(ends, labels, strict=True)
    ]


def adapted(train: Samples | StoredSamples, other: Samples | StoredSamples) -> Samples:
    """Another split with train's mean and standard deviation of each feature, in place of its own.

    Its labels are not looked at, but all of its images are: a head's word on one depends on the others (transductive).
    After AdaBN (Li et al. 2018), for features that are taken as they are. All views count.
    """
    assert isinstance(other, Samples), "run_grids refuses to adapt what is streamed"
    wanted, own = (Scaling.of(one, "random", torch.device("cpu")) for one in (train, other))
    mean, scale = (np.asarray(tensor) for tensor in (wanted.mean, wanted.scale))
    features = own.standardise_(torch.from_numpy(other.features.astype(np.float32))).numpy() * scale + mean
    return Samples(features=features, labels=other.labels, classes=other.classes)


def window_for(grid: StoreGrid, sizes: tuple[int, int, int], memory: int | None) -> int | None:
    """The shuffle window that a budget of memory allows, in images; None where all of the features fit.

    Args:
        grid: the heads, and the features that they are fitted on.
        sizes: images of the train, val and test split.
        memory: bytes for features; None sets no limit.

    Raises:
        SettingsError: not even the smallest window fits, or joined stores do not.
    """
    if memory is None:
        return None
    stores = stores_of(grid.source)
    widths = [store.reader(np.arange(1), range(grid.views)).shape[2] for store in stores]
    itemsize = max(stored_dtype(store.path).itemsize for store in stores)
    wanted = sum(sizes) * grid.views * sum(widths) * itemsize
    if wanted <= memory:
        return None
    if len(stores) > 1:
        raise SettingsError(
            f"the features of {grid.source.backbone} take {math.ceil(wanted / 2**20)}MiB, and joined stores are not "
            "read in windows: give --memory that much, or leave it out"
        )
    read = 1 if all(config.view_policy == "clean" for config in grid.configs) else grid.views
    return window_of(memory, (sizes[0], read, widths[0]), (sizes[1], grid.views, widths[0]), itemsize)


def clean_and_mean(
    heads: Sequence[FittedHead], samples: Samples | StoredSamples
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Each head's logits [n, K] of the clean view, and their mean over the views.

    Raises:
        StoreError: a part of stored samples is missing or damaged.
    """
    images, views, width = samples.shape
    clean, mean = np.empty((2, len(heads), images, samples.classes), np.float32)
    start = 0
    for features in samples.chunks(chunk_images(views)):
        stop = start + len(features)
        # In float64, so that a film has these very logits wherever it is asked about again (heads.prediction).
        rows = features.reshape(-1, width).astype(np.float64)
        for number, head in enumerate(heads):
            every = logits(head.weights, rows, np.float64).reshape(len(features), views, -1)
            clean[number, start:stop], mean[number, start:stop] = every[:, 0], every.mean(axis=1, dtype=np.float32)
        start = stop
    return list(zip(clean, mean, strict=True))
