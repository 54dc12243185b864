"""What heads are trained on: the features and labels of a split, class weights, and the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import RunError
from featcache.parts import FeatureArray
from heads.training.config import ClassWeights, HeadConfig
from heads.training.windows import IntArray, epoch_windows, images_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """One split.

    Args:
        features: features, [N, V, D] float16 or float32; view 0 is the clean image.
        labels: class of each image, [N] int64, 0 to classes - 1.
        classes: K.

    Raises:
        ValueError: a shape, a type or a label is not as above.
    """

    features: NDArray[np.float16] | NDArray[np.float32]
    labels: IntArray
    classes: int

    def __post_init__(self) -> None:
        shape = list(self.features.shape)
        if len(shape) != 3 or 0 in shape[1:] or self.features.dtype not in (np.float16, np.float32):
            wanted = "features [N, V, D] of float16 or float32"
            raise ValueError(f"samples: wanted {wanted}, got {shape} of {self.features.dtype}")
        if self.labels.shape != (shape[0],) or self.labels.dtype != np.int64:
            got = f"{list(self.labels.shape)} of {self.labels.dtype}"
            raise ValueError(f"samples: wanted labels [{shape[0]}] of int64, got {got}")
        if self.classes < 2:
            raise ValueError(f"samples: wanted classes >= 2, got {self.classes}")
        if shape[0] and not (self.labels.min() >= 0 and self.labels.max() < self.classes):
            got = f"{self.labels.min()} to {self.labels.max()}"
            raise ValueError(f"samples: wanted labels 0 to {self.classes - 1}, got {got}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """[N, V, D]."""
        images, views, width = self.features.shape
        return images, views, width

    def chunks(self, images: int) -> Iterator[FeatureArray]:
        """Yield so many images' features at a time, [n, V, D]."""
        for start in range(0, len(self.features), images):
            yield self.features[start : start + images]


class Split(Protocol):
    """A split, in memory or in a store: [N, V, D], labels [N], K."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[N, V, D]."""

    @property
    def labels(self) -> IntArray:
        """Class of each image, [N]."""

    @property
    def classes(self) -> int:
        """K."""

    def chunks(self, images: int) -> Iterator[FeatureArray]:
        """Yield so many images' features at a time, [n, V, D]."""


def check(train: Split, val: Split) -> None:
    """Check that heads can be trained on these splits.

    Raises:
        RunError: a split is empty or misses features, or the train split holds one class only.
        ValueError: the splits have different views, features or classes.
    """
    if (train.shape[1:], train.classes) != (val.shape[1:], val.classes):
        got = " and ".join(f"{list(split.shape[1:])}, {split.classes}" for split in (train, val))
        raise ValueError(f"fit: wanted the same [V, D] and classes in train and val, got {got}")
    for name, split in (("train", train), ("val", val)):
        images = len(split.labels)
        if not images:
            raise RunError(f"the {name} split is empty: a head needs train images to learn and val images to stop")
        # A store holds finite features alone, and its reader refuses what is missing or damaged.
        if isinstance(split, Samples) and (missing := images - int(np.isfinite(split.features).all((1, 2)).sum())):
            what = f"{missing} of {images} {name} images have features that are missing or not finite"
            raise RunError(f"{what}: run 'cxr extract' again")
    if len(present := np.unique(train.labels)) == 1:
        only = f"the train split holds only class {present[0]} ({len(train.labels)} images)"
        raise RunError(f"{only}: a head needs at least two classes")


def class_weights(labels: IntArray, classes: int, rule: ClassWeights) -> tuple[float, ...]:
    """Return the weight of each class in the loss, [K].

    ``balanced`` is scikit-learn's n/(K·n_k), with K the classes that occur: one without images has no
    loss to weigh, and gets 0.
    """
    if rule == "none":
        return (1.0,) * classes
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return tuple(len(labels) / (present * int(count)) if count else 0.0 for count in counts)


def epoch_order(config: HeadConfig, epoch: int, images: int, views: int, window: int = 0) -> tuple[IntArray, IntArray]:
    """Return which image and which of its views a head takes at each place of an epoch's window; both [N].

    Determined by (seed, epoch, window's number, images, views, view policy), not by the head's neighbours nor by
    what was drawn before; heads of one seed take the same batches. The first window of an epoch has number 0.
    """
    generator = np.random.default_rng((config.seed, epoch, window))
    order = generator.permutation(images)
    if config.view_policy == "clean" or views == 1:
        return order, np.zeros(images, dtype=np.int64)
    return order, generator.integers(views, size=images)


def epoch_stream(config: HeadConfig) -> tuple[int, str]:
    """Return what tells the batches of two heads of one batch size apart: heads of equal streams take the same."""
    return config.seed, config.view_policy


def batches(images: int, batch_size: int) -> tuple[tuple[int, int], ...]:
    """Return start and stop of an epoch's batches.

    The last one may be short, but a single row is left out: BatchNorm has no variance of one row. Shuffling
    leaves out another image each epoch.
    """
    starts = range(0, images - 1, batch_size)
    return tuple((start, min(start + batch_size, images)) for start in starts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Images that are shuffled among themselves, on the device.

    Args:
        features: [rows, D] float16 or float32; the views of an image lie one after the other.
        labels: [n] int64.
        views: V.
        images: which of the features' images these are, [n] int64; None: all, in order.
    """

    features: Tensor
    labels: Tensor
    views: int
    images: Tensor | None = None

    def rows(self, order: Tensor, view: Tensor) -> Tensor:
        """Rows of the features that hold these views of the window's images."""
        return (order if self.images is None else self.images[order]) * self.views + view


class Feed(Protocol):
    """A split as training takes it: windows of an epoch, or all of it in order."""

    @property
    def images(self) -> int:
        """N."""

    @property
    def views(self) -> int:
        """V."""

    @property
    def width(self) -> int:
        """D."""

    @property
    def device(self) -> torch.device:
        """Where the features come to."""

    def windows(self, epoch: int, window: int) -> Iterator[Window]:
        """Yield an epoch's windows; each may be overwritten once the next but one is asked for."""

    def chunks(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield so many images at a time, in order: features [n·V, D], labels [n]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A split in memory: features [N·V, D] as they are stored, image by image; labels [N] int64; V views."""

    features: Tensor
    labels: Tensor
    views: int

    @classmethod
    def of(cls, samples: Samples, device: torch.device, *, clean_only: bool = False) -> Rows:
        """Bring a split to the device in one piece; only view 0 of it if nothing else is read."""
        chosen = samples.features[:, :1] if clean_only else samples.features
        images, views, width = chosen.shape
        # torch would warn of an array that it could not write to.
        flat = np.require(chosen.reshape(images * views, width), None, ["C", "W"])
        labels = torch.tensor(samples.labels)
        return cls(features=torch.from_numpy(flat).to(device), labels=labels.to(device), views=views)

    @property
    def images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features.device

    def windows(self, epoch: int, window: int) -> Iterator[Window]:
        """Yield an epoch's windows."""
        if not 0 < window < self.images:
            yield Window(features=self.features, labels=self.labels, views=self.views)
            return
        for blocks in epoch_windows(self.images, window, epoch):
            images = torch.from_numpy(images_of(blocks, self.images)).to(self.device)
            yield Window(features=self.features, labels=self.labels[images], views=self.views, images=images)

    def chunks(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield so many images at a time, in order: features [n·V, D], labels [n]."""
        for start in range(0, self.images, images):
            stop = start + images
            yield self.features[start * self.views : stop * self.views], self.labels[start:stop]


def gather(features: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Take rows of features [rows, D] as float32 into ``out`` [n, D].

    float16 is read as it lies there, and widened while it is in the cache: half the bytes from memory.
    """
    if features.dtype == out.dtype:
        return torch.index_select(features, 0, rows, out=out)
    return out.copy_(torch.index_select(features, 0, rows))
