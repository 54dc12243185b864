"""Forward and backward pass of G heads on G batches, by hand.

By hand because BatchNorm between ReLU and the last Dense lets most passes over the activations be folded
into tensors of the size of the last kernel, which autograd cannot see. The tests hold it against autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from heads.model import BATCHNORM_EPSILON, BATCHNORM_MOMENTUM, Heads, HiddenLayer


class BatchFigures(NamedTuple):
    """Each head on its batch: the mean class-weighted cross-entropy and the count of right answers; [G]."""

    loss: Tensor
    correct: Tensor


def backward(heads: Heads, gradients: Heads, features: Tensor, labels: Tensor, sample_weight: Tensor) -> BatchFigures:
    """Compute the gradient of each head's mean weighted cross-entropy, and move its running statistics.

    The heads share no term: head g's loss is L = 1/B Σ_b s_b · crossentropy(z_b, y_b), as Keras takes class
    weights (divided by B, not by Σs). With x [B, D], W [D, H], and U [H, K] for the last kernel:

        h = xW + w0,  a = max(h, 0),  c = a - μ,  r = (σ² + ε)^-½,  z = (γ·r·c + β)U + u0     (μ, σ² over B)

    The normalised activations are never formed: z = cM + (βU + u0) with M = diag(γr)·U. Backwards, with
    dz = s/B·(softmax(z) - onehot(y)) and Q = r·(cᵀdz) [H, K], which is the normalised activations' product,

        dU = γ·Q + β⊗Σ_b dz,  du0 = Σ_b dz,  dγ = Σ_k Q·U,  dβ = U·du0.

    BatchNorm's own backward (Ioffe and Szegedy 2015) for n = r·c and dn = dz·Uᵀ·γ is
    da = r·(dn - mean_b dn - n·mean_b(dn·n)). Both means fall out of what is known: Σ_b dn = γ·dβ and
    Σ_b dn·n = γ·dγ. So

        da = dz·Mᵀ - (r·γ·dβ)/B - c·(r²·γ·dγ)/B,  dh = da where h > 0 else 0,  dW = xᵀdh,  dw0 = Σ_b dh.

    Args:
        heads: weights; the running statistics are changed in place.
        gradients: where the gradients are written, the running statistics' excepted.
        features: each head's batch, [G, B, D] float32.
        labels: [G, B] int64.
        sample_weight: class weight of each label, [G, B] float32.
    """
    hidden = heads.hidden
    if hidden is None:
        z = torch.baddbmm(heads.bias[:, None], features, _by_class(heads.kernel))  # [G, B, K]
        dz, figures = _cross_entropy(z, labels, sample_weight)
        gradients.kernel.copy_(torch.bmm(dz.mT, features).mT)
        torch.sum(dz, 1, out=gradients.bias)
        return figures
    assert gradients.hidden is not None
    grad = gradients.hidden
    rows = features.shape[1]
    a = torch.baddbmm(hidden.bias[:, None], features, hidden.kernel).relu_()  # [G, B, H]
    mean = a.mean(1)  # [G, H]
    c = a - mean[:, None]
    variance = torch.linalg.vector_norm(c, dim=1).square_().div_(rows)
    _move_running_statistics(hidden, mean, variance, rows)
    r = torch.rsqrt(variance + BATCHNORM_EPSILON)
    scale = hidden.gamma * r
    folded = _by_class(scale[..., None] * heads.kernel)  # M, [G, H, K]
    offset = torch.bmm(hidden.beta[:, None], heads.kernel) + heads.bias[:, None]  # [G, 1, K]
    dz, figures = _cross_entropy(torch.baddbmm(offset, c, folded), labels, sample_weight)

    q = torch.bmm(dz.mT, c).mT.mul_(r[..., None])  # [G, H, K]
    torch.sum(dz, 1, out=gradients.bias)
    torch.sum(q * heads.kernel, 2, out=grad.gamma)
    torch.sum(heads.kernel * gradients.bias[:, None], 2, out=grad.beta)
    gradients.kernel.copy_(hidden.gamma[..., None] * q + hidden.beta[..., None] * gradients.bias[:, None])
    shift = (scale * grad.beta).div_(-rows)
    slope = (scale * r * grad.gamma).div_(-rows)
    dh = torch.baddbmm(shift[:, None], dz, folded.mT).addcmul_(c, slope[:, None])
    dh.mul_(a.sign_())  # 1 where h > 0, 0 elsewhere; a mask of bool costs twice as much
    torch.bmm(features.mT, dh, out=grad.kernel)
    torch.sum(dh, 1, out=grad.bias)
    return figures


def _by_class(kernel: Tensor) -> Tensor:
    """Return a kernel [G, H, K] laid out class by class: products this narrow run 3 to 5 times faster so."""
    return kernel.mT.contiguous().mT


def _cross_entropy(z: Tensor, labels: Tensor, sample_weight: Tensor) -> tuple[Tensor, BatchFigures]:
    """Return the gradient of the loss by the logits, [G, B, K], and the figures."""
    log_probability = log_softmax(z, 2)
    index = labels[..., None]
    loss = -(log_probability.gather(2, index)[..., 0] * sample_weight).mean(1)
    correct = (z.argmax(2) == labels).sum(1)
    dz = log_probability.exp_().scatter_add_(2, index, torch.full_like(index, -1, dtype=z.dtype))
    return dz.mul_(sample_weight[..., None] / z.shape[1]), BatchFigures(loss, correct)


def _move_running_statistics(hidden: HiddenLayer, mean: Tensor, variance: Tensor, rows: int) -> None:
    """Move them towards a batch's mean and its unbiased variance, as ``torch.nn.BatchNorm1d`` does."""
    hidden.running_mean.lerp_(mean, BATCHNORM_MOMENTUM)
    hidden.running_var.lerp_(variance * (rows / (rows - 1)), BATCHNORM_MOMENTUM)


class Inference(NamedTuple):
    """G heads with BatchNorm folded into the last Dense: hidden kernel and bias or None, kernel, bias."""

    hidden: tuple[Tensor, Tensor] | None
    kernel: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return every head's logits of the same features: [N, D] -> [G, N, K]."""
        heads, _, classes = self.kernel.shape
        if self.hidden is None:  # the features are the same, so the heads' kernels can lie side by side
            side_by_side = self.kernel.movedim(0, 1).reshape(-1, heads * classes)
            return (features @ side_by_side).view(-1, heads, classes).movedim(1, 0) + self.bias
        x = torch.baddbmm(self.hidden[1], features.expand(heads, *features.shape), self.hidden[0]).relu_()
        return torch.baddbmm(self.bias, x, self.kernel)


def inference(heads: Heads) -> Inference:
    """Fold BatchNorm's running statistics into the last Dense: γ(a - μ)/√(σ² + ε) + β is affine in a."""
    if (hidden := heads.hidden) is None:
        return Inference(None, heads.kernel, heads.bias[:, None])
    scale = hidden.gamma * torch.rsqrt(hidden.running_var + BATCHNORM_EPSILON)
    shift = hidden.beta - hidden.running_mean * scale
    bias = torch.bmm(shift[:, None], heads.kernel) + heads.bias[:, None]  # [G, 1, K]
    return Inference((hidden.kernel, hidden.bias[:, None]), _by_class(scale[..., None] * heads.kernel), bias)
