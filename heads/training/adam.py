"""Adam for G heads at once, each with its own learning rate and L2 penalty."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
EPSILON = 1e-7  # Keras' default; torch's is 1e-8
FUSED_COLUMNS = 2**15  # from so many on, torch's fused update of one head costs less than passes over all heads
# What torch.optim.Adam(fused=True) calls in the end; its way there takes longer than the update of a head.
_FUSED = partial(torch._fused_adam_, beta1=BETA1, beta2=BETA2, eps=EPSILON, amsgrad=False, maximize=False)


class Adam:
    """``torch.optim.Adam(eps=1e-7)`` (Kingma and Ba 2015, algorithm 1) on the trained columns of G heads.

    The penalty λ·Σw² of the first columns adds 2λw to their gradient, which is torch's ``weight_decay`` of 2λ.

    Wide heads are updated one by one, by torch's fused kernel: one pass over weights, gradient and moments.
    Narrow ones would pay more for the calls than for the passes, and are updated together. With the moments m, v
    after step t, c1 = 1 - β1ᵗ and c2 = 1 - β2ᵗ, the step is

        w -= lr · (m/c1) / (√(v/c2) + ε)  =  lr·√c2/c1 · m / (√v + ε·√c2),

    and the second form needs no bias-corrected copy of m or v. All heads of a group took the same number of
    steps, so c1 and c2 are numbers; lr is a column.

    Args:
        lr: the heads' learning rates, [G].
        l2: their λ, [G].
        columns: columns that are trained, P.
        penalised: the first so many of them carry the penalty.
        device: where the weights are.
    """

    def __init__(self, lr: Tensor, l2: Tensor, columns: int, penalised: int, device: torch.device) -> None:
        self.lr = lr.to(device, torch.float32)[:, None]  # [G, 1]
        self.l2 = l2.to(device, torch.float32)[:, None]  # [G, 1]
        self.first = torch.zeros(len(lr), columns, device=device)  # m, [G, P]
        self.second = torch.zeros(len(lr), columns, device=device)  # v, [G, P]
        self.penalised = penalised
        self.steps = 0
        self._settle()

    def _settle(self) -> None:
        self._decays = bool(self.l2.any())
        self._rates = list(zip(self.lr[:, 0].tolist(), self.l2[:, 0].tolist(), strict=True))
        self._fused = self.first.device.type == "cpu" and self.first.shape[1] >= FUSED_COLUMNS

    def update(self, weights: Tensor, gradient: Tensor) -> None:
        """Take one step in place.

        Args:
            weights: weights, [G, P] float32; changed.
            gradient: gradients without the penalty's, [G, P]; used as scratch, so lost.
        """
        self.steps += 1
        if self._fused:
            for head, (lr, l2) in enumerate(self._rates):
                self._update_fused(lr, l2, weights[head], gradient[head], self.first[head], self.second[head])
            return
        if self._decays:
            decayed = slice(self.penalised)
            gradient[:, decayed].addcmul_(weights[:, decayed], 2 * self.l2)
        root = math.sqrt(1 - BETA2**self.steps)
        self.first.lerp_(gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        torch.sqrt(self.second, out=gradient)
        gradient.add_(EPSILON * root)
        torch.div(self.first, gradient, out=gradient)
        weights.addcmul_(gradient, self.lr * (root / (1 - BETA1**self.steps)), value=-1)

    def _update_fused(self, lr: float, l2: float, *vectors: Tensor) -> None:
        """Update one head's weights by its gradient and moments, each [P]: with and without the penalty."""
        for columns, decay in ((slice(self.penalised), 2 * l2), (slice(self.penalised, None), 0.0)):
            weights, gradient, first, second = ([vector[columns]] for vector in vectors)
            steps = [torch.tensor(float(self.steps))]
            _FUSED(weights, gradient, first, second, [], steps, lr=lr, weight_decay=decay)

    def keep(self, rows: Tensor) -> None:
        """Drop the moments and rates of all heads but these rows, [kept] int64."""
        self.first, self.second = self.first[rows], self.second[rows]
        self.lr, self.l2 = self.lr[rows], self.l2[rows]
        self._settle()
