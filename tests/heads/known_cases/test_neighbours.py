from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from synthetic import images, write_store

from featcache.errors import DataError
from featcache.images import ImageTable
from featcache.named_images import find_images
from featcache.settings import load_settings
from featcache.splits import split
from featcache.store import FeatureStore
from heads.known_cases.nearest import directions
from heads.known_cases.neighbours import Neighbourhood, look_up, neighbours, use_of


@pytest.fixture(scope="module")
def table() -> ImageTable:
    """Two films a patient; rows 30 and 31, of one patient, and row 50, of another, have the same bytes."""
    table = images(films=2)
    sha256 = table.sha256.copy()
    sha256[[31, 50]] = sha256[30]
    return dataclasses.replace(table, sha256=sha256)


@pytest.fixture(scope="module")
def store(table: ImageTable, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return write_store(tmp_path_factory.mktemp("cache") / "films", table)


def around(store: FeatureStore, row: int, rows: np.ndarray, **flags: bool) -> Neighbourhood:
    table = store.image_table
    name = str(table.image_id[row])
    asked = find_images([name], table)
    (found,) = neighbours(asked, store.features([name]), store, rows, table.split, k=len(table), **flags)
    return found


def test_neighbours_are_those_of_a_plain_loop(store: FeatureStore) -> None:
    table, everything = store.image_table, np.arange(len(store.image_table))
    units = directions(store.features())
    found = around(store, 7, everything)
    expected = sorted((1 - float(units[7] @ units[row]), table.image_id[row]) for row in everything if row != 7)
    np.testing.assert_allclose([one.distance for one in found.neighbours], [d for d, _ in expected], atol=1e-6)
    # Rows of equal bytes are equally far; each of the others has its place.
    assert {one.image_id for one in found.neighbours[:5]} == {name for _, name in expected[:5]}
    assert (found.label, found.split, found.copies) == ("NORMAL", "test", (table.image_id[7],))


def test_what_has_the_same_bytes_is_left_out_and_named(store: FeatureStore) -> None:
    table = store.image_table
    found = around(store, 30, np.arange(len(table)))
    assert found.copies == tuple(table.image_id[[30, 31, 50]])
    assert len(found.neighbours) == len(table) - 3
    assert not {one.image_id for one in found.neighbours} & set(found.copies)
    assert found.in_words().endswith(f"; the same bytes as {table.image_id[31]}, {table.image_id[50]}")


def test_films_of_the_same_patient_are_marked_or_left_out(store: FeatureStore) -> None:
    table, everything = store.image_table, np.arange(len(store.image_table))
    marked = around(store, 7, everything)
    assert [one.image_id for one in marked.neighbours if one.same_patient] == [table.image_id[6]]
    assert ["same patient" in cells for cells in marked.cells()].count(True) == 1
    others = around(store, 7, everything, other_patients=True)
    assert {one.image_id for one in marked.neighbours} - {one.image_id for one in others.neighbours} == {
        table.image_id[6]
    }
    # Row 51 shares a patient with 50, which has the bytes of row 30: all four are of one child.
    left_out = set(table.image_id) - {
        one.image_id for one in around(store, 30, everything, other_patients=True).neighbours
    }
    assert left_out == set(table.image_id[[30, 31, 50, 51]])


def test_only_the_rows_that_are_asked_for_are_searched(store: FeatureStore) -> None:
    rows = np.flatnonzero(store.image_table.split == "val")
    assert {one.image_id for one in around(store, 0, rows).neighbours} == set(store.image_table.image_id[rows])


@pytest.mark.parametrize("rule", ["patient", "paper", "folders"])
def test_the_searched_split_is_the_one_that_heads_are_fitted_with(
    rule: str, store: FeatureStore, table: ImageTable
) -> None:
    settings = load_settings({"cache": store.path.parents[1], "data": Path("films"), "split": rule, "split_seed": 3})
    divided = split(table, settings.split, seed=3)
    for searched, rows in (("train", divided.train), ("val", divided.val), ("test", divided.test)):
        (found,) = look_up(settings, [str(table.image_id[0])], k=len(table), searched=searched)
        expected = set(table.image_id[rows]) - {table.image_id[0]}
        assert {one.image_id for one in found.neighbours} == expected
        assert {one.split for one in found.neighbours} == {searched}
    (found,) = look_up(settings, [str(table.image_id[0])], k=len(table), searched="all")
    assert len(found.neighbours) == len(table) - 1
    assert set(use_of(table, settings.split, 3)) >= {"train", "val", "test"}


def test_labels_are_counted_in_words(store: FeatureStore) -> None:
    asked = find_images([str(store.image_table.image_id[7])], store.image_table)
    train = np.flatnonzero(store.image_table.split == "train")
    (found,) = neighbours(asked, store.features([asked[0].name]), store, train, store.image_table.split, k=5)
    labels = [one.label for one in found.neighbours]
    for label in set(labels):
        assert f"{labels.count(label)} {label}" in found.in_words()
    assert found.in_words().startswith(f"{asked[0].name} (NORMAL, test, test/NORMAL-3): ")


def test_an_image_that_is_not_there_is_one_line(store: FeatureStore) -> None:
    settings = load_settings({"cache": store.path.parents[1], "data": Path("films")})
    with pytest.raises(DataError, match=r"^no image absent\.jpeg"):
        look_up(settings, ["absent.jpeg"])
