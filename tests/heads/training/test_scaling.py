"""Standardised heads, against scikit-learn's StandardScaler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from heads.training import scaling as scaling_module
from heads.training.config import HeadConfig, ViewPolicy
from heads.training.model import Layout, logits
from heads.training.samples import Samples
from heads.training.scaling import Scaling
from heads.training.train import fit

CONFIG = HeadConfig(hidden=6, l2=1e-2, lr=1e-2, epochs=8, patience=3, batch_size=16, standardise=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for, and long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(images: int, seed: int) -> Samples:
    """Features [N, 3, 10] of very different means and spreads, two of them constant; other views lie elsewhere."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=images)
    features = rng.standard_normal((images, 3, 10)) + 0.5 * labels[:, None, None]
    features[:, 1:] += 0.7
    features = 20 * np.arange(10) + features * 10.0 ** np.linspace(-2, 2, 10)
    features[..., 3], features[..., 4] = 0, 7.3
    return Samples(features=features.astype(np.float32), labels=labels, classes=2)


TRAIN, VAL = samples(81, 1), samples(31, 2)


def scaler(policy: ViewPolicy) -> StandardScaler:
    rows = TRAIN.features if policy == "random" else TRAIN.features[:, :1]
    return StandardScaler().fit(rows.reshape(-1, 10).astype(np.float64))


def standardised(split: Samples, policy: ViewPolicy) -> Samples:
    flat = scaler(policy).transform(split.features.reshape(-1, 10).astype(np.float64))
    return replace(split, features=flat.reshape(split.features.shape).astype(np.float32))


@pytest.mark.parametrize("policy", ["random", "clean"])
def test_scaling_is_scikit_learn_s_of_the_views_that_are_drawn(
    policy: ViewPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_module, "CHUNK", 50)
    ours, theirs = Scaling.of(TRAIN, policy, torch.device("cpu")), scaler(policy)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-5)
    assert ours.scale[[3, 4]].tolist() == [1, 1]


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("policy", ["random", "clean"])
def test_standardised_head_is_the_head_of_features_that_scikit_learn_standardised(
    hidden: int, policy: ViewPolicy
) -> None:
    config = replace(CONFIG, hidden=hidden, view_policy=policy)
    (ours,) = fit(TRAIN, VAL, [config])
    train, val = standardised(TRAIN, policy), standardised(VAL, policy)
    (theirs,) = fit(train, val, [replace(config, standardise=False)])
    assert (ours.best_epoch, ours.stop_reason) == (theirs.best_epoch, theirs.stop_reason)
    # The penalty too: it is of the kernel on standardised features.
    for name, expected in vars(theirs.history).items():
        np.testing.assert_allclose(getattr(ours.history, name), expected, rtol=1e-3, atol=1e-4, err_msg=name)
    # The fitted head takes features as they are.
    expected = logits(theirs.weights, val.features[:, 0])
    np.testing.assert_allclose(logits(ours.weights, VAL.features[:, 0]), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("hidden", [0, 6])
def test_folded_heads_give_for_features_what_they_give_for_standardised_ones(hidden: int) -> None:
    layout = Layout(features=10, hidden=hidden, classes=3)
    rows = torch.randn(2, layout.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).abs()
    heads = layout.views(rows)
    scaling = Scaling.of(TRAIN, "random", torch.device("cpu"))
    scaling = Scaling(mean=scaling.mean.double(), scale=scaling.scale.double())
    x = torch.from_numpy(VAL.features[:, 0].astype(np.float64))
    first = heads.kernel.mT if heads.hidden is None else heads.hidden.kernel
    bias = heads.bias if heads.hidden is None else heads.hidden.bias
    expected = torch.matmul((x - scaling.mean) / scaling.scale, first) + bias[:, None]
    before = rows.clone()
    folded = scaling.fold(heads)
    kernel = folded.kernel.mT if folded.hidden is None else folded.hidden.kernel
    offset = folded.bias if folded.hidden is None else folded.hidden.bias
    torch.testing.assert_close(torch.matmul(x, kernel) + offset[:, None], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(rows, before)


def test_one_grid_may_hold_heads_with_and_without_it() -> None:
    plain = replace(CONFIG, standardise=False)
    together = fit(TRAIN, VAL, [CONFIG, plain])
    for config, head in zip((CONFIG, plain), together, strict=True):
        (alone,) = fit(TRAIN, VAL, [config])
        for name, tensor in alone.weights.tensors().items():
            np.testing.assert_array_equal(head.weights.tensors()[name], tensor, err_msg=name)
    assert together[0].history.val_loss[0] != together[1].history.val_loss[0]
