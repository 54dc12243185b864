"""Forward and backward pass of G heads, by hand.

By hand because BatchNorm between ReLU and the last Dense lets most passes over the activations be folded
into tensors of the size of the last kernel, which autograd cannot see. The tests hold it against autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from heads.training.model import BATCHNORM_EPSILON, BATCHNORM_MOMENTUM, Heads, HiddenLayer


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

    In code z, dz [G, K, B] and U, M, Q [G, K, H] lie class by class.

    Args:
        heads: weights; the running statistics are changed in place.
        gradients: where the gradients are written, the running statistics' excepted.
        features: each head's batch, [G, B, D], or the one batch of all heads, [B, D]. In float32, or in a lower
            precision, in which the two products with D features are then computed.
        labels: [G, B] int64, or [1, B] where all heads take one batch.
        sample_weight: class weight of each label, [G, B] float32.
    """
    hidden = heads.hidden
    if hidden is None:
        return _linear(heads, gradients, features, labels, sample_weight)
    assert gradients.hidden is not None
    grad = gradients.hidden
    x = features.expand(len(heads.bias), *features.shape[-2:])  # [G, B, D]
    rows = x.shape[1]
    if x.dtype == hidden.kernel.dtype:
        a = torch.baddbmm(hidden.bias[:, None], x, hidden.kernel).relu_()  # [G, B, H]
    else:
        a = torch.bmm(x, hidden.kernel.to(x.dtype)).to(hidden.kernel.dtype).add_(hidden.bias[:, None]).relu_()
    mean = _column_sums(a).div_(rows)  # [G, H]
    c = a - mean[:, None]
    variance = _column_sums(c.square()).div_(rows)
    _move_running_statistics(hidden, mean, variance, rows)
    r = torch.rsqrt(variance + BATCHNORM_EPSILON)
    scale = hidden.gamma * r
    folded = scale[:, None] * heads.kernel  # M
    offset = torch.bmm(heads.kernel, hidden.beta[..., None]) + heads.bias[..., None]  # [G, K, 1]
    dz, figures = _cross_entropy(torch.baddbmm(offset, folded, c.mT), labels, sample_weight)

    q = torch.bmm(dz, c).mul_(r[:, None])
    torch.sum(dz, 2, out=gradients.bias)
    torch.sum(q * heads.kernel, 1, out=grad.gamma)
    torch.sum(heads.kernel * gradients.bias[..., None], 1, out=grad.beta)
    gradients.kernel.copy_(hidden.gamma[:, None] * q + hidden.beta[:, None] * gradients.bias[..., None])
    shift = (scale * grad.beta).div_(-rows)
    slope = (scale * r * grad.gamma).div_(-rows)
    dh = torch.baddbmm(shift[:, None], dz.mT, folded).addcmul_(c, slope[:, None])
    dh.mul_(a.sign_())  # 1 where h > 0, 0 elsewhere; a mask of bool costs twice as much
    if x.dtype == dh.dtype:
        torch.bmm(x.mT, dh, out=grad.kernel)
    else:
        grad.kernel.copy_(torch.bmm(x.mT, dh.to(x.dtype)))
    grad.bias.copy_(_column_sums(dh))
    return figures


def _column_sums(matrix: Tensor) -> Tensor:
    """Return the sums over B, [G, B, H] -> [G, H], as a product with ones: half the time of torch's sum."""
    ones = matrix.new_ones(1, 1, 1).expand(len(matrix), 1, matrix.shape[1])
    return torch.bmm(ones, matrix)[:, 0]


def _linear(heads: Heads, gradients: Heads, features: Tensor, labels: Tensor, sample_weight: Tensor) -> BatchFigures:
    """The same for linear heads; where all take one batch, a class of all heads is one product."""
    kernel = heads.kernel.to(features.dtype)  # [G, K, D]
    heads_count, classes, _ = kernel.shape
    shared = features.dim() == 2
    if shared:
        z = kernel.new_empty(heads_count, classes, len(features))
        for k in range(classes):
            torch.mm(kernel[:, k], features.T, out=z[:, k])
    else:
        z = torch.bmm(kernel, features.mT)
    dz, figures = _cross_entropy(z.to(heads.bias.dtype).add_(heads.bias[..., None]), labels, sample_weight)
    torch.sum(dz, 2, out=gradients.bias)
    dz = dz.to(features.dtype)
    if shared and dz.dtype == gradients.kernel.dtype:
        for k in range(classes):
            torch.mm(dz[:, k], features, out=gradients.kernel[:, k])
    else:
        gradients.kernel.copy_(torch.bmm(dz, features.expand(heads_count, *features.shape[-2:])))
    return figures


def _cross_entropy(z: Tensor, labels: Tensor, sample_weight: Tensor) -> tuple[Tensor, BatchFigures]:
    """Return the gradient of the loss by the logits, [G, K, B], and the figures."""
    correct = (decide(z) == labels).sum(1)
    log_probability = log_softmax(z, 1)
    classes = torch.arange(z.shape[1], device=z.device)[:, None]
    weight = (sample_weight / z.shape[2])[:, None]  # [G, 1, B]
    truth = (labels[:, None] == classes) * weight  # [G, K, B]
    loss = -(log_probability * truth).sum((1, 2))
    return log_probability.exp_().mul_(weight).sub_(truth), BatchFigures(loss, correct)


def decide(z: Tensor) -> Tensor:
    """Return the class of the highest logit, the first of equals: [G, K, N] -> [G, N] int64.

    torch's argmax over a dimension that is not the last takes longer than a linear head's products.
    """
    highest, decision = z[:, 0], torch.zeros_like(z[:, 0], dtype=torch.int64)
    for k in range(1, z.shape[1]):
        decision.masked_fill_(z[:, k] > highest, k)
        highest = torch.maximum(highest, z[:, k])
    return decision


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
        """Return every head's logits of the same features: [N, D] -> [G, K, N]."""
        if self.hidden is None:
            by_class = [self.kernel[:, k] @ features.T for k in range(self.kernel.shape[1])]
            return torch.stack(by_class, 1).add_(self.bias)
        x = features.expand(len(self.kernel), *features.shape)
        a = torch.baddbmm(self.hidden[1], x, self.hidden[0]).relu_()  # [G, N, H]
        return torch.baddbmm(self.bias, self.kernel, a.mT)


def inference(heads: Heads) -> Inference:
    """Fold BatchNorm's running statistics into the last Dense: γ(a - μ)/√(σ² + ε) + β is affine in a."""
    if (hidden := heads.hidden) is None:
        return Inference(None, heads.kernel, heads.bias[..., None])
    scale = hidden.gamma * torch.rsqrt(hidden.running_var + BATCHNORM_EPSILON)
    shift = hidden.beta - hidden.running_mean * scale
    bias = torch.bmm(heads.kernel, shift[..., None]) + heads.bias[..., None]  # [G, K, 1]
    return Inference((hidden.kernel, hidden.bias[:, None]), scale[:, None] * heads.kernel, bias)
