"""The hand-written gradients and Adam, against autograd and torch.optim."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy

from heads.adam import Adam
from heads.backprop import backward
from heads.model import Layout

GROUP, BATCH = 3, 9


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("classes", [2, 4])
def test_gradients_by_hand_are_autograd_s(hidden: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(hidden + classes)
    layout = Layout(features=5, hidden=hidden, classes=classes)
    # In float64, so that a wrong term can not hide behind rounding.
    rows = torch.randn(GROUP, layout.width, generator=generator, dtype=torch.float64)
    features = torch.randn(GROUP, BATCH, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (GROUP, BATCH), generator=generator)
    weight = torch.rand(GROUP, BATCH, generator=generator, dtype=torch.float64)
    expected = rows.clone().requires_grad_()
    heads = layout.views(expected)
    statistics, losses, correct = [], [], []
    for g in range(GROUP):
        x = features[g]
        if heads.hidden is not None:
            layer = heads.hidden
            mean, var = layer.running_mean[g].detach().clone(), layer.running_var[g].detach().clone()
            x = torch.relu(x @ layer.kernel[g] + layer.bias[g])
            x = batch_norm(x, mean, var, layer.gamma[g], layer.beta[g], training=True, momentum=0.1, eps=1e-3)
            statistics.append(torch.cat([mean, var]))
        z = x @ heads.kernel[g] + heads.bias[g]
        losses.append((cross_entropy(z, labels[g], reduction="none") * weight[g]).mean())
        correct.append(int((z.argmax(1) == labels[g]).sum()))
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    assert expected.grad is not None

    gradient = torch.zeros_like(rows)
    figures = backward(layout.views(rows), layout.views(gradient), features, labels, weight)
    torch.testing.assert_close(gradient, expected.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(figures.loss, torch.stack(losses).detach())
    assert figures.correct.tolist() == correct
    if hidden:
        torch.testing.assert_close(rows[:, layout.trained :], torch.stack(statistics))


def test_adam_is_torch_s_with_a_learning_rate_for_each_head() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(GROUP, 8, generator=generator)
    rates = torch.tensor([[1e-3], [1e-1], [3.0]])
    ours, adam = start.clone(), Adam(GROUP, 8, torch.device("cpu"))
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    optimiser = torch.optim.Adam(
        [{"params": [row], "lr": float(lr)} for row, lr in zip(theirs, rates, strict=True)], eps=1e-7
    )
    for _ in range(50):
        gradient = torch.randn(GROUP, 8, generator=generator) * 10 ** torch.randn(8, generator=generator)
        for row, piece in zip(theirs, gradient, strict=True):
            row.grad = piece.clone()
        optimiser.step()
        adam.update(ours, gradient, rates)
    torch.testing.assert_close(ours, torch.stack([row.detach() for row in theirs]), rtol=1e-5, atol=1e-5)
