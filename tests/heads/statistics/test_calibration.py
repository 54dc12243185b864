"""Calibration on hand-made cases, against scikit-learn, and with a temperature that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from heads.statistics.calibration import (
    TEMPERATURES,
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from heads.statistics.metrics import evaluate, probabilities

PROBABILITY = np.array([0.1, 0.2, 0.3, 0.6, 0.8, 0.9])
TRUTH = np.array([False, False, True, False, True, True])


def test_bins_of_equal_mass_are_as_by_hand() -> None:
    low, high = reliability(PROBABILITY, TRUTH, 2)
    assert (low.probability, high.probability) == pytest.approx((0.2, 2.3 / 3))
    assert (low.positive, high.positive) == (1 / 3, 2 / 3)
    assert low.n == high.n == 3


def test_calibration_error_is_as_by_hand() -> None:
    assert expected_calibration_error(PROBABILITY, TRUTH, 2) == pytest.approx(((1 / 3 - 0.2) + (2.3 - 2) / 3) / 2)
    assert expected_calibration_error(PROBABILITY, TRUTH, 1) == pytest.approx(3 / 6 - 2.9 / 6)
    # As many bins as images: the distance of each.
    assert expected_calibration_error(PROBABILITY, TRUTH) == pytest.approx(np.mean(np.abs(PROBABILITY - TRUTH)))


def test_probability_that_comes_true_has_no_calibration_error() -> None:
    probability, truth = np.repeat([0.25, 0.75], 8), np.tile([False, False, False, True], 4)
    truth[8:] = ~truth[8:]
    assert expected_calibration_error(probability, truth) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1


def test_equal_probabilities_share_a_bin_in_whatever_order_they_come() -> None:
    probability, truth = np.repeat([0.2, 0.5, 0.9], [20, 3, 7]), np.arange(30) % 3 == 0
    order = np.random.default_rng(0).permutation(30)
    parts = reliability(probability, truth, 5)
    assert [part.n for part in parts] == [20, 3, 7]
    assert reliability(probability[order], truth[order], 5) == parts


@settings(max_examples=50)
@given(st.integers(1, 80), st.integers(1, 20), st.integers(0, 1000))
def test_bins_hold_every_image_in_ascending_order(n: int, bins: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probability, truth = random.random(n).round(2), random.random(n) < 0.5
    parts = reliability(probability, truth, bins)
    assert sum(part.n for part in parts) == n
    assert len(parts) <= bins
    means = [part.probability for part in parts]
    assert means == sorted(means)
    assert sum(part.n * part.positive for part in parts) == pytest.approx(truth.sum())
    assert 0 <= expected_calibration_error(probability, truth, bins) <= 1 + 1e-12


def test_diagram_is_scikit_learns_where_no_probabilities_are_equal() -> None:
    random = np.random.default_rng(0)
    probability = random.random(600)
    truth = random.random(600) < probability**2
    positive, mean = calibration_curve(truth, probability, n_bins=15, strategy="quantile")
    parts = reliability(probability, truth)
    assert {part.n for part in parts} == {40}
    np.testing.assert_allclose([part.probability for part in parts], mean)
    np.testing.assert_allclose([part.positive for part in parts], positive)


@pytest.mark.parametrize("truth", [TRUTH, np.ones(6, bool), np.zeros(6, bool)])
def test_brier_score_is_the_mean_square(truth: np.ndarray) -> None:
    assert brier(PROBABILITY, truth) == pytest.approx(np.mean((PROBABILITY - truth) ** 2))
    assert brier(PROBABILITY.astype(np.float32), truth) == pytest.approx(np.mean((PROBABILITY - truth) ** 2))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_known_temperature_is_found(temperature: float, classes: int) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, classes)) * 2
    labels = (probabilities(logits).cumsum(1) < random.random((20_000, 1))).sum(1)
    found = fit_temperature((logits * temperature).astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.04)


def test_fitted_temperature_is_the_best_of_a_grid_and_mends_calibration() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(800) % 2
    logits = np.stack([np.zeros(800), 6 * random.normal(2.0 * labels - 1)], 1)
    found = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return float(log_loss(labels, probabilities(logits / temperature)))

    assert loss(found) <= min(loss(temperature) for temperature in np.geomspace(*TEMPERATURES, 50))
    before, after = (probabilities(logits / t)[:, 1] for t in (1.0, found))
    truth = labels == 1
    assert expected_calibration_error(after, truth) < expected_calibration_error(before, truth) / 2
    assert brier(after, truth) < brier(before, truth)
    assert evaluate(logits / found, labels).confusion == evaluate(logits, labels).confusion


def test_temperature_stays_within_its_bounds() -> None:
    labels = np.array([0, 1, 0, 1])
    right = np.array([[1.0, -1], [-1, 1], [1, -1], [-1, 1]])
    assert TEMPERATURES[0] <= fit_temperature(right, labels) < 0.1  # below, the loss is 0 to the last bit
    assert fit_temperature(-right, labels) == pytest.approx(TEMPERATURES[1], rel=1e-3)
    assert np.isfinite(fit_temperature(right * 1e4, labels))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reliability: .*got \[6\], \[2\], 15 bins"):
        expected_calibration_error(PROBABILITY, TRUTH[:2])
    with pytest.raises(ValueError, match=r"fit_temperature: .*got \[4\] and \[4\]"):
        fit_temperature(np.zeros(4), np.zeros(4, np.int64))
