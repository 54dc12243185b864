"""Stores read as one: the same features as side by side, under names that can be taken apart again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st
from synthetic import images, write_store

from featcache.errors import StoreError
from featcache.joined import join, part_names, stores_of

NAMES = st.text(st.characters(exclude_characters="+"), min_size=1, max_size=8)


def test_joined_features_are_those_of_the_stores_side_by_side(tmp_path: Path) -> None:
    table = images()
    one = write_store(tmp_path, table, "one", views=3)
    # Its rows lie in another order.
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    two = write_store(tmp_path, shuffled, "two", views=2, dim=9, seed=1)
    joined = join([one, two])
    wanted = [str(name) for name in table.image_id[::-3]]
    features = joined.views(wanted)
    assert features.shape == (len(wanted), 2, 15)
    assert features.dtype.name == "float16"
    for row, name in enumerate(wanted):
        for view in range(2):
            by_hand = [*one.features([name], view)[0], *two.features([name], view)[0]]
            np.testing.assert_array_equal(features[row, view].astype(np.float32), by_hand)
    np.testing.assert_array_equal(joined.views(), joined.views(table.image_id.tolist(), 2))
    assert joined.views(count=1).shape == (len(table), 1, 15)
    assert (joined.view_count, joined.path, stores_of(joined), stores_of(one)) == (2, one.path, (one, two), (one,))


def test_the_order_of_the_names_is_that_of_the_features(tmp_path: Path) -> None:
    one, two = write_store(tmp_path, images(), "one"), write_store(tmp_path, images(), "two", seed=1)
    assert (join([one, two]).backbone, join([two, one]).backbone) == ("one+two", "two+one")
    assert join([one, two]).fingerprint == f"{one.fingerprint}+{two.fingerprint}"
    np.testing.assert_array_equal(join([two, one]).views(), np.concatenate([two.views(), one.views()], axis=2))


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_joined_names_come_apart_again(names: list[str]) -> None:
    prints = [str(number) * 8 for number in range(len(names))]
    assert part_names("+".join(names), "+".join(prints)) == tuple(zip(names, prints, strict=True))


def test_a_plus_in_a_name_of_one_store_joins_nothing() -> None:
    assert part_names("net@tags=a+b", "f" * 64) == (("net@tags=a+b", "f" * 64),)


def test_stores_whose_names_hold_a_plus_are_not_joined(tmp_path: Path) -> None:
    stores = [write_store(tmp_path, images(), name) for name in ("one", "net@tags=a+b")]
    with pytest.raises(StoreError, match=r"'net@tags=a\+b' holds the \+"):
        join(stores)


def test_stores_of_other_views_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_store(tmp_path, images(), "one")
    for change in ({"recipe_seed": 3}, {"recipe": "another"}):
        with monkeypatch.context() as patched:
            patched.setattr(synthetic, "SPEC", replace(synthetic.SPEC, **change))
            other = write_store(tmp_path, images(), "two")
        with pytest.raises(StoreError) as refused:
            join([one, other])
        for said in (str(one.path), str(other.path), str(next(iter(change.values()))), "view_seed"):
            assert said in str(refused.value)


def test_a_store_is_not_joined_to_itself_nor_alone(tmp_path: Path) -> None:
    one = write_store(tmp_path, images(), "one")
    with pytest.raises(StoreError, match="named twice"):
        join([one, one])
    with pytest.raises(ValueError, match="two stores or more, got 1"):
        join([one])
