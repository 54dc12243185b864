from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from scipy.stats import percentileofscore
from sklearn.decomposition import PCA

from featcache.errors import RunError
from featcache.outlines import SIDE
from heads.prediction import distance as module
from heads.prediction.distance import SIGNALS, DistanceReference, distance_words

D = 12


def some_features(n: int, seed: int, dim: int = D) -> np.ndarray:
    rng = np.random.default_rng((seed, dim))
    spread = np.random.default_rng(dim).gamma(1.0, 1.0, dim)
    return (3 + spread * rng.standard_normal((n, dim))).astype(np.float32)


def some_outlines(n: int, seed: int) -> np.ndarray:
    film = np.random.default_rng(7).standard_normal(SIDE * SIDE)
    fields = film + 0.5 * np.random.default_rng((seed, 1)).standard_normal((n, SIDE * SIDE))
    fields -= fields.mean(axis=1, keepdims=True)
    return np.asarray(fields / np.linalg.norm(fields, axis=1, keepdims=True), np.float32)


def fitted(n: int = 200, m: int = 90, *, outlines: bool = True) -> DistanceReference:
    pixels = (some_outlines(n, 0), some_outlines(m, 1)) if outlines else ()
    return DistanceReference.fit(some_features(n, 0), some_features(m, 1), *pixels)


@pytest.mark.parametrize("axes", [4, 128])
def test_by_features_it_is_the_mahalanobis_distance_within_the_principal_axes(
    axes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AXES", axes)
    train, val, new = (some_features(n, seed).astype(np.float64) for n, seed in ((200, 0), (90, 1), (5, 2)))
    reference = DistanceReference.fit(train, val)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, val, new)]
    whitened = PCA(min(axes, D - 1), svd_solver="full", whiten=True).fit(unit[0])
    by_val, expected = (np.linalg.norm(whitened.transform(x), axis=1) for x in unit[1:])
    found = reference.signals(new)[:, 0]
    np.testing.assert_allclose(found, expected / np.quantile(by_val, 0.95), rtol=1e-4)


def test_with_all_axes_it_is_the_mahalanobis_distance_by_the_inverse_covariance() -> None:
    # On features of length 1 a last axis is nearly bound by the others: a thirteenth that is zero is what is left out.
    train, new = (np.pad(some_features(n, seed), ((0, 0), (0, 1))) for n, seed in ((200, 0), (9, 2)))
    reference = DistanceReference.fit(train, train)
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True))[:, :D].astype(np.float64) for x in (train, new)]
    inverse, apart = np.linalg.inv(np.cov(unit[0].T)), unit[1] - unit[0].mean(axis=0)
    expected = np.sqrt([row @ inverse @ row for row in apart])
    np.testing.assert_allclose(reference.signals(new)[:, 0] * reference.units[0], expected, rtol=1e-3)


def test_by_outline_it_is_one_less_the_correlation_with_the_mean_outline_of_train() -> None:
    reference, new = fitted(), some_outlines(6, 3)
    mean = some_outlines(200, 0).mean(axis=0)
    by_val, expected = ([1 - np.corrcoef(one, mean)[0, 1] for one in some] for some in (some_outlines(90, 1), new))
    found = reference.signals(some_features(6, 3), new)[:, 1]
    np.testing.assert_allclose(found, np.array(expected) / np.quantile(by_val, 0.95), rtol=1e-4)


def test_the_greater_signal_counts_and_the_percentile_is_the_share_of_val_that_lies_nearer() -> None:
    reference, features, outlines = fitted(), some_features(40, 3), some_outlines(40, 3)
    signals = reference.signals(features, outlines)
    assert set(signals.argmax(axis=1).tolist()) == {0, 1}
    np.testing.assert_array_equal(reference.distance(features, outlines), signals.max(axis=1))
    known = reference.distance(some_features(90, 1), some_outlines(90, 1))
    expected = [percentileofscore(known, one, kind="strict") for one in signals.max(axis=1)]
    np.testing.assert_allclose(reference.percentile(features, outlines), expected)


@given(st.integers(1, 300), st.integers(0, 1000), st.booleans(), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_of_val_as_many_are_flagged_as_the_limit_says(m: int, seed: int, pixels: bool, limit: float) -> None:
    val, outlines = some_features(m, seed), some_outlines(m, seed) if pixels else None
    train = some_outlines(50, 0) if pixels else None
    reference = DistanceReference.fit(some_features(50, 0), val, train, outlines, limit=limit)
    # Without their pixels val films are ranked by features alone, among val by features alone.
    for known, seen in ((reference.val, outlines), (reference.val[:, :1], None)):
        greatest = known.max(axis=1)
        # Two that lie equally far have the lower rank both.
        ranks = np.searchsorted(np.sort(greatest), np.sort(greatest))
        expected = sum(100 * rank / m > limit for rank in (ranks if len(set(greatest)) < m else range(m)))
        assert int(reference.flagged(val, seen).sum()) == expected


def test_a_greater_scale_of_all_features_is_no_distance() -> None:
    reference, new = fitted(outlines=False), some_features(9, 3)
    np.testing.assert_allclose(reference.distance(2 * new), reference.distance(new), rtol=1e-5)


def test_a_films_rank_does_not_hang_on_those_asked_about_with_it() -> None:
    reference, features, outlines = fitted(), some_features(60, 4), some_outlines(60, 4)
    together = reference.judge(features, outlines)
    alone = [reference.judge(features[[row]], outlines[[row]])[0] for row in range(60)]
    assert [one.percentile for one in together] == [one.percentile for one in alone]
    assert [one.signal for one in together] == [one.signal for one in alone]


def test_a_verdict_says_what_the_arrays_say() -> None:
    reference, features, outlines = fitted(), some_features(60, 4), some_outlines(60, 4)
    outlines[0] *= -1
    features[1] *= np.linspace(-1, 1, D)
    verdicts = reference.judge(features, outlines)
    assert [one.distance for one in verdicts] == reference.distance(features, outlines).tolist()
    assert [one.percentile for one in verdicts] == reference.percentile(features, outlines).tolist()
    assert [one.flagged for one in verdicts] == reference.flagged(features, outlines).tolist()
    assert [bool(one.words) for one in verdicts] == [one.flagged for one in verdicts]
    assert [one.signal for one in verdicts[:2]] == ["outline", "features"]
    assert 0 < sum(one.flagged for one in verdicts) < 60


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_as_far_as_can_be(value: float) -> None:
    reference, features = fitted(outlines=False), some_features(3, 5)
    features[1, 4] = value
    assert np.isinf(reference.distance(features)).tolist() == [False, True, False]
    assert reference.judge(features)[1].percentile == 100


def test_features_that_are_all_zero_have_a_distance_and_an_image_without_outline_lies_far() -> None:
    reference = fitted()
    assert np.isfinite(reference.distance(np.zeros((1, D)), np.zeros((1, SIDE * SIDE)))).all()
    assert reference.flagged(some_features(1, 3), np.zeros((1, SIDE * SIDE))).all()


@pytest.mark.parametrize("outlines", [True, False])
def test_what_a_bundle_keeps_gives_the_same_answers(outlines: bool) -> None:
    reference = fitted(outlines=outlines)
    # Strides of another order: safetensors would write their bytes as they lie.
    turned = replace(reference, axes=np.asfortranarray(reference.axes))
    again = DistanceReference.from_arrays(load(save(turned.to_arrays())))
    features, pixels = some_features(30, 6), some_outlines(30, 6) if outlines else None
    assert again.judge(features, pixels) == reference.judge(features, pixels)
    assert again.limit == reference.limit


def test_a_film_that_is_the_mean_of_train_lies_at_no_distance_and_is_kept() -> None:
    outlines = np.repeat(some_outlines(1, 0), 40, axis=0)
    reference = DistanceReference.fit(some_features(40, 0), some_features(9, 1), outlines, outlines[:9])
    assert (reference.val >= 0).all()
    again = DistanceReference.from_arrays(reference.to_arrays())
    assert again.judge(some_features(9, 1), outlines[:9]) == reference.judge(some_features(9, 1), outlines[:9])


def test_a_reference_is_small_in_a_bundle() -> None:
    rng = np.random.default_rng(0)
    train, val = (rng.standard_normal((n, 2560)).astype(np.float32) for n in (300, 1043))
    reference = DistanceReference.fit(train, val, some_outlines(300, 0), some_outlines(1043, 1))
    assert reference.axes.shape == (2560, 128)
    assert len(save(reference.to_arrays())) < 2**21


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("centre", None),
        ("more", np.zeros(1, np.float32)),
        ("centre", np.zeros(D + 1, np.float32)),
        ("axes", np.zeros((D, 0), np.float32)),
        ("axes", np.zeros((D, 3))),
        ("axes", np.full((D, 3), np.nan, np.float32)),
        ("axes", np.zeros(D, np.float32)),
        ("outline", np.zeros(0, np.float32)),
        ("outline", np.zeros(63, np.float32)),
        ("units", np.ones(1, np.float32)),
        ("units", np.zeros(2, np.float32)),
        ("val", np.zeros((0, 2), np.float32)),
        ("val", np.zeros((5, 1), np.float32)),
        ("val", np.full((5, 2), -1, np.float32)),
        ("limit", np.array([101], np.float32)),
        ("limit", np.array(95, np.float32)),
        ("limit", np.array([np.inf], np.float32)),
    ],
)
def test_a_damaged_reference_is_refused(name: str, array: np.ndarray | None) -> None:
    arrays: dict[str, np.ndarray] = dict(fitted().to_arrays())
    arrays.pop(name, None)
    if array is not None:
        arrays[name] = array
    with pytest.raises(RunError, match="the distance reference is damaged: "):
        DistanceReference.from_arrays(arrays)


def test_train_films_that_vary_in_few_ways_give_as_many_axes_and_those_that_do_not_are_refused() -> None:
    ways = np.random.default_rng(0).standard_normal((3, D))
    few = (1 + np.abs(some_features(60, 0, 3))) @ np.abs(ways)
    reference = DistanceReference.fit(few[:40], few[40:])
    assert reference.axes.shape == (D, 3)
    assert reference.distance(few[40:]).max() < 3
    with pytest.raises(ValueError, match="all train films have the same features"):
        DistanceReference.fit(np.ones((9, D)), np.ones((2, D)))


@pytest.mark.parametrize(
    ("train", "val", "pixels", "said"),
    [
        ((3, D), (5, D), (), "wanted 4 train films and a val film, got 3, 5"),
        ((9, D), (0, D), (), "got 9, 0"),
        ((9, D), (5, D + 1), (), r"wanted features \[n, 12\], got \(5, 13\)"),
        ((9, D), (5, D), (9,), "outlines of train and val go together"),
        ((9, D), (5, D), (9, 4), r"wanted outlines \[5, 64\], got \(4, 64\)"),
    ],
)
def test_shapes_that_do_not_fit_are_misuse(
    train: tuple[int, int], val: tuple[int, int], pixels: tuple[int, ...], said: str
) -> None:
    outlines = [some_outlines(n, 0) for n in pixels]
    with pytest.raises(ValueError, match=said):
        DistanceReference.fit(some_features(*train[:1], 0, train[1]), some_features(val[0], 1, val[1]), *outlines)


@pytest.mark.parametrize("which", ["train", "val"])
def test_films_whose_features_are_not_finite_cannot_be_learnt_from(which: str) -> None:
    parts = {"train": some_features(20, 0), "val": some_features(5, 1)}
    parts[which][2, 3] = np.nan
    with pytest.raises(ValueError, match=r"(?i)nan|not finite"):
        DistanceReference.fit(parts["train"], parts["val"])


@pytest.mark.parametrize("signal", SIGNALS)
def test_words_are_said_past_the_limit_alone_and_name_the_share(signal: str) -> None:
    assert distance_words(95.0, 95.0, signal) == ""
    assert "than 97.3 % of held-out films; it may" in distance_words(97.3, 95.0, signal)
    assert "than 99.9 % of held-out films" in distance_words(99.99, 95.0, signal)
    assert "than all films that were held out" in distance_words(100.0, 95.0, signal)
    assert distance_words(97.0, 99.0, signal) == ""


def test_another_limit_flags_others_at_the_same_percentile() -> None:
    reference, features = fitted(outlines=False), some_features(200, 8)
    strict = replace(reference, limit=50.0)
    np.testing.assert_array_equal(strict.percentile(features), reference.percentile(features))
    assert strict.flagged(features).sum() > reference.flagged(features).sum()
