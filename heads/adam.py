"""Adam for G heads at once, each with its own learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
EPSILON = 1e-7  # Keras' default; torch's is 1e-8


class Adam:
    """``torch.optim.Adam(eps=1e-7)`` (Kingma and Ba 2015, algorithm 1) on the trained columns of G heads.

    With the moments m, v after step t, c1 = 1 - β1ᵗ and c2 = 1 - β2ᵗ, the step is

        w -= lr · (m/c1) / (√(v/c2) + ε)  =  lr·√c2/c1 · m / (√v + ε·√c2),

    and the second form needs no bias-corrected copy of m or v. All heads of a group took the same number of
    steps, so c1 and c2 are numbers; lr is a column.
    """

    def __init__(self, heads: int, columns: int, device: torch.device) -> None:
        self.first = torch.zeros(heads, columns, device=device)  # m, [G, P]
        self.second = torch.zeros(heads, columns, device=device)  # v, [G, P]
        self.steps = 0

    def update(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> None:
        """Take one step in place.

        Args:
            weights: weights, [G, P]; changed.
            gradient: gradients, [G, P]; used as scratch, so lost.
            lr: learning rates, [G, 1].
        """
        self.steps += 1
        root = math.sqrt(1 - BETA2**self.steps)
        self.first.lerp_(gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        torch.sqrt(self.second, out=gradient)
        gradient.add_(EPSILON * root)
        torch.div(self.first, gradient, out=gradient)
        weights.addcmul_(gradient, lr * (root / (1 - BETA1**self.steps)), value=-1)

    def keep(self, rows: Tensor) -> None:
        """Drop the moments of all heads but these rows, [kept] int64."""
        self.first = self.first[rows]
        self.second = self.second[rows]
