"""The hand-written gradients and Adam, against autograd and torch.optim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy

from heads.training import adam as adam_module
from heads.training.adam import Adam
from heads.training.backprop import backward, decide
from heads.training.model import Layout

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
        z = x @ heads.kernel[g].T + heads.bias[g]
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


@pytest.mark.parametrize("hidden", [0, 6])
def test_heads_that_share_a_batch_have_the_gradients_of_heads_that_each_hold_a_copy(hidden: int) -> None:
    generator = torch.Generator().manual_seed(hidden)
    layout = Layout(features=5, hidden=hidden, classes=3)
    rows = torch.randn(GROUP, layout.width, generator=generator, dtype=torch.float64)
    batch = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (1, BATCH), generator=generator)
    weight = torch.rand(GROUP, BATCH, generator=generator, dtype=torch.float64)
    results = []
    for features, classes in ((batch, labels), (batch.repeat(GROUP, 1, 1), labels.repeat(GROUP, 1))):
        gradient = torch.zeros_like(rows)
        figures = backward(layout.views(rows.clone()), layout.views(gradient), features, classes, weight)
        results.append((gradient, *figures))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("shared", [True, False])
def test_products_in_bfloat16_are_those_of_float32_but_for_rounding(hidden: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(hidden)
    layout = Layout(features=5, hidden=hidden, classes=2)
    # Halves and whole numbers this small are exact in bfloat16, and so are sums of five of their products: the loss
    # must be the same. The gradient's other factor is rounded to 8 bits, 0.4 %.
    rows = torch.randint(-2, 3, (GROUP, layout.width), generator=generator) / 2
    features = torch.randint(-1, 2, (1 if shared else GROUP, BATCH, 5), generator=generator).float()
    features = features[0] if shared else features
    labels = torch.randint(2, (1 if shared else GROUP, BATCH), generator=generator)
    weight = torch.ones(GROUP, BATCH)
    full, low = torch.zeros_like(rows), torch.zeros_like(rows)
    expected = backward(layout.views(rows.clone()), layout.views(full), features, labels, weight)
    figures = backward(layout.views(rows.clone()), layout.views(low), features.bfloat16(), labels, weight)
    assert torch.equal(figures.loss, expected.loss)
    assert torch.equal(figures.correct, expected.correct)
    assert not torch.equal(low, full)  # or nothing was computed in bfloat16
    scale = full.abs().max().item()
    torch.testing.assert_close(low, full, rtol=0.02, atol=0.01 * scale)


def test_decision_is_the_first_of_the_highest_logits() -> None:
    z = torch.randint(3, (2, 4, 50), generator=torch.Generator().manual_seed(0)).float()  # many are equal
    np.testing.assert_array_equal(decide(z).numpy(), z.numpy().argmax(1))


@pytest.mark.parametrize("fused_from", [1, 1000], ids=["one by one", "together"])
def test_adam_is_torch_s_with_a_rate_and_a_penalty_for_each_head(
    fused_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam_module, "FUSED_COLUMNS", fused_from)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(GROUP, 8, generator=generator)
    rates, penalties = torch.tensor([1e-3, 1e-1, 3.0]), torch.tensor([0.0, 0.1, 1.0])
    ours, adam = start.clone(), Adam(rates, penalties, 8, 5, torch.device("cpu"))
    theirs = [[torch.nn.Parameter(piece.clone()) for piece in (row[:5], row[5:])] for row in start]
    optimiser = torch.optim.Adam(
        [
            {"params": [piece], "lr": float(lr), "weight_decay": decay}
            for pieces, lr, l2 in zip(theirs, rates, penalties, strict=True)
            for piece, decay in zip(pieces, (2 * float(l2), 0.0), strict=True)
        ],
        eps=1e-7,
    )
    for _ in range(50):
        gradient = torch.randn(GROUP, 8, generator=generator) * 10 ** torch.randn(8, generator=generator)
        for pieces, row in zip(theirs, gradient, strict=True):
            pieces[0].grad, pieces[1].grad = row[:5].clone(), row[5:].clone()
        optimiser.step()
        adam.update(ours, gradient)
    expected = torch.stack([torch.cat((kernel, rest)).detach() for kernel, rest in theirs])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
