"""A head in a grid is the head alone, and other things that must not change a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import RunError
from heads.training import train as train_module
from heads.training.config import HeadConfig
from heads.training.early_stopping import FIGURES
from heads.training.group import Group
from heads.training.samples import Rows
from heads.training.train import FittedHead, Samples, fit


def samples(images: int, seed: int) -> Samples:
    """Noise, [N, 3, 10], in which the second class is shifted a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=images)
    image = rng.standard_normal((images, 1, 10)) + 0.3 * labels[:, None, None]
    features = image + 0.3 * rng.standard_normal((images, 3, 10))
    return Samples(features=features.astype(np.float32), labels=labels, classes=2)


TRAIN, VAL = samples(81, 1), samples(31, 2)  # 81 = 5 · 16 + 1: the last row of an epoch is left out
BASE = HeadConfig(hidden=6, l2=1e-3, lr=1e-2, epochs=12, patience=3, batch_size=16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for, and long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "changes",
    [
        [{"l2": 0.0}, {"l2": 1e-2}, {"l2": 1.0}],
        [{"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-1}],
        [{"hidden": 0}, {"hidden": 3}, {"hidden": 6}],
        [{"seed": 1}, {"seed": 2}, {"seed": 2**40}],
        [{"class_weights": "none"}, {"class_weights": "balanced"}],
        [{"view_policy": "clean"}, {"view_policy": "random"}],
        [{"standardise": False}, {"standardise": True}, {"standardise": True, "view_policy": "clean"}],
        [{"patience": 1}, {"patience": 2}, {"patience": 12}],
        [{"epochs": 1}, {"epochs": 5}, {"epochs": 12}],
        [{"batch_size": 8}, {"batch_size": 40}, {"batch_size": 1000}],
    ],
    ids=lambda changes: str(next(iter(changes[0]))),
)
def test_head_trained_in_a_grid_equals_head_trained_alone(changes: list[dict[str, Any]]) -> None:
    configs = [replace(BASE, **change) for change in changes]
    for config, together in zip(configs, fit(TRAIN, VAL, configs), strict=True):
        (alone,) = fit(TRAIN, VAL, [config])
        assert together.config == config
        assert_same(together, alone, tolerance=1e-5)


def assert_same(one: FittedHead, other: FittedHead, *, tolerance: float) -> None:
    assert (one.best_epoch, one.stop_reason, one.class_weight) == (
        other.best_epoch,
        other.stop_reason,
        other.class_weight,
    )
    for name in FIGURES:
        ours, theirs = getattr(one.history, name), getattr(other.history, name)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    for name, tensor in one.weights.tensors().items():
        np.testing.assert_allclose(tensor, other.weights.tensors()[name], rtol=0, atol=tolerance)


def test_neighbours_do_not_change_a_bit_of_a_head() -> None:
    mild, wild = replace(BASE, l2=1e-2), replace(BASE, l2=0.5, lr=0.3, class_weights="none")
    one, other = fit(TRAIN, VAL, [BASE, mild])[0], fit(TRAIN, VAL, [BASE, wild])[0]
    assert_same(one, other, tolerance=0)


@pytest.mark.parametrize("hidden", [0, 6])
def test_number_of_threads_does_not_change_a_bit_of_a_grid_s_heads(hidden: int) -> None:
    # Groups of one seed each, at least as many as threads: each runs on a thread of its own.
    configs = [replace(BASE, hidden=hidden, seed=seed, l2=l2) for seed in range(4) for l2 in (0.0, 1e-2)]
    by_one = fit(TRAIN, VAL, configs)
    torch.set_num_threads(3)
    for one, other in zip(by_one, fit(TRAIN, VAL, configs), strict=True):
        assert one.config == other.config
        assert_same(one, other, tolerance=0)
    assert torch.get_num_threads() == 3  # as the caller had it


def test_head_in_a_group_of_its_own_equals_head_alone_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    # As is every head of some size: one fills a core's share of the cache.
    monkeypatch.setattr(train_module, "CPU_GROUP_BYTES", 1)
    configs = [replace(BASE, l2=l2, lr=lr) for l2 in (0.0, 1e-2) for lr in (1e-3, 1e-1)]
    for config, together in zip(configs, fit(TRAIN, VAL, configs), strict=True):
        assert_same(together, fit(TRAIN, VAL, [config])[0], tolerance=0)


@pytest.mark.parametrize("hidden", [0, 6])
def test_heads_of_different_batches_in_one_group_equal_heads_alone(hidden: int) -> None:
    """As accelerators group them; a processor's groups share their batches."""
    configs = [replace(BASE, hidden=hidden), replace(BASE, hidden=hidden, seed=1), replace(BASE, hidden=hidden, lr=0.1)]
    together, alone = make_group(configs), [make_group([config]) for config in configs]
    with torch.no_grad():
        for epoch in range(3):
            figures = torch.stack(together.train_epoch(epoch, 3))
            expected = torch.cat([torch.stack(group.train_epoch(epoch, 3)) for group in alone], 1)
            torch.testing.assert_close(figures, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.rows, torch.cat([group.rows for group in alone]), rtol=1e-4, atol=1e-5)


def make_group(configs: list[HeadConfig]) -> Group:
    return Group(configs, [(0.9, 1.1)] * len(configs), Rows.of(TRAIN, torch.device("cpu")), 2)


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)], ids=["batches shared", "batches of their own"])
def test_dropping_a_stopped_head_changes_nothing_of_those_that_go_on(hidden: int, seeds: tuple[int, int, int]) -> None:
    configs = [
        replace(BASE, hidden=hidden, seed=seed, l2=l2, lr=lr)
        for seed, l2, lr in zip(seeds, (0.0, 1e-3, 1e-1), (1e-3, 1e-2, 1e-1), strict=True)
    ]
    whole, dropped = make_group(configs), make_group(configs)
    with torch.no_grad():
        for epoch in range(2):
            whole.train_epoch(epoch, 3)
            dropped.train_epoch(epoch, 3)
        dropped.keep([0, 2])
        for epoch in range(2, 4):
            whole.train_epoch(epoch, 3)
            dropped.train_epoch(epoch, 3)
    assert dropped.configs == [configs[0], configs[2]]
    # Weights, BatchNorm's running statistics among them, and the optimiser's state; 1e-6 as other shapes may take
    # other instructions.
    for ours, theirs in (
        (dropped.rows, whole.rows),
        (dropped.adam.first, whole.adam.first),
        (dropped.adam.second, whole.adam.second),
    ):
        torch.testing.assert_close(ours, theirs[[0, 2]], rtol=1e-5, atol=1e-6)
    assert dropped.adam.steps == whole.adam.steps


def test_stopped_head_is_frozen_exactly_while_others_go_on() -> None:
    short = replace(BASE, epochs=3)
    with_short, with_long = fit(TRAIN, VAL, [short, short]), fit(TRAIN, VAL, [short, BASE])
    assert with_long[1].epochs_run > 3
    assert_same(with_short[0], with_long[0], tolerance=0)


def test_heads_in_small_groups_equal_heads_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [replace(BASE, seed=seed, hidden=hidden) for seed in range(3) for hidden in (0, 6)]
    at_once = fit(TRAIN, VAL, configs)
    monkeypatch.setattr(train_module, "CPU_GROUP_BYTES", 1)
    for one, other in zip(at_once, fit(TRAIN, VAL, configs), strict=True):
        assert one.config == other.config
        assert_same(one, other, tolerance=1e-5)


def test_training_repeats_to_the_bit() -> None:
    configs = [BASE, replace(BASE, seed=1)]
    for one, other in zip(fit(TRAIN, VAL, configs), fit(TRAIN, VAL, configs), strict=True):
        assert_same(one, other, tolerance=0)


def test_head_that_diverges_later_keeps_its_best_weights_and_harms_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = [BASE, replace(BASE, l2=1e-2)]
    expected = [fit(TRAIN, VAL, [replace(BASE, epochs=2)])[0], fit(TRAIN, VAL, [configs[1]])[0]]
    train_epoch = Group.train_epoch

    def spoil(group: Group, epoch: int, views: int) -> tuple[torch.Tensor, torch.Tensor]:
        if epoch == 2:
            assert len(group.rows) == 2
            group.rows[0] = float("nan")
        return train_epoch(group, epoch, views)

    monkeypatch.setattr(Group, "train_epoch", spoil)
    spoilt, neighbour = fit(TRAIN, VAL, configs)
    assert spoilt.stop_reason == "not finite"
    assert_same(replace(spoilt, stop_reason="epochs"), expected[0], tolerance=1e-5)
    assert_same(neighbour, expected[1], tolerance=1e-5)


def test_clean_policy_looks_at_view_0_alone() -> None:
    spoilt = replace(TRAIN, features=np.concatenate([TRAIN.features[:, :1], TRAIN.features[:, 1:] + 5], axis=1))
    configs = [replace(BASE, view_policy="clean")]
    assert_same(fit(TRAIN, VAL, configs)[0], fit(spoilt, VAL, configs)[0], tolerance=0)


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "has_fast_bfloat16", lambda _: False)
    with pytest.raises(RunError, match=r"cpu has no products in bfloat16 of its own.*say precision float32"):
        fit(TRAIN, VAL, [BASE, replace(BASE, precision="bfloat16")])


@pytest.mark.parametrize("hidden", [0, 6])
def test_head_trained_in_bfloat16_is_about_as_good(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "has_fast_bfloat16", lambda _: True)  # or emulated, as far as values go
    full = replace(BASE, hidden=hidden, epochs=6, patience=6)
    exact, rounded = fit(TRAIN, VAL, [full, replace(full, precision="bfloat16")])
    assert exact.history.val_loss != rounded.history.val_loss
    np.testing.assert_allclose(rounded.history.val_loss, exact.history.val_loss, rtol=0.03)


def test_float16_features_train_as_their_float32_copies() -> None:
    half = [replace(split, features=split.features.astype(np.float16)) for split in (TRAIN, VAL)]
    full = [replace(split, features=split.features.astype(np.float32)) for split in half]
    assert_same(fit(half[0], half[1], [BASE])[0], fit(full[0], full[1], [BASE])[0], tolerance=0)
