"""Tests of two heads on the same images: published examples, scipy, all signs, and the level under equality."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import delong_1988, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from heads.statistics.auc import auc_interval
from heads.statistics.paired import PairedTest, delong, mcnemar


def compare(a: NDArray[Any], b: NDArray[Any], truth: NDArray[np.bool_], patient: NDArray[Any] | None) -> PairedTest:
    found = delong(a, b, truth, patient)
    assert found is not None
    return found


def table(
    both: int, only_a: int, only_b: int, neither: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Decisions of a and b, and the truth, of a 2 x 2 table of right and wrong."""
    counts = (both, only_a, only_b, neither)
    a, b = np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
    return a, b, np.ones(len(a), bool)


@pytest.mark.parametrize(
    ("test", "difference", "error", "p"), [("albumin", 0.0108, 0.0953, 0.9102), ("protein", -0.0780, 0.1046, 0.4561)]
)
def test_delong_finds_what_the_paper_of_delong_found(test: str, difference: float, error: float, p: float) -> None:
    # SAS/STAT, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves": contrasts with the K-G score
    figures, truth = delong_1988()
    found = compare(figures[test], figures["k-g"], truth, None)
    assert found.difference.value == pytest.approx(difference, abs=5e-5)
    assert (found.difference.high - found.difference.low) / 2 / stats.norm.ppf(0.975) == pytest.approx(error, abs=5e-5)
    assert found.p == pytest.approx(p, abs=5e-5)


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_delong_is_that_of_covariance_matrices_of_plain_components(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.permutation(np.arange(24) % 3 > 0)
    a, b = random.integers(8, size=(2, 24)) / 8 + truth * 0.3
    rows, columns, areas = [], [], []
    for value in (a, b):
        win = np.array([[(x > y) + (x == y) / 2 for y in value[~truth]] for x in value[truth]])
        rows.append(win.mean(1))
        columns.append(win.mean(0))
        areas.append(win.mean())
    covariance = np.cov(rows) / truth.sum() + np.cov(columns) / (~truth).sum()
    spread = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = compare(a, b, truth, None)
    assert found.difference.value == pytest.approx(areas[0] - areas[1])
    if spread > 1e-12:
        z = (areas[0] - areas[1]) / spread**0.5
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-9)


def test_swapping_the_heads_turns_the_sign_and_nothing_else() -> None:
    probability, truth, patient = sample(0)
    other = probability[np.random.default_rng(0).permutation(len(truth))]
    for test, x, y in ((compare, probability, other), (mcnemar, probability > 0.5, other > 0.5)):
        there, back = test(x, y, truth, patient), test(y, x, truth, patient)
        assert there.p == pytest.approx(back.p)
        low, high = there.difference.low, there.difference.high
        assert (back.difference.low, back.difference.high) == pytest.approx((-high, -low))
        assert low < there.difference.value < high


def test_heads_that_rank_alike_do_not_differ() -> None:
    probability, truth, patient = sample(1)
    found = compare(probability, probability**3, truth, patient)
    assert (found.p, found.difference.value, found.difference.low, found.difference.high) == (1, 0, 0, 0)


def test_what_the_images_cannot_tell_has_no_p() -> None:
    truth = np.arange(9) % 3 > 0
    found = compare(truth * 0.8, np.full(9, 0.5), truth, None)
    assert (found.p, found.difference.value, found.difference.low, found.difference.high) == (None, 0.5, -1, 1)
    probability = np.arange(9) / 9
    assert compare(probability, np.sin(7 * probability), truth, truth * 1).p is None  # a class is one patient
    assert delong(probability, probability, np.ones(9, bool), None) is None


def test_delong_by_patient_keeps_its_level_where_delong_by_image_does_not() -> None:
    random = np.random.default_rng(0)
    patient, rounds = np.repeat(np.arange(60), 4), 300
    truth = patient % 2 == 0
    rejected = np.zeros(2)
    for _ in range(rounds):
        # Each head has its own opinion of a patient, so that his images err together; neither head is better.
        a, b = (truth * 1.5 + random.normal(size=60)[patient] + random.normal(size=240) * 0.5 for _ in range(2))
        for k, whom in enumerate((patient, None)):
            p = compare(a, b, truth, whom).p
            assert p is not None
            rejected[k] += p < 0.05
    assert 0.01 <= rejected[0] / rounds <= 0.09
    assert rejected[1] / rounds > 0.15


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 7), (0, 5), (12, 3), (30, 31), (86, 150), (4, 4)])
def test_mcnemar_is_the_mid_p_of_the_binomial(only_a: int, only_b: int) -> None:
    found = mcnemar(*table(5, only_a, only_b, 3), None)
    n, k = only_a + only_b, min(only_a, only_b)
    exact = stats.binomtest(k, n).pvalue
    expected = exact - stats.binom.pmf(k, n, 0.5) if only_a != only_b else 1
    assert found.p == pytest.approx(expected)
    assert found.difference.value == pytest.approx((only_a - only_b) / (n + 8))


def test_mcnemar_finds_the_published_mid_p() -> None:
    # Bentur et al. 2009 in Fagerland et al. 2013: airway hyper-responsiveness of 21 children, exact 0.070
    assert mcnemar(*table(1, 1, 7, 12), None).p == pytest.approx(0.0391, abs=5e-5)


def test_mcnemar_agrees_with_chi_square_where_counts_are_large() -> None:
    # Agresti 1990, Categorical Data Analysis, p. 350: approval of the president in two surveys, χ² = 17.356
    found = mcnemar(*table(794, 150, 86, 570), None)
    statistic, corrected = 64**2 / 236, 63**2 / 236
    assert statistic == pytest.approx(17.3559, abs=5e-5)
    assert stats.chi2.sf(statistic, 1) == pytest.approx(3.099e-5, abs=5e-9)
    assert found.p == pytest.approx(3.099e-5, rel=0.1)
    assert found.p is not None
    assert found.p < stats.chi2.sf(corrected, 1)


def test_mcnemars_interval_is_walds_with_half_an_image_a_cell() -> None:
    found = mcnemar(*table(794, 150, 86, 570), None).difference
    n, b, c = 1602, 150.5, 86.5
    centre, half = (b - c) / n, 1.959964 * (b + c - (b - c) ** 2 / n) ** 0.5 / n
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_mcnemar_by_patient_counts_all_signs(people: list[tuple[int, int]]) -> None:
    gain = np.concatenate([[1] * a + [-1] * b + [0] for a, b in people])
    patient = np.repeat(np.arange(len(people)), [a + b + 1 for a, b in people])
    found = mcnemar(gain >= 0, gain <= 0, np.ones(len(gain), bool), patient)
    net = np.array([a - b for a, b in people])
    sums = np.abs([net @ signs for signs in itertools.product([1, -1], repeat=len(net))])
    total = abs(net.sum())
    expected = np.mean(sums > total) + np.mean(sums == total) / 2 if total else 1
    assert found.p == pytest.approx(expected, abs=1e-12)


def test_copies_of_an_image_are_no_evidence_of_a_difference() -> None:
    a, b, truth = table(5, 8, 3, 3)
    alone = mcnemar(a, b, truth, None).p
    four_a, four_b, four = (np.tile(array, 4) for array in (a, b, truth))
    assert mcnemar(four_a, four_b, four, np.tile(np.arange(19), 4)).p == pytest.approx(alone)
    by_image = mcnemar(four_a, four_b, four, None).p
    assert by_image is not None
    assert alone is not None
    assert by_image < 0.05 < alone


def test_mcnemar_takes_decisions_of_any_number_of_classes() -> None:
    truth = np.array([0, 1, 2, 2, 1, 0])
    a, b = np.array([0, 1, 2, 0, 1, 0]), np.array([1, 1, 0, 1, 0, 0])
    assert mcnemar(a, b, truth, None) == mcnemar(a == truth, b == truth, np.ones(6, bool), None)
    assert mcnemar(a, a, truth, None).p == 1


def test_paired_tests_have_a_stable_json() -> None:
    probability, truth, _ = sample(2)
    found = mcnemar(probability > 0.5, probability > 0.6, truth, None)
    assert found.to_json() == {"difference": found.difference.to_json(), "p": found.p, "method": "mcnemar"}
    assert auc_interval(probability, truth, None) is not None
