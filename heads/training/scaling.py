"""Standardising features by the train split, and folding that into a trained head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from heads.training.config import ViewPolicy
from heads.training.model import Heads
from heads.training.samples import Split

CHUNK = 4096  # rows looked at at once: scikit-learn copies them to float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """x ↦ (x - mean) / scale: a feature's mean and standard deviation, each [D] float32; scale 1 where it is 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, train: Split, policy: ViewPolicy, device: torch.device) -> Scaling:
        """Learn it from the rows that heads of this view policy are trained on: all views, or view 0.

        Raises:
            StoreError: a part of stored samples is missing or damaged.
        """
        _, views, width = train.shape
        scaler = StandardScaler()
        for chunk in train.chunks(max(1, CHUNK // views)):
            drawn = chunk if policy == "random" else chunk[:, :1]
            scaler.partial_fit(drawn.reshape(-1, width).astype(np.float32))
        mean, scale = (torch.from_numpy(one).to(device, torch.float32) for one in (scaler.mean_, scaler.scale_))
        return cls(mean=mean, scale=scale)

    def standardise_(self, features: Tensor) -> Tensor:
        """Standardise features, [..., D], in place."""
        return features.sub_(self.mean).div_(self.scale)

    def fold(self, heads: Heads) -> Heads:
        """Return the heads that give for features as they are what these give for standardised ones.

        (x - m)/s · W + b = x · (W/s) + (b - m/s · W) for the first Dense's kernel W and bias b. The sums over D
        are taken in float64, since m/s may be large.
        """
        mean, scale = self.mean.double(), self.scale.double()[:, None]
        first = heads.kernel.mT if heads.hidden is None else heads.hidden.kernel  # [G, D, H]
        bias = heads.bias if heads.hidden is None else heads.hidden.bias
        kernel = first.double() / scale
        bias, kernel = (bias.double() - mean @ kernel).to(bias.dtype), kernel.to(first.dtype)
        if heads.hidden is None:
            return heads._replace(kernel=kernel.mT.contiguous(), bias=bias)
        return heads._replace(hidden=heads.hidden._replace(kernel=kernel, bias=bias))
