"""Standardising features by the train split, and folding that into a trained head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from heads.config import ViewPolicy
from heads.model import Heads
from heads.samples import Rows

CHUNK = 4096  # rows looked at at once: scikit-learn copies them to float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """x ↦ (x - mean) / scale: a feature's mean and standard deviation, each [D] float32; scale 1 where it is 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Rows, policy: ViewPolicy) -> Scaling:
        """Learn it from the rows that heads of this view policy are trained on: all views, or view 0."""
        drawn = rows.features if policy == "random" else rows.features[:: rows.views]
        scaler = StandardScaler()
        for chunk in torch.split(drawn, CHUNK):
            scaler.partial_fit(chunk.cpu().numpy())
        mean, scale = (torch.from_numpy(values).to(rows.features) for values in (scaler.mean_, scaler.scale_))
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
