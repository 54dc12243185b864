from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from synthetic import images, write_store

from heads.known_cases import nearest as module
from heads.known_cases.nearest import blocks_of, directions, nearest


def some_directions(n: int, seed: int, dim: int = 12) -> np.ndarray:
    return directions(np.random.default_rng(seed).gamma(1.0, 1.0, (n, dim)).astype(np.float32))


def test_directions_are_signed_roots_of_length_one_and_zero_stays_zero() -> None:
    features = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float16)
    expected = np.array([[2.0, -3.0, 0.0], [0.0, 0.0, 0.0]]) / np.array([[np.sqrt(13)], [1]])
    np.testing.assert_allclose(directions(features), expected, rtol=1e-6)
    assert directions(features).dtype == np.float32


@pytest.mark.parametrize(("pool_block", "query_block"), [(8192, 1024), (7, 3), (1, 1)])
def test_the_search_agrees_with_scikit_learn_whatever_the_blocks(
    pool_block: int, query_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POOL_BLOCK", pool_block)
    monkeypatch.setattr(module, "QUERY_BLOCK", query_block)
    pool, queries = some_directions(50, 0), some_directions(11, 1)
    rows = np.random.default_rng(2).permutation(50)
    distance, row = nearest(queries, [(rows, pool[rows])], 4, np.full(11, -1), np.zeros(50, np.int64))
    reference = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(pool)
    expected, expected_row = reference.kneighbors(queries)
    np.testing.assert_array_equal(row, expected_row)
    np.testing.assert_allclose(distance, expected, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 20), st.integers(1, 5))
def test_no_film_of_the_own_group_is_found_and_all_nearer_others_are(seed: int, n: int, k: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    pool, group = some_directions(n, seed), rng.integers(0, groups, n)
    distance, row = nearest(pool, [(np.arange(n), pool)], k, group, group)
    for one in range(n):
        others = [(float(1 - pool[one] @ pool[other]), other) for other in range(n) if group[other] != group[one]]
        expected = sorted(others)[:k]
        assert np.isinf(distance[one, len(expected) :]).all()
        assert (row[one, len(expected) :] == -1).all()
        np.testing.assert_allclose(distance[one, : len(expected)], [max(0, d) for d, _ in expected], atol=1e-6)
        found = [max(0.0, float(1 - pool[one] @ pool[other])) for other in row[one, : len(expected)]]
        np.testing.assert_allclose(found, distance[one, : len(expected)], atol=1e-6)
        assert (group[row[one, : len(expected)]] != group[one]).all()


def test_equal_distances_come_in_the_order_of_the_table() -> None:
    pool = directions(np.ones((6, 3), np.float32))
    _, row = nearest(pool[:1], [(np.arange(6), pool)], 6, np.array([-1]), np.zeros(6, np.int64))
    assert row.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_store_is_read_in_blocks_that_hold_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_BLOCK", 5)
    store = write_store(tmp_path / "films", images())
    wanted = np.arange(3, 70, 2)
    blocks = list(blocks_of(wanted, store))
    assert [len(rows) for rows, _ in blocks] == [20, 14]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in blocks]), wanted)
    np.testing.assert_array_equal(np.concatenate([part for _, part in blocks]), directions(store.features()[wanted]))


def test_no_neighbours_at_all_is_misuse() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        nearest(some_directions(1, 0), [], 0, np.array([-1]), np.zeros(0, np.int64))
