from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import RunError
from heads.estimator import HeadClassifier, logits_float64, validation_rows
from heads.training.config import HeadConfig
from heads.training.model import CHUNK, Layout, logits
from heads.training.samples import Samples
from heads.training.train import FittedHead, fit

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread is only waited for, and long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(samples: int, seed: int, *, classes: int = 2, signal: float = 1.0) -> tuple[Floats, Integers]:
    """Noise with a class-dependent shift; classes of unequal size, every one present."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=samples, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    labels[:classes] = range(classes)
    centre = np.random.default_rng(99).standard_normal((classes, 5))
    return (rng.standard_normal((samples, 5)) + signal * centre[labels]).astype(np.float32), labels


SMALL: dict[str, Any] = {"hidden": 6, "l2": 1e-3, "lr": 1e-2, "epochs": 8, "patience": 3, "batch_size": 16}


def small(**changes: Any) -> HeadClassifier:
    return HeadClassifier(**SMALL | changes)


def fitted_alone(
    train: tuple[Floats, Integers], val: tuple[Floats, Integers], classes: int, **changes: Any
) -> FittedHead:
    """What ``heads.fit`` makes of the configuration of ``small()``."""
    splits = [Samples(features=x[:, None], labels=y, classes=classes) for x, y in (train, val)]
    (head,) = fit(splits[0], splits[1], [HeadConfig(view_policy="clean", **SMALL | changes)])
    return head


def assert_same_weights(classifier: HeadClassifier, other: HeadClassifier | FittedHead) -> None:
    weights = other.weights if isinstance(other, FittedHead) else other.weights_
    for name, tensor in weights.tensors().items():
        assert_array_equal(classifier.weights_.tensors()[name], tensor, err_msg=name)


# A linear head takes one step an epoch of data as small as the checks'; at the default rate it would get nowhere.
@parametrize_with_checks(  # type: ignore[untyped-decorator]  # scikit-learn ships no types
    [HeadClassifier(), HeadClassifier(hidden=0, lr=0.03, epochs=25)]
)
def test_classifier_passes_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("rule", ["balanced", "none"])
def test_classifier_is_the_head_that_fit_makes(classes: int, hidden: int, rule: Any) -> None:
    train, val = blobs(81, 1, classes=classes), blobs(31, 2, classes=classes)
    classifier = small(hidden=hidden, class_weights=rule, random_state=7).fit(*train, *val)
    head = fitted_alone(train, val, classes, hidden=hidden, class_weights=rule, seed=7)
    assert_same_weights(classifier, head)
    assert (classifier.config_, classifier.history_) == (head.config, head.history)
    assert classifier.best_epoch_ == head.best_epoch
    z = logits(head.weights, val[0])
    decision = z if classes > 2 else z[:, 1] - z[:, 0]
    assert_allclose(classifier.decision_function(val[0]), decision, rtol=1e-5, atol=1e-5)


def test_classifier_without_validation_samples_is_the_head_of_its_own_split() -> None:
    x, y = blobs(90, 1)
    held_out = validation_rows(y, 0.3, 7)
    classifier = small(validation_fraction=0.3, random_state=7).fit(x, y)
    head = fitted_alone((x[~held_out], y[~held_out]), (x[held_out], y[held_out]), 2, seed=7)
    assert_same_weights(classifier, head)


def test_classifier_equals_fit_for_labels_of_text_too() -> None:
    x, y = blobs(60, 1)
    x_val, y_val = blobs(20, 2)
    names = np.array(["NORMAL", "PNEUMONIA"])
    classifier = small().fit(x, names[y], x_val, names[y_val])
    assert_same_weights(classifier, small().fit(x, y, x_val, y_val))
    assert classifier.classes_.tolist() == ["NORMAL", "PNEUMONIA"]
    assert_array_equal(classifier.predict(x_val), names[(classifier.decision_function(x_val) > 0).astype(int)])


@pytest.mark.parametrize("classes", [2, 3])
def test_probability_is_the_softmax_of_the_decision_function(classes: int) -> None:
    x, y = blobs(60, 1, classes=classes)
    classifier = small().fit(x, y)
    decision = classifier.decision_function(x)
    z = np.stack([np.zeros(60), decision], 1) if classes == 2 else decision
    assert_allclose(classifier.predict_proba(x), np.exp(z) / np.exp(z).sum(1, keepdims=True))


def test_logits_in_float64_are_the_models_over_many_chunks() -> None:
    layout = Layout(features=7, hidden=5, classes=3)
    generator = np.random.default_rng(0)
    row = torch.from_numpy(generator.uniform(0.5, 1.5, layout.width).astype(np.float32))
    features = generator.standard_normal((2 * CHUNK + 3, 7)).astype(np.float32)
    weights = layout.head_weights(row)
    assert_allclose(logits_float64(weights, features), logits(weights, features), rtol=1e-5, atol=1e-5)


def test_equal_random_states_make_equal_heads_and_others_do_not() -> None:
    x, y = blobs(60, 1)
    first = small(random_state=3).fit(x, y)
    assert_same_weights(first, small(random_state=3).fit(x, y))
    assert_same_weights(first, first.fit(x, y))
    assert_same_weights(first, small(random_state=np.int64(3)).fit(x, y))
    assert not np.array_equal(first.weights_.kernel, small(random_state=4).fit(x, y).weights_.kernel)


def test_random_state_draws_another_seed_at_every_fit_and_the_config_keeps_it() -> None:
    x, y = blobs(60, 1)
    state = np.random.RandomState(0)
    first, second = (small(random_state=state).fit(x, y) for _ in range(2))
    assert first.config_.seed != second.config_.seed
    assert_same_weights(second, small(random_state=second.config_.seed).fit(x, y))
    assert small(random_state=None, epochs=1).fit(x, y).config_.seed >= 0


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=4).filter(lambda counts: max(counts) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)
def test_split_holds_out_the_fraction_of_each_class_and_leaves_some(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    held_out = validation_rows(labels, fraction, seed)
    assert_array_equal(held_out, validation_rows(labels, fraction, seed))
    for label, count in enumerate(counts):
        held = int(held_out[labels == label].sum())
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            assert abs(held - fraction * count) <= 1


def test_split_depends_on_the_seed() -> None:
    labels = np.arange(40) % 2
    assert not np.array_equal(validation_rows(labels, 0.5, 0), validation_rows(labels, 0.5, 1))


@pytest.mark.parametrize("samples_of_each", [(2, 1), (2, 2), (2, 1, 1), (1, 5), (3, 3)])
@pytest.mark.parametrize("batch_size", [2, 3, 256])
def test_few_samples_a_class_are_enough(samples_of_each: tuple[int, ...], batch_size: int) -> None:
    y = np.repeat(np.arange(len(samples_of_each)), samples_of_each)
    x = np.random.default_rng(0).standard_normal((len(y), 3))
    classifier = small(batch_size=batch_size).fit(x, y)
    assert classifier.predict_proba(x).shape == (len(y), len(samples_of_each))


def test_one_sample_a_class_is_enough_with_validation_samples_and_else_an_error() -> None:
    x, y = np.eye(2), np.array([0, 1])
    assert len(small().fit(x, y, x[:1], y[:1]).history_.val_loss) > 0
    with pytest.raises(ValueError, match=r"every class of y has one sample \(2 in all\).* give X_val and y_val"):
        small().fit(x, y)


def test_classifier_works_in_a_pipeline() -> None:
    x, y = blobs(120, 1, signal=3)
    shifted = x * [1, 10, 1e-4, 1e3, 1] + 100
    pipeline = make_pipeline(StandardScaler(), small(epochs=20)).fit(shifted, y)
    assert pipeline.score(shifted, y) > 0.95
    assert_array_equal(pipeline.predict(shifted), (pipeline.predict_proba(shifted)[:, 1] > 0.5).astype(int))


def test_pipeline_that_is_told_so_transforms_the_validation_samples() -> None:
    (x, y), (x_val, y_val) = blobs(60, 1), blobs(20, 2)
    scaler = StandardScaler().fit(x)
    with sklearn.config_context(enable_metadata_routing=True):
        last = small().set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), last, transform_input=["X_val"])
        pipeline.fit(x, y, X_val=x_val, y_val=y_val)
    by_hand = small().fit(scaler.transform(x), y, scaler.transform(x_val), y_val)
    assert_same_weights(pipeline[-1], by_hand)


def test_grid_search_finds_the_rate_that_learns() -> None:
    x, y = blobs(90, 1, signal=2)
    # numpy's numbers, as np.logspace and the like make them
    grid = {"headclassifier__lr": np.array([1e-9, 1e-2]), "headclassifier__hidden": np.array([4, 8])}
    search = GridSearchCV(make_pipeline(StandardScaler(), small()), grid, cv=3, scoring="roc_auc").fit(x, y)
    assert search.best_params_["headclassifier__lr"] == 1e-2
    config = search.best_estimator_[-1].config_
    assert HeadConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_cross_validation_scores_a_classifier_that_learns() -> None:
    x, y = blobs(150, 1, classes=3, signal=3)
    scores = cross_val_score(small(epochs=20, lr=0.03), x, y, cv=3)
    assert scores.min() > 0.9


def test_clone_is_unfitted_with_the_same_parameters() -> None:
    x, y = blobs(60, 1)
    classifier = small(random_state=5).fit(x, y)
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "weights_")


def test_pickled_classifier_decides_as_before() -> None:
    x, y = blobs(60, 1)
    classifier = small().fit(x, y)
    copy = pickle.loads(pickle.dumps(classifier))  # noqa: S301 - scikit-learn's own protocol, our own bytes
    assert_array_equal(copy.decision_function(x), classifier.decision_function(x))
    assert (copy.config_, copy.history_) == (classifier.config_, classifier.history_)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32])
def test_features_of_any_real_type_are_trained_on_as_float32(kind: Any) -> None:
    x, y = blobs(60, 1)
    typed: NDArray[Any] = (8 * x).astype(kind)
    assert_same_weights(small().fit(typed, y), small().fit(typed.astype(np.float32), y))


def test_fit_writes_to_none_of_its_arrays() -> None:
    arrays: list[NDArray[Any]] = [*blobs(60, 1), *blobs(20, 2)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    small().fit(*arrays)
    for array, copy in zip(arrays, before, strict=True):
        assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": -1}, ValueError, "wanted hidden >= 0, got -1"),
        ({"hidden": 2.5}, TypeError, "float"),
        ({"lr": 0.0}, ValueError, "wanted a finite lr > 0"),
        ({"class_weights": "even"}, ValueError, "wanted class_weights of"),
        ({"validation_fraction": 1.0}, ValueError, r"wanted 0 < validation_fraction < 1, got 1\.0"),
        ({"random_state": -1}, ValueError, "wanted seed >= 0, got -1"),
        ({"lr": 1e30}, RunError, "the loss is not finite in the first epoch"),
    ],
)
def test_parameter_out_of_range_is_named_when_fitting(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    classifier = small(**changes)
    with pytest.raises(error, match=message):
        classifier.fit(*blobs(60, 1))


def test_validation_samples_that_do_not_fit_are_refused() -> None:
    x, y = blobs(60, 1)
    with pytest.raises(ValueError, match="wanted both X_val and y_val or neither"):
        small().fit(x, y, X_val=x)
    with pytest.raises(ValueError, match="wanted both X_val and y_val or neither"):
        small().fit(x, y, y_val=y)
    with pytest.raises(ValueError, match="wanted the classes of y in y_val, got 2 too"):
        small().fit(x, y, x, y + 1)
    with pytest.raises(ValueError, match="4 features, but HeadClassifier is expecting 5"):
        small().fit(x, y, x[:, :4], y)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted two classes or more, got one class, 'NORMAL'"):
        small().fit(np.eye(3), ["NORMAL"] * 3)
