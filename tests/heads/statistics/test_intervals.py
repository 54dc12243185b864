"""Intervals against scipy's bootstrap, Wilson's, published figures, plain loops, and simulated truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import delong_1988, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from heads.statistics import intervals
from heads.statistics.auc import auc_interval, components
from heads.statistics.intervals import FigureIntervals, Resamples, bootstrap, wilson
from heads.statistics.metrics import evaluate

NAMES = ("accuracy", "sensitivity", "specificity", "f1")


@pytest.mark.parametrize("kept", [True, False])
def test_tallies_are_the_sums_over_each_groups_images(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(intervals, "COUNTS_KEPT", 0)
    _, truth, patient = sample(11, n=90)
    group = np.random.default_rng(0).integers(0, 6, 90)
    resamples = Resamples(truth, patient, 700)
    found = resamples.tallies(group, 7)
    np.testing.assert_array_equal(found, resamples.sums(group == np.arange(7)[:, None]))
    assert not found[6].any()


def test_values_are_those_of_the_metrics() -> None:
    probability, truth, patient = sample(0)
    logits = np.log(np.stack([1 - probability, probability], 1))
    found, expected = bootstrap(probability, truth, patient, threshold=0.4), evaluate(logits, truth * 1, threshold=0.4)
    assert {name: getattr(found, name).value for name in NAMES} == {name: getattr(expected, name) for name in NAMES}


def test_bootstrap_of_independent_images_is_scipys() -> None:
    probability, truth, _ = sample(1, n=600)
    found = bootstrap(probability, truth, None)
    right = (probability >= 0.5) == truth

    def accuracy(a: NDArray[Any], b: NDArray[Any], axis: int) -> Any:
        return (a.sum(axis) + b.sum(axis)) / len(truth)

    def f1(a: NDArray[Any], b: NDArray[Any], axis: int) -> Any:
        return 2 * a.sum(axis) / (a.sum(axis) + truth.sum() + (1 - b).sum(axis))

    hits = right[truth] * 1, right[~truth] * 1
    for name, data, statistic in (
        ("accuracy", hits, accuracy),
        ("f1", hits, f1),
        ("sensitivity", hits[:1], np.mean),
        ("specificity", hits[1:], np.mean),
    ):
        peer = stats.bootstrap(data, statistic, n_resamples=4000, method="percentile", vectorized=True, rng=0)
        interval = getattr(found, name)
        np.testing.assert_allclose([interval.low, interval.high], peer.confidence_interval, atol=0.012, err_msg=name)


def test_bootstrap_of_independent_images_is_near_wilsons_interval() -> None:
    probability, truth, _ = sample(2, n=600)
    found = bootstrap(probability, truth, None)
    for interval, n in ((found.sensitivity, truth.sum()), (found.specificity, (~truth).sum())):
        assert interval is not None
        peer = wilson(interval.value, int(n))
        assert (interval.low, interval.high) == pytest.approx((peer.low, peer.high), abs=0.012)


def test_bootstrap_by_patient_is_that_of_a_plain_loop() -> None:
    probability, truth, patient = sample(3, n=600, people=360)
    found = bootstrap(probability, truth, patient)
    random = np.random.default_rng(0)
    rows = [np.flatnonzero(patient == one) for one in np.unique(patient)]
    strata: dict[tuple[bool, bool], list[NDArray[Any]]] = {}
    for own in rows:
        strata.setdefault((bool(truth[own].any()), bool(truth[own].all())), []).append(own)
    assert len(strata) == 3
    decided, figures = probability >= 0.5, []
    for _ in range(1000):
        drawn = [stratum[k] for stratum in strata.values() for k in random.integers(len(stratum), size=len(stratum))]
        t, d = truth[np.concatenate(drawn)], decided[np.concatenate(drawn)]
        figures.append([np.mean(t == d), d[t].mean(), 1 - d[~t].mean(), 2 * (t & d).sum() / (t.sum() + d.sum())])
    for name, low, high in zip(NAMES, *np.percentile(figures, [2.5, 97.5], axis=0), strict=True):
        interval = getattr(found, name)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.012), name


def test_copies_of_an_image_tell_nothing_new() -> None:
    probability, truth, patient = sample(4)
    three = [np.tile(array, 3) for array in (probability, truth, patient)]
    assert bootstrap(three[0], three[1], three[2]) == bootstrap(probability, truth, patient)
    once, thrice = auc_interval(probability, truth, patient), auc_interval(three[0], three[1], three[2])
    assert once is not None
    assert thrice is not None
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))
    by_patient, by_image = bootstrap(*sample(4)).accuracy, bootstrap(three[0], three[1], None).accuracy
    assert by_image.high - by_image.low < 0.7 * (by_patient.high - by_patient.low)


def test_neither_order_nor_what_is_kept_changes_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    probability, truth, patient = sample(5)
    expected = bootstrap(probability, truth, patient, resamples=1200)
    order = np.random.default_rng(0).permutation(len(truth))
    assert bootstrap(probability[order], truth[order], patient[order], resamples=1200) == expected
    monkeypatch.setattr(intervals, "COUNTS_KEPT", 64)
    assert bootstrap(probability, truth, patient, resamples=1200) == expected
    assert bootstrap(probability, truth, patient, resamples=1200, seed=1) != expected


def test_heads_resampled_together_have_the_intervals_of_each_alone() -> None:
    probability, truth, patient = sample(6, n=624, people=350)
    decisions = np.stack([probability >= threshold for threshold in (0.3, 0.5, 0.8)])
    resamples = Resamples(truth, patient)
    together, means = resamples.figures(decisions, probability[None])
    (mean,), alone = means, resamples.mean(probability)
    assert (mean.low, mean.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    assert together == [bootstrap(probability, truth, patient, threshold=threshold) for threshold in (0.3, 0.5, 0.8)]


def test_sums_of_resamples_are_those_of_images_drawn_by_stratum() -> None:
    _, truth, patient = sample(8)
    ones, other = Resamples(truth, patient, 700).sums(np.stack([np.ones(len(truth)), truth]))
    strata = [
        {who for who in patient if truth[patient == who].any() == p and (~truth)[patient == who].any() == n}
        for p, n in ((True, False), (False, True), (True, True))
    ]
    # Drawn by stratum, a resample has as many images as there are, give or take those of patients with more than one.
    assert sum(map(len, strata)) == len(np.unique(patient))
    assert ones.mean() == pytest.approx(len(truth), rel=0.01)
    assert other.mean() == pytest.approx(truth.sum(), rel=0.01)
    every_alone = Resamples(truth, None, 50).sums(np.stack([np.ones(len(truth)), truth]))
    np.testing.assert_array_equal(every_alone, np.array([[len(truth)], [truth.sum()]]) * np.ones(50))


def test_interval_of_a_mean_is_scipys() -> None:
    probability, truth, _ = sample(9, n=600)
    loss = -np.log(np.where(truth, probability, 1 - probability))
    found = Resamples(truth, None).mean(loss)
    peer = stats.bootstrap(
        (loss[truth], loss[~truth]),
        lambda a, b, axis: (a.sum(axis) + b.sum(axis)) / len(loss),
        n_resamples=4000,
        method="percentile",
        vectorized=True,
        rng=0,
    ).confidence_interval
    assert found.value == pytest.approx(loss.mean())
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.01)
    constant = Resamples(truth, None).mean(np.full(len(truth), 0.1))
    assert constant.low <= 0.1 <= constant.high
    assert constant.high - constant.low < 1e-6


def test_interval_by_patient_covers_where_one_by_image_does_not() -> None:
    random = np.random.default_rng(0)
    patient, truth = np.repeat(np.arange(80), 4), np.repeat(np.arange(80) % 2 == 0, 4)
    covered, naive, rounds = 0, 0, 150
    for seed in range(rounds):
        # A patient's images are rightly decided with a chance of his own, 0.8 on average.
        right = random.random(320) < random.beta(1.6, 0.4, 80)[patient]
        probability = np.where(right == truth, 0.9, 0.1)
        for by, whom in ((True, patient), (False, None)):
            interval = bootstrap(probability, truth, whom, resamples=400, seed=seed).accuracy
            inside = interval.low <= 0.8 <= interval.high
            covered, naive = covered + (by and inside), naive + (not by and inside)
    assert 0.89 <= covered / rounds <= 0.99
    assert naive / rounds < 0.85


@pytest.mark.parametrize(
    ("right", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(right: int, trials: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
    found = wilson(right / trials, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    peer = stats.binomtest(right, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_perfect_decisions_get_an_interval_with_a_width() -> None:
    truth = np.arange(40) % 4 > 0
    patient = np.arange(40) // 2 * 2 + truth  # 10 negative images of 10 patients, 30 positive ones of 20
    found = bootstrap(np.where(truth, 0.9, 0.1), truth, patient)
    assert found.sensitivity == wilson(1.0, len(np.unique(patient[truth])))
    assert found.specificity == wilson(1.0, 10)
    assert found.accuracy == wilson(1.0, len(np.unique(patient)))
    assert found.f1 is not None
    assert found.sensitivity.low < found.f1.low < found.f1.high == 1


def test_figures_that_one_class_leaves_undefined_have_no_interval() -> None:
    probability = np.linspace(0.2, 0.9, 8)
    found = bootstrap(probability, np.zeros(8, bool), None)
    assert (found.sensitivity, found.f1) == (None, None)
    assert found.specificity is not None
    assert found.to_json()["sensitivity"] is None
    assert found.to_json()["accuracy"] == found.accuracy.to_json()
    assert bootstrap(probability, np.ones(8, bool), None).specificity is None
    assert auc_interval(probability, np.ones(8, bool), None) is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    truth = np.array([True, False])
    with pytest.raises(ValueError, match=r"one shape \[N\].*\[2\], \[3\], \[2\]"):
        bootstrap(np.zeros(2), truth, np.arange(3))
    with pytest.raises(ValueError, match="N >= 1"):
        auc_interval(np.zeros(0), np.zeros(0, bool), None)
    with pytest.raises(ValueError, match="at least one resample, got 0"):
        bootstrap(np.zeros(2), truth, None, resamples=0)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0, 1))
def test_value_lies_within_its_interval_which_lies_within_0_and_1(seed: int, people: int, threshold: float) -> None:
    probability, truth, patient = sample(seed, n=30, people=people)
    found: FigureIntervals = bootstrap(probability, truth, patient, threshold=threshold, resamples=200)
    every = [getattr(found, name) for name in NAMES] + [auc_interval(probability, truth, patient)]
    for one in every:
        assert one is None or 0 <= one.low <= one.high <= 1
    auc = every[-1]
    assert auc is None or auc.low <= auc.value <= auc.high


@pytest.mark.parametrize(
    ("test", "area", "error"), [("albumin", 0.7366, 0.0927), ("k-g", 0.7258, 0.1028), ("protein", 0.6478, 0.1000)]
)
def test_auc_and_its_error_are_those_of_the_paper_of_delong(test: str, area: float, error: float) -> None:
    figures, truth = delong_1988()
    found = auc_interval(figures[test], truth, None)
    assert found is not None
    assert found.value == pytest.approx(area, abs=5e-5)
    # The ends lie Z errors from the middle on the logit scale, which the slope 1 / (A (1 - A)) carries back.
    half = (np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))) / 2
    assert half / intervals.Z * found.value * (1 - found.value) == pytest.approx(error, abs=5e-5)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.booleans())
def test_auc_interval_is_that_of_a_plain_loop_over_pairs(seed: int, by_patient: bool) -> None:
    random = np.random.default_rng(seed)
    truth, value = random.permutation(np.arange(20) % 3 == 0), random.integers(6, size=20) / 5  # ties
    patient = random.integers(9, size=20) if by_patient else np.arange(20)
    win = [[(x > y) + (x == y) / 2 for y in value[~truth]] for x in value[truth]]
    area = float(np.mean(win))
    assert area == pytest.approx(roc_auc_score(truth, value))
    m, n, variance = int(truth.sum()), int((~truth).sum()), 0.0
    x = dict.fromkeys(patient.tolist(), 0.0)
    y = dict(x)
    for i, owner in enumerate(patient[truth].tolist()):
        x[owner] += sum(win[i]) / n - area
    for j, owner in enumerate(patient[~truth].tolist()):
        y[owner] += sum(line[j] for line in win) / m - area
    for sums, owners, other in ((x, patient[truth], m), (y, patient[~truth], n)):
        count = len(set(owners.tolist()))
        variance += count / (count - 1) * sum(one**2 for one in sums.values()) / other**2
    variance += 2 * len(x) / (len(x) - 1) * sum(x[one] * y[one] for one in x) / (m * n)
    found = auc_interval(value, truth, patient if by_patient else None)
    assert found is not None
    assert found.value == pytest.approx(area)
    if variance > 1e-12 and 0 < area < 1:
        logit, half = np.log(area / (1 - area)), stats.norm.ppf(0.975) * variance**0.5 / (area * (1 - area))
        assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-(logit + half * np.array([-1, 1]))))))


def test_components_average_to_the_auc_from_either_side() -> None:
    probability, truth, _ = sample(7)
    parts = components(probability, truth)
    assert parts.positive.mean() == pytest.approx(roc_auc_score(truth, probability))
    assert parts.negative.mean() == pytest.approx(parts.auc)


def test_auc_interval_covers_the_true_area() -> None:
    random = np.random.default_rng(0)
    truth, rounds, covered = np.arange(90) % 3 > 0, 400, 0
    area = ndtr(2 / 2**0.5)  # of two normal distributions 2 standard deviations apart
    for _ in range(rounds):
        found = auc_interval(random.normal(2.0 * truth), truth, None)
        assert found is not None
        covered += found.low <= area <= found.high
    assert 0.92 <= covered / rounds <= 0.985


def test_perfect_and_constant_heads_get_an_auc_interval_with_a_width() -> None:
    truth = np.arange(30) % 3 > 0
    perfect, constant, wrong = (auc_interval(p, truth, None) for p in (truth * 0.9, np.full(30, 0.3), truth * -1.0))
    assert perfect is not None
    assert constant is not None
    assert wrong is not None
    assert (perfect.value, perfect.high) == (1, 1)
    assert 0.7 < perfect.low < 0.95
    assert (wrong.low, wrong.high) == pytest.approx((0, 1 - perfect.low))
    assert constant.value == 0.5
    assert 0.2 < constant.low < 0.4 < 0.6 < constant.high < 0.8
    few = auc_interval(truth * 0.9, truth, np.arange(30) // 3 * 3 + truth)
    assert few is not None
    assert few.low < perfect.low  # the same images of fewer patients
    single = auc_interval(np.array([0.1, 0.6, 0.5]), np.array([False, True, True]), None)
    assert single is not None
    assert (single.value, single.high) == (1, 1)
    assert single.low < 0.4
