"""What each place of the last map adds to a head's logit: exact, signed, and complete.

A feature is a mean over the map's cells: f = (1/n) Σ_c m_c, with m_c [D] the map at cell c and n = h·w. A linear
head's evidence is e = w·f + b, so cell c adds w·m_c / n, and all cells and b add up to e: the class activation map
(Zhou et al. 2016, "Learning Deep Features for Discriminative Localization").

A hidden head is Dense → ReLU → BatchNorm (by running statistics) → Dense: piecewise linear in f. With the units that
are active at this f (a_j = 1 where z_j = W_j·f + β_j > 0, else 0), s = γ/√(var + ε), and c the last kernel,

    e = Σ_j c_j (s_j (a_j z_j - mean_j) + shift_j) + b = w·f + constant,  w = Σ_j a_j s_j c_j W_j,

so the same sum is exact for it too: gradient times input, whose gradient w is one for the whole map, and the rest a
constant of this film. Grad-CAM (Selvaraju et al. 2017) would weigh the channels by that very w, then drop what speaks
against the class and the constant: what is left adds up to nothing, and a film that is called normal for good reasons
looks empty. Hence not Grad-CAM.

Evidence for class k is its logit less the mean of the others': of two classes the log-odds, and for any number free
of what softmax cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.training.model import BATCHNORM_EPSILON, HeadWeights

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """The evidence for a class, cell by cell.

    Attributes:
        cells: [h, w] float64, what each cell adds, in logits.
        constant: what belongs to no cell: biases and BatchNorm's shifts, of a hidden head at this film's active units.
    """

    cells: NDArray[np.float64]
    constant: float

    @property
    def evidence(self) -> float:
        """Cells and constant together: the logit of the class less the mean of the others'."""
        return float(self.cells.sum() + self.constant)

    @property
    def local_evidence(self) -> NDArray[np.float64]:
        """[h, w]: the evidence of a film that were everywhere as it is here; its mean is the film's evidence.

        That of a hidden head keeps this film's active units. It is the contribution n times over with the constant
        added, so that its sign, unlike a contribution's, says on which side of the decision a place stands.
        """
        return self.cells * self.cells.size + self.constant

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the cell that adds most."""
        row, column = np.unravel_index(int(self.cells.argmax()), self.cells.shape)
        return int(row), int(column)


def contributions(weights: HeadWeights, last_map: NDArray[np.floating], of_class: int) -> Contributions:
    """Take a head's evidence for a class apart over the map.

    Args:
        weights: the head.
        last_map: [D, h, w], the map whose mean is the feature.
        of_class: index of the class.

    Raises:
        ValueError: the map is not [D, h, w] of the head's D, or there is no such class.
    """
    layout = weights.layout
    if last_map.ndim != 3 or last_map.shape[0] != layout.features:
        raise ValueError(f"contributions: wanted a map [{layout.features}, h, w], got {list(last_map.shape)}")
    if not 0 <= of_class < layout.classes:
        raise ValueError(f"contributions: wanted a class of {layout.classes}, got {of_class}")
    cells = last_map.astype(np.float64)
    gradient, constant = linear_part(weights, cells.mean((1, 2)), of_class)
    return Contributions(cells=np.tensordot(gradient, cells, 1) / cells[0].size, constant=constant)


def linear_part(weights: HeadWeights, feature: Vector, of_class: int) -> tuple[Vector, float]:
    """Gradient [D] and constant of the evidence at a feature [D]: ``evidence = gradient @ feature + constant``."""
    classes = weights.bias.size
    # One for the class, and the others' mean taken off.
    contrast = np.full(classes, -1 / (classes - 1))
    contrast[of_class] = 1
    last, constant = weights.kernel.astype(np.float64) @ contrast, float(weights.bias.astype(np.float64) @ contrast)
    if (layer := weights.hidden) is None:
        return last, constant
    kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
    active = feature @ kernel + bias > 0
    scale = layer.gamma / np.sqrt(layer.running_var.astype(np.float64) + BATCHNORM_EPSILON)
    shift = layer.beta - layer.running_mean * scale
    return kernel @ (active * scale * last), constant + float((active * scale * bias + shift) @ last)
