"""What heads are trained on: the features and labels of a split, class weights, and the order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import RunError
from heads.config import ClassWeights, HeadConfig

IntArray = NDArray[np.int64]


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


def check(train: Samples, val: Samples) -> None:
    """Check that heads can be trained on these splits.

    Raises:
        RunError: a split is empty or misses features, or the train split holds one class only.
        ValueError: the splits have different views, features or classes.
    """
    if (train.features.shape[1:], train.classes) != (val.features.shape[1:], val.classes):
        got = " and ".join(f"{list(split.features.shape[1:])}, {split.classes}" for split in (train, val))
        raise ValueError(f"fit: wanted the same [V, D] and classes in train and val, got {got}")
    for name, split in (("train", train), ("val", val)):
        images = len(split.labels)
        if not images:
            raise RunError(f"the {name} split is empty: a head needs train images to learn and val images to stop")
        if missing := images - int(np.isfinite(split.features).all(axis=(1, 2)).sum()):
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


def epoch_order(config: HeadConfig, epoch: int, images: int, views: int) -> tuple[IntArray, IntArray]:
    """Return which image and which of its views a head takes at each place of an epoch; both [N].

    Determined by (seed, epoch, images, views, view policy), not by the head's neighbours nor by what was
    drawn before; heads of one seed take the same batches.
    """
    generator = np.random.default_rng((config.seed, epoch))
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
class Rows:
    """A split on the device: features [N·V, D] float32, image by image; labels [N] int64; V views."""

    features: Tensor
    labels: Tensor
    views: int

    @classmethod
    def of(cls, samples: Samples, device: torch.device, *, clean_only: bool = False) -> Rows:
        """Bring a split to the device as float32, in one piece; only view 0 of it if nothing else is read."""
        chosen = samples.features[:, :1] if clean_only else samples.features
        images, views, width = chosen.shape
        # torch would warn of an array that it could not write to.
        flat = np.require(chosen.reshape(images * views, width), np.float32, ["C", "W"])
        labels = torch.tensor(samples.labels)
        return cls(features=torch.from_numpy(flat).to(device), labels=labels.to(device), views=views)
