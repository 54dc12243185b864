"""Training, against a plain torch loop and scikit-learn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from featcache.errors import RunError
from heads.statistics.metrics import evaluate, probabilities
from heads.training.config import HeadConfig
from heads.training.early_stopping import FIGURES, EarlyStopping
from heads.training.group import Group
from heads.training.model import HeadWeights, Layout, logits
from heads.training.samples import Rows, class_weights
from heads.training.train import EpochProgress, Samples, epoch_order, fit


def samples(images: int, seed: int, *, classes: int = 2, views: int = 3, signal: float = 0.5) -> Samples:
    """Noise with a class-dependent shift; classes of unequal size, every one present."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=images, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    labels[:classes] = range(classes)
    centre = np.random.default_rng(99).standard_normal((classes, 10))
    image = rng.standard_normal((images, 1, 10)) + signal * centre[labels][:, None]
    features = image + 0.3 * rng.standard_normal((images, views, 10))
    return Samples(features=features.astype(np.float32), labels=labels, classes=classes)


TRAIN, VAL = samples(81, 1), samples(31, 2)  # 81 = 5 · 16 + 1: the last row of an epoch is left out
BASE = HeadConfig(hidden=6, l2=1e-3, lr=1e-2, epochs=12, patience=3, batch_size=16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for, and long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torch_head(weights: HeadWeights) -> torch.nn.Sequential:
    """The same head of torch's own modules."""
    layout = weights.layout
    last = torch.nn.Linear(*weights.kernel.shape)
    last.load_state_dict({"weight": torch.tensor(weights.kernel.T), "bias": torch.tensor(weights.bias)})
    if (hidden := weights.hidden) is None:
        return torch.nn.Sequential(last)
    dense = torch.nn.Linear(layout.features, layout.hidden)
    dense.load_state_dict({"weight": torch.tensor(hidden.kernel.T), "bias": torch.tensor(hidden.bias)})
    norm = torch.nn.BatchNorm1d(layout.hidden, eps=1e-3, momentum=0.1)
    state = {
        "weight": torch.tensor(hidden.gamma),
        "bias": torch.tensor(hidden.beta),
        "running_mean": torch.tensor(hidden.running_mean),
        "running_var": torch.tensor(hidden.running_var),
    }
    norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
    return torch.nn.Sequential(dense, torch.nn.ReLU(), norm, last)


def reference(train: Samples, val: Samples, config: HeadConfig) -> tuple[dict[str, list[float]], int, Any]:
    """Train one head as anyone would in torch: its modules, its optimiser, a plain loop."""
    images, views = train.features.shape[:2]
    layout = Layout(features=train.features.shape[2], hidden=config.hidden, classes=train.classes)
    head = torch_head(layout.head_weights(layout.initial([config.seed])[0]))
    kernel = cast("torch.Tensor", head[0].weight)
    optimiser = torch.optim.Adam(head.parameters(), lr=config.lr, eps=1e-7)
    balanced = compute_class_weight("balanced", classes=np.arange(train.classes), y=train.labels)
    weight = torch.tensor(balanced if config.class_weights == "balanced" else [1.0] * train.classes).float()
    history: dict[str, list[float]] = {name: [] for name in FIGURES}
    best_epoch, best = -1, {}
    for epoch in range(config.epochs):
        order, view = epoch_order(config, epoch, images, views)
        head.train()
        total, right, seen = 0.0, 0, 0
        for start in range(0, images, config.batch_size):
            picked = slice(start, start + config.batch_size)
            if len(order[picked]) < 2:
                continue
            x = torch.from_numpy(train.features[order[picked], view[picked]])
            y = torch.from_numpy(train.labels[order[picked]])
            z = head(x)
            loss = (weight[y] * cross_entropy(z, y, reduction="none")).mean()
            optimiser.zero_grad()
            objective = loss + config.l2 * kernel.square().sum()
            objective.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            optimiser.step()
            total, seen = total + len(y) * loss.item(), seen + len(y)
            right += int((z.argmax(1) == y).sum())
        head.eval()
        with torch.no_grad():
            z = head(torch.from_numpy(val.features).flatten(0, 1)).unflatten(0, (-1, views))
        y = torch.from_numpy(val.labels)
        clean, mean = cross_entropy(z[:, 0], y).item(), cross_entropy(z.mean(1), y).item()
        penalty = config.l2 * kernel.square().sum().item()
        accuracy = (z[:, 0].argmax(1) == y).float().mean().item()
        row = (total / seen, right / seen, penalty, clean, accuracy, mean)
        for name, value in zip(FIGURES, row, strict=True):
            history[name].append(value)
        if best_epoch < 0 or clean < history["val_loss"][best_epoch]:
            best_epoch, best = epoch, {name: tensor.clone() for name, tensor in head.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    head.load_state_dict(best)
    return history, best_epoch, head.eval()


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("rule", ["balanced", "none"])
def test_head_equals_a_plain_torch_loop(hidden: int, rule: Any) -> None:
    train, val = samples(81, 1, classes=3, signal=0.1), samples(31, 2, classes=3, signal=0.1)
    config = replace(BASE, hidden=hidden, epochs=40, lr=3e-2, class_weights=rule)
    history, best_epoch, head = reference(train, val, config)
    (fitted,) = fit(train, val, [config])
    assert fitted.stop_reason == "patience"  # or the test would show less than it says
    assert (fitted.epochs_run, fitted.best_epoch) == (len(history["val_loss"]), best_epoch)
    for name in FIGURES:
        np.testing.assert_allclose(getattr(fitted.history, name), history[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = head(torch.from_numpy(val.features[:, 0])).numpy()
    np.testing.assert_allclose(logits(fitted.weights, val.features[:, 0]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_head_reaches_scikit_learn_s_optimum(classes: int) -> None:
    data = samples(90, 3, classes=classes, views=1)
    images, l2 = 90, 1e-2
    config = HeadConfig(hidden=0, l2=l2, lr=5e-3, batch_size=images)
    weights = class_weights(data.labels, classes, "balanced")
    group = Group([config], [weights], Rows.of(data, torch.device("cpu")), classes)
    with torch.no_grad():
        for epoch in range(2500):
            loss, _ = group.train_epoch(epoch, views=1)
    # Ours is mean loss + λ·Σ_k|w_k|², scikit-learn's C·(sum of losses) + ½·Σ_k|w_k|². Of two classes it keeps
    # one vector w = w_1 - w_0, and at the optimum |w_0|² + |w_1|² = ½·|w|².
    c = 1 / (l2 * images) if classes == 2 else 1 / (2 * l2 * images)
    optimum = LogisticRegression(C=c, class_weight="balanced", tol=1e-8, max_iter=1000)
    x = data.features[:, 0].astype(np.float64)
    expected = optimum.fit(x, data.labels).predict_proba(x)
    ours = probabilities(logits(group.layout.head_weights(group.rows[0]), data.features[:, 0]))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    cross_entropies = -np.log(expected[np.arange(images), data.labels])
    norm = (optimum.coef_**2).sum() * (0.5 if classes == 2 else 1)
    assert loss.item() == pytest.approx((cross_entropies * np.take(weights, data.labels)).mean(), abs=1e-5)
    assert group.penalty().item() == pytest.approx(l2 * norm, abs=1e-5)


def test_weights_of_the_best_epoch_are_restored() -> None:
    config = replace(BASE, lr=5e-2, epochs=30)
    (fitted,) = fit(TRAIN, VAL, [config])
    assert fitted.stop_reason == "patience"
    assert fitted.epochs_run == fitted.best_epoch + 1 + config.patience
    z = logits(fitted.weights, VAL.features.reshape(-1, 10)).reshape(31, 3, 2)
    clean, history = evaluate(z[:, 0], VAL.labels), fitted.history
    assert clean.loss == pytest.approx(min(history.val_loss), abs=1e-5)
    assert clean.accuracy == pytest.approx(history.val_accuracy[fitted.best_epoch])
    view_mean = evaluate(z.mean(1), VAL.labels)
    assert view_mean.loss == pytest.approx(history.val_loss_view_mean[fitted.best_epoch], abs=1e-5)


def test_progress_tells_each_epoch_and_ends_with_nothing_left() -> None:
    told: list[EpochProgress] = []
    configs = [replace(BASE, epochs=2), replace(BASE, hidden=0, epochs=3), replace(BASE, epochs=4)]
    fitted = fit(TRAIN, VAL, configs, on_epoch=told.append)
    assert [p.head_epochs_done for p in told] == [2, 4, 5, 6, 7, 8, 9]
    assert [p.head_epochs_left for p in told] == [7, 5, 4, 3, 2, 1, 0]
    assert [p.heads_done for p in told] == [0, 1, 1, 2, 2, 2, 3]
    assert told[-1].best_val_loss == min(min(head.history.val_loss) for head in fitted)


def test_what_progress_raises_ends_the_fit() -> None:
    def refuse(_: EpochProgress) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fit(TRAIN, VAL, [replace(BASE, seed=seed, epochs=1000, patience=1000) for seed in range(3)], on_epoch=refuse)
    assert threading.active_count() == before  # no group goes on behind the caller's back


@pytest.mark.parametrize("hidden", [0, 6])
def test_head_that_diverges_at_once_is_named(hidden: int) -> None:
    wild = replace(BASE, hidden=hidden, lr=1e30)
    with pytest.raises(RunError, match=r"head l2=0\.001, lr=1e\+30: the loss is not finite .*smaller learning rate"):
        fit(TRAIN, VAL, [replace(BASE, hidden=hidden), wild])


def test_patience_counts_epochs_without_a_lower_loss() -> None:
    stopping = EarlyStopping(replace(BASE, patience=2, epochs=99))
    improved = [stopping.observe(dict.fromkeys(FIGURES, loss)) for loss in (3.0, 2.0, 2.0, 1.5, 1.6, 1.5)]
    assert improved == [True, True, False, True, False, False]
    assert (stopping.best_epoch, stopping.stopped) == (3, "patience")
