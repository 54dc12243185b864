"""The head's weights, their layout, and a fitted head's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import batch_norm

from heads.training import model
from heads.training.backprop import inference
from heads.training.model import HeadWeights, Layout, logits

LAYOUTS = [Layout(features=7, hidden=5, classes=3), Layout(features=7, hidden=0, classes=2)]


def drawn_row(layout: Layout, seed: int = 0) -> torch.Tensor:
    """Weights as after some training: nothing is 0 or 1, variances are positive."""
    row = torch.randn(layout.width, generator=torch.Generator().manual_seed(seed))
    heads = layout.views(row[None])
    if heads.hidden is not None:
        heads.hidden.running_var.abs_()
    return row


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_torch_in_inference_form(layout: Layout) -> None:
    weights = layout.head_weights(drawn_row(layout))
    features = np.random.default_rng(0).standard_normal((11, layout.features), dtype=np.float32)
    x = torch.from_numpy(features)
    if (hidden := weights.hidden) is not None:
        x = torch.relu(x @ torch.tensor(hidden.kernel) + torch.tensor(hidden.bias))
        mean, var, gamma, beta = map(torch.tensor, (hidden.running_mean, hidden.running_var, hidden.gamma, hidden.beta))
        x = batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-3)
    expected = (x @ torch.tensor(weights.kernel) + torch.tensor(weights.bias)).numpy()
    np.testing.assert_allclose(logits(weights, features), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batched_inference_gives_each_head_the_logits_it_has_alone(layout: Layout) -> None:
    rows = torch.stack([drawn_row(layout, seed) for seed in range(3)])
    features = torch.randn(11, layout.features, generator=torch.Generator().manual_seed(9))
    together = inference(layout.views(rows)).logits(features).numpy()
    for head, row in enumerate(rows):
        alone = logits(layout.head_weights(row), features.numpy())
        np.testing.assert_allclose(together[head].T, alone, rtol=1e-4, atol=1e-5)


def test_logits_in_chunks_equal_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS[0]
    weights = layout.head_weights(drawn_row(layout))
    features = np.random.default_rng(0).standard_normal((11, layout.features)).astype(np.float16)
    at_once = logits(weights, features)
    monkeypatch.setattr(model, "CHUNK", 4)
    np.testing.assert_allclose(logits(weights, features), at_once, rtol=1e-6, atol=1e-6)


def test_logits_of_features_of_another_width_are_refused() -> None:
    weights = LAYOUTS[1].head_weights(drawn_row(LAYOUTS[1]))
    with pytest.raises(ValueError, match=r"wanted features \[N, 7\], got \[2, 8\]"):
        logits(weights, np.zeros((2, 8), dtype=np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_back_from_their_tensors(layout: Layout) -> None:
    weights = layout.head_weights(drawn_row(layout))
    again = HeadWeights.from_tensors(weights.tensors())
    assert again.layout == layout
    for name, tensor in weights.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor)


def test_tensors_that_are_no_head_are_refused_by_name() -> None:
    tensors = LAYOUTS[0].head_weights(drawn_row(LAYOUTS[0])).tensors()
    with pytest.raises(ValueError, match="at least, got"):
        HeadWeights.from_tensors({})
    with pytest.raises(ValueError, match=r"wanted tensors .*hidden.gamma"):
        HeadWeights.from_tensors({k: v for k, v in tensors.items() if k != "hidden.gamma"})
    with pytest.raises(ValueError, match=r"wanted hidden.beta as float32 \[5\], got float32 \[4\]"):
        HeadWeights.from_tensors({**tensors, "hidden.beta": tensors["hidden.beta"][:4]})
    with pytest.raises(ValueError, match=r"wanted kernel as float32 \[5, 3\], got float64"):
        HeadWeights.from_tensors({**tensors, "kernel": tensors["kernel"].astype(np.float64)})


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.sampled_from(LAYOUTS))
def test_initial_head_depends_on_its_seed_alone(seeds: list[int], layout: Layout) -> None:
    together = layout.initial(seeds)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, layout.initial([seed])[0])


def test_initial_head_is_as_keras_makes_it() -> None:
    layout = Layout(features=300, hidden=100, classes=2)
    weights = layout.head_weights(layout.initial([3])[0])
    assert weights.hidden is not None
    for kernel in (weights.hidden.kernel, weights.kernel):
        limit = np.sqrt(6 / sum(kernel.shape))
        assert abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.1)  # of a uniform distribution
    zeros = (weights.bias, weights.hidden.bias, weights.hidden.beta, weights.hidden.running_mean)
    assert not any(array.any() for array in zeros)
    assert all((array == 1).all() for array in (weights.hidden.gamma, weights.hidden.running_var))
