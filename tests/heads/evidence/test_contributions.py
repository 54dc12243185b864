"""The evidence, cell by cell: it sums to the head's logit, and is what autograd and a plain loop say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from heads.evidence.contributions import contributions, linear_part
from heads.training.model import BATCHNORM_EPSILON, HeadWeights, HiddenWeights, logits

D, HEIGHT, WIDTH = 12, 3, 4


def head(hidden: int, classes: int, seed: int) -> HeadWeights:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    layer = HiddenWeights(
        kernel=drawn(D, hidden),
        bias=drawn(hidden),
        gamma=drawn(hidden),
        beta=drawn(hidden),
        running_mean=drawn(hidden),
        running_var=drawn(hidden) ** 2,
    )
    return HeadWeights(hidden=layer if hidden else None, kernel=drawn(hidden or D, classes), bias=drawn(classes))


def a_map(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((D, HEIGHT, WIDTH)).astype(np.float32)


def evidence(weights: HeadWeights, feature: NDArray[np.floating], of_class: int) -> float:
    """The head's own word: its logit of the class less the mean of the others'."""
    logit = logits(weights, feature[None])[0].astype(float)
    return float(logit[of_class] - np.delete(logit, of_class).mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hidden", [0, 8, 33])
@pytest.mark.parametrize(("classes", "of_class"), [(2, 1), (2, 0), (4, 2)])
def test_cells_and_constant_sum_to_the_heads_logit(hidden: int, classes: int, of_class: int, seed: int) -> None:
    weights, last_map = head(hidden, classes, seed), a_map(seed + 100)
    parts = contributions(weights, last_map, of_class)
    wanted = evidence(weights, last_map.mean((1, 2)), of_class)
    assert parts.cells.shape == (HEIGHT, WIDTH)
    assert parts.cells.sum() + parts.constant == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert parts.evidence == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert parts.local_evidence.mean() == pytest.approx(parts.evidence)


def test_two_classes_give_the_log_odds() -> None:
    weights, last_map = head(8, 2, 0), a_map(1)
    logit = logits(weights, last_map.mean((1, 2))[None])[0].astype(float)
    probability = np.exp(logit) / np.exp(logit).sum()
    wanted = np.log(probability[1] / probability[0])
    assert contributions(weights, last_map, 1).evidence == pytest.approx(wanted, rel=1e-5)
    assert contributions(weights, last_map, 0).evidence == pytest.approx(-wanted, rel=1e-5)


def test_a_linear_heads_cell_is_its_weights_times_the_cells_values() -> None:
    weights, last_map = head(0, 2, 3), a_map(4)
    parts = contributions(weights, last_map, 1)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            total = 0.0
            for channel in range(D):
                weight = float(weights.kernel[channel, 1]) - float(weights.kernel[channel, 0])
                total += weight * float(last_map[channel, row, column]) / (HEIGHT * WIDTH)
            assert parts.cells[row, column] == pytest.approx(total, rel=1e-9)
            # A film that is everywhere as it is here.
            here = evidence(weights, last_map[:, row, column], 1)
            assert parts.local_evidence[row, column] == pytest.approx(here, rel=1e-4, abs=1e-5)
    assert parts.constant == pytest.approx(float(weights.bias[1] - weights.bias[0]))


@pytest.mark.parametrize("seed", range(5))
def test_a_hidden_heads_cells_are_autograds_gradient_times_the_map(seed: int) -> None:
    weights = head(33, 3, seed)
    layer = weights.hidden
    assert layer is not None
    t = {name: torch.from_numpy(array).double() for name, array in weights.tensors().items()}
    last_map = torch.from_numpy(a_map(seed)).double().requires_grad_()
    hidden = torch.relu(last_map.mean((1, 2)) @ t["hidden.kernel"] + t["hidden.bias"])
    normal = torch.nn.functional.batch_norm(
        hidden[None],
        t["hidden.running_mean"],
        t["hidden.running_var"],
        t["hidden.gamma"],
        t["hidden.beta"],
        eps=BATCHNORM_EPSILON,
    )[0]
    logit = normal @ t["kernel"] + t["bias"]
    (logit[2] - (logit[0] + logit[1]) / 2).backward()  # type: ignore[no-untyped-call]
    assert last_map.grad is not None
    wanted = (last_map.grad * last_map).sum(0).detach().numpy()
    np.testing.assert_allclose(contributions(weights, a_map(seed), 2).cells, wanted, rtol=1e-8, atol=1e-12)


def test_another_active_set_gives_another_gradient_and_the_same_exactness() -> None:
    weights = head(8, 2, 0)
    one, other = a_map(0).mean((1, 2)).astype(float), -a_map(0).mean((1, 2)).astype(float)
    gradients = [linear_part(weights, feature, 1) for feature in (one, other)]
    assert not np.allclose(gradients[0][0], gradients[1][0])
    for feature, (gradient, constant) in zip((one, other), gradients, strict=True):
        assert gradient @ feature + constant == pytest.approx(evidence(weights, feature, 1), rel=1e-4)


def test_the_peak_is_the_cell_that_adds_most() -> None:
    weights, last_map = head(0, 2, 0), np.zeros((D, HEIGHT, WIDTH), np.float32)
    last_map[:, 2, 1] = weights.kernel[:, 1] - weights.kernel[:, 0]
    last_map[:, 0, 3] = -2 * last_map[:, 2, 1]
    assert contributions(weights, last_map, 1).peak == (2, 1)
    assert contributions(weights, last_map, 0).peak == (0, 3)


def test_a_map_of_another_width_and_a_class_that_is_none_are_misuse() -> None:
    with pytest.raises(ValueError, match=r"wanted a map \[12, h, w\], got \[11, 3, 4\]"):
        contributions(head(0, 2, 0), a_map(0)[1:], 1)
    with pytest.raises(ValueError, match="wanted a class of 2, got 2"):
        contributions(head(0, 2, 0), a_map(0), 2)
