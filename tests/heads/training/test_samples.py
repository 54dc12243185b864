"""Splits, class weights and the order of an epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from featcache.errors import RunError
from heads.training.config import HeadConfig
from heads.training.samples import Samples, batches, class_weights, epoch_order
from heads.training.train import fit

LABELS = np.array([0] * 20 + [1] * 61)
TRAIN = Samples(features=np.ones((81, 3, 10), dtype=np.float32), labels=LABELS, classes=2)
VAL = Samples(features=np.ones((31, 3, 10), dtype=np.float32), labels=LABELS[:31], classes=2)
BASE = HeadConfig(hidden=0, epochs=1)


def test_class_weights_are_scikit_learn_s() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(2), y=TRAIN.labels)
    assert class_weights(TRAIN.labels, 2, "balanced") == pytest.approx(tuple(expected))
    assert class_weights(TRAIN.labels, 2, "none") == (1.0, 1.0)
    # A class that does not occur neither gets a weight nor changes the others'.
    assert class_weights(TRAIN.labels, 3, "balanced") == pytest.approx((*expected, 0.0))


@given(st.integers(2, 300), st.integers(1, 5), st.integers(0, 2**63 - 1), st.integers(0, 99))
def test_epoch_takes_every_image_once_in_a_view_there_is(images: int, views: int, seed: int, epoch: int) -> None:
    order, view = epoch_order(HeadConfig(seed=seed), epoch, images, views)
    assert sorted(order) == list(range(images))
    assert set(view) <= set(range(views))
    clean = epoch_order(HeadConfig(seed=seed, view_policy="clean"), epoch, images, views)
    np.testing.assert_array_equal(clean[0], order)
    assert not clean[1].any()


@given(st.integers(2, 300), st.integers(2, 300))
def test_batches_leave_out_a_single_last_row_and_nothing_else(images: int, batch_size: int) -> None:
    bounds = batches(images, batch_size)
    rows = [row for start, stop in bounds for row in range(start, stop)]
    assert rows == list(range(images - (images % batch_size == 1)))
    assert all(2 <= stop - start <= batch_size for start, stop in bounds)


def with_hole(split: Samples) -> Samples:
    features = split.features.copy()
    features[[2, 5], 1] = np.nan
    return replace(split, features=features)


EMPTY = replace(VAL, features=VAL.features[:0], labels=VAL.labels[:0])
BAD = {
    "one class": (
        replace(TRAIN, labels=TRAIN.labels * 0),
        VAL,
        "holds only class 0 (81 images): a head needs",
    ),
    "empty val": (TRAIN, EMPTY, "the val split is empty"),
    "empty train": (EMPTY, VAL, "the train split is empty"),
    "missing in train": (with_hole(TRAIN), VAL, "2 of 81 train images have features that are missing"),
    "missing in val": (TRAIN, with_hole(VAL), "2 of 31 val images have features that are missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_split_that_can_train_no_head_is_named_with_the_way_out(case: str) -> None:
    train, val, message = BAD[case]
    with pytest.raises(RunError) as caught:
        fit(train, val, [BASE])
    assert message in str(caught.value)


def test_misuse_is_refused() -> None:
    double: Any = TRAIN.features.astype(np.float64)
    with pytest.raises(ValueError, match="the same"):
        fit(TRAIN, replace(VAL, features=VAL.features[:, :2]), [BASE])
    with pytest.raises(ValueError, match=r"features \[N, V, D\] of float16 or float32, got \[81, 3, 10\] of float64"):
        replace(TRAIN, features=double)
    with pytest.raises(ValueError, match=r"labels \[81\] of int64, got \[80\]"):
        replace(TRAIN, labels=TRAIN.labels[1:])
    with pytest.raises(ValueError, match="labels 0 to 1, got 0 to 2"):
        replace(TRAIN, labels=TRAIN.labels * 2)
    with pytest.raises(ValueError, match="classes >= 2, got 1"):
        replace(TRAIN, classes=1)
    assert fit(TRAIN, VAL, []) == []
