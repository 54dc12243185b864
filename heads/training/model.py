"""The head: Dense(H) → ReLU → BatchNorm → Dense(K) → softmax, or Dense(K) → softmax where H is 0.

``HeadWeights`` is one fitted head as a run stores it. While heads are trained, the weights of G of them lie
in one matrix with a row a head: freezing a head copies a row, dropping one deletes a row, and Adam sees one
tensor. ``Layout`` says which columns are what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Keras' epsilon. The running statistics are torch's, not Keras': a step moves them by 0.1 of the way (Keras:
# 0.01) and the running variance is the unbiased one (n/(n-1)), while a batch is normalised by its biased
# variance. With some 17 steps an epoch Keras' 0.99 would still hold 84 % of the initial 0 and 1 after the
# first epoch, and val loss, which chooses the epoch, would measure that lag instead of the head.
BATCHNORM_EPSILON = 1e-3
BATCHNORM_MOMENTUM = 0.1

CHUNK = 4096  # rows that logits() takes at once: bounds the hidden activations to some MB

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenWeights:
    """Dense(H) → ReLU → BatchNorm of one head: kernel [D, H], everything else [H], float32."""

    kernel: Array
    bias: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadWeights:
    """One head's weights: kernel [H, K] (linear head: [D, K]), bias [K], float32; hidden None when linear."""

    hidden: HiddenWeights | None
    kernel: Array
    bias: Array

    @property
    def layout(self) -> Layout:
        """The sizes D, H and K."""
        inputs, classes = self.kernel.shape
        if self.hidden is None:
            return Layout(features=inputs, hidden=0, classes=classes)
        return Layout(features=self.hidden.kernel.shape[0], hidden=inputs, classes=classes)

    def tensors(self) -> dict[str, Array]:
        """Return the arrays by the names they have in a safetensors file."""
        hidden = {} if self.hidden is None else {f"hidden.{k}": v for k, v in vars(self.hidden).items()}
        return {**hidden, "kernel": self.kernel, "bias": self.bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> HeadWeights:
        """Parse what ``tensors`` returned.

        Raises:
            ValueError: a tensor is unknown, missing, not float32 or of a shape that does not fit the others.
        """
        first = tensors.get("hidden.kernel", tensors.get("kernel"))
        if first is None or "bias" not in tensors or first.ndim != 2:
            raise ValueError(f"head weights: wanted kernel [D, K] and bias [K] at least, got {sorted(tensors)}")
        features, width = first.shape
        hidden = width if "hidden.kernel" in tensors else 0
        shapes = Layout(features=features, hidden=hidden, classes=tensors["bias"].size).shapes()
        if tensors.keys() != shapes.keys():
            raise ValueError(f"head weights: wanted tensors {sorted(shapes)}, got {sorted(tensors)}")
        for name, shape in shapes.items():
            if tensors[name].shape != shape or tensors[name].dtype != np.float32:
                got = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ValueError(f"head weights: wanted {name} as float32 {list(shape)}, got {got}")
        return _head_weights({name: np.asarray(tensors[name], dtype=np.float32) for name in shapes})


def _head_weights(arrays: Mapping[str, Array]) -> HeadWeights:
    hidden = {name.removeprefix("hidden."): array for name, array in arrays.items() if "." in name}
    return HeadWeights(hidden=HiddenWeights(**hidden) if hidden else None, kernel=arrays["kernel"], bias=arrays["bias"])


def logits(
    weights: HeadWeights, features: NDArray[np.floating], dtype: type[np.float32 | np.float64] = np.float32
) -> Array:
    """Return one fitted head's logits in inference form (BatchNorm by its running statistics).

    Args:
        weights: the head.
        features: features, [N, D], any float type.
        dtype: what is computed in. The sums of a float32 product differ in the last bits with the number of rows and a
            row's place among them; those of float64 differ too, but no more once they are rounded to float32.

    Returns:
        Logits, [N, K] float32.

    Raises:
        ValueError: the features are not [N, D] of the head's D.
    """
    wanted = weights.layout.features
    if features.ndim != 2 or features.shape[1] != wanted:
        raise ValueError(f"logits: wanted features [N, {wanted}], got {list(features.shape)}")
    result = np.empty((len(features), weights.bias.size), dtype=np.float32)
    for start in range(0, len(features), CHUNK):
        x: NDArray[np.floating] = features[start : start + CHUNK].astype(dtype, copy=False)
        if (layer := weights.hidden) is not None:
            x = np.maximum(x @ layer.kernel + layer.bias, 0)
            scale = layer.gamma / np.sqrt(layer.running_var + np.float32(BATCHNORM_EPSILON))
            x = (x - layer.running_mean) * scale + layer.beta
        result[start : start + CHUNK] = x @ weights.kernel + weights.bias
    return result


class HiddenLayer(NamedTuple):
    """The hidden layers of G heads: kernel [G, D, H], everything else [G, H]."""

    kernel: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor


class Heads(NamedTuple):
    """The weights (or their gradients) of G heads: kernel [G, K, H] (linear: [G, K, D]), bias [G, K].

    The last kernel lies class by class, other than in a fitted head: products this narrow run 3 to 5 times
    faster so, and one class of all linear heads is one matrix.
    """

    hidden: HiddenLayer | None
    kernel: Tensor
    bias: Tensor


def fitted(heads: Heads, head: int) -> HeadWeights:
    """Copy one of G heads into the weights of a fitted head."""
    named = {f"hidden.{name}": tensor for name, tensor in heads.hidden._asdict().items()} if heads.hidden else {}
    named |= {"kernel": heads.kernel.mT, "bias": heads.bias}
    return _head_weights({name: tensor[head].cpu().numpy().copy() for name, tensor in named.items()})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns of the weight matrix are what, for heads of D features, H hidden units and K classes.

    The penalised kernel comes first and the running statistics last, so that the penalty and Adam take one
    slice each: ``[:, :penalised]`` and ``[:, :trained]``.
    """

    features: int
    hidden: int
    classes: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of one head, in the order of the columns."""
        h = self.hidden
        if h == 0:
            return {"kernel": (self.features, self.classes), "bias": (self.classes,)}
        first = {"hidden.kernel": (self.features, h), "hidden.bias": (h,)}
        norm = {"hidden.gamma": (h,), "hidden.beta": (h,)}
        last = {"hidden.running_mean": (h,), "hidden.running_var": (h,)}
        return {**first, **norm, "kernel": (h, self.classes), "bias": (self.classes,), **last}

    @property
    def penalised(self) -> int:
        """Columns of the kernel that the L2 penalty is taken of."""
        return self.features * (self.hidden or self.classes)

    @property
    def width(self) -> int:
        """Columns in all."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def trained(self) -> int:
        """Columns that the optimiser moves: all but the running statistics."""
        return self.width - 2 * self.hidden

    def views(self, rows: Tensor) -> Heads:
        """Return the columns of the weight matrix, [G, width], as named tensors that share its memory."""
        tensors, start = {}, 0
        for name, shape in self.shapes().items():
            stop = start + math.prod(shape)
            tensors[name] = rows[:, start:stop].view(len(rows), *(shape[::-1] if name == "kernel" else shape))
            start = stop
        hidden = {name.removeprefix("hidden."): tensor for name, tensor in tensors.items() if "." in name}
        return Heads(HiddenLayer(**hidden) if hidden else None, tensors["kernel"], tensors["bias"])

    def head_weights(self, row: Tensor) -> HeadWeights:
        """Copy one row of the weight matrix, [width], into the weights of a fitted head."""
        return fitted(self.views(row[None]), 0)

    def initial(self, seeds: Sequence[int]) -> Tensor:
        """Return the weight matrix of untrained heads, [G, width] float32, as Keras initialises them.

        Kernels are Glorot uniform (Glorot and Bengio 2010: ±√(6 / (inputs + outputs))), biases 0, BatchNorm
        the identity. A row is drawn from a generator of its seed alone, so its neighbours do not matter.
        """
        rows = torch.zeros(len(seeds), self.width)
        heads = self.views(rows)
        kernels = [heads.kernel.mT] if heads.hidden is None else [heads.hidden.kernel, heads.kernel.mT]
        for index, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for kernel in kernels:
                limit = math.sqrt(6 / (kernel.shape[1] + kernel.shape[2]))
                kernel[index] = torch.empty(kernel.shape[1:]).uniform_(-limit, limit, generator=generator)
        if heads.hidden is not None:
            heads.hidden.gamma.fill_(1)
            heads.hidden.running_var.fill_(1)
        return rows
