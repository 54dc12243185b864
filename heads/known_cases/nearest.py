"""Exact search for the nearest films in feature space, in blocks of bounded memory.

Distance: the cosine distance of signed square roots. The root keeps a few strong channels from deciding alone (power
normalisation: Perronnin, Sánchez, Mensink, ECCV 2010). It was chosen on the train images alone, among raw and
standardised features, Euclidean and cosine (docs/log.md, 2026-11-25): for each of four backbones it has the best
agreement of labels between patients, or next to it, and finds a film by its augmented views most often. It needs no
moments of the data, so that distances do not change with what is searched, and one pass over a store is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from featcache.store import FeatureStore

POOL_BLOCK, QUERY_BLOCK = 8_192, 1_024
"""Films compared at once: 32 MiB of distances."""

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Row numbers [b], and their directions [b, D]."""


def directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Signed square roots scaled to length 1, [N, D] float32; a feature that is zero throughout stays so."""
    roots: NDArray[np.float32] = np.sign(features).astype(np.float32) * np.sqrt(np.abs(features, dtype=np.float32))
    length = np.linalg.norm(roots, axis=1, keepdims=True)
    np.divide(roots, length, out=roots, where=length > 0)
    return roots


def blocks_of(rows: NDArray[np.int64], store: FeatureStore) -> Iterator[Block]:
    """Read some rows of a store's clean view block by block, so that millions need no more memory than one block.

    Raises:
        StoreError: a part is damaged or missing.
    """
    for start in range(0, len(rows), 4 * POOL_BLOCK):
        some = rows[start : start + 4 * POOL_BLOCK]
        yield some, directions(store.features(store.image_table.image_id[some].tolist()))


def nearest(
    queries: NDArray[np.float32],
    pool: Iterable[Block],
    k: int,
    query_group: NDArray[np.int64],
    pool_group: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k nearest films of each query, but for those of its own group.

    Args:
        queries: directions, [Q, D].
        pool: what is searched.
        k: how many are wanted.
        query_group: [Q] the group whose films are left out.
        pool_group: the group of each row of the pool, indexed by row number.

    Returns:
        Cosine distances (0 to 2) [Q, k], ascending, and row numbers [Q, k]; infinity and -1 where there are fewer.
    """
    if k < 1:
        raise ValueError(f"k is {k}, wanted 1 or more")
    distance = np.full((len(queries), k), np.inf, np.float32)
    row = np.full((len(queries), k), -1, np.int64)
    for rows, members in pool:
        for low in range(0, len(rows), POOL_BLOCK):
            some = rows[low : low + POOL_BLOCK]
            towards = members[low : low + POOL_BLOCK].T
            for start in range(0, len(queries), QUERY_BLOCK):
                these = slice(start, start + QUERY_BLOCK)
                found = np.maximum(1 - queries[these] @ towards, 0)
                found[query_group[these, None] == pool_group[some]] = np.inf
                found = np.concatenate([distance[these], found], axis=1)
                numbers = np.concatenate([row[these], np.broadcast_to(some, (len(found), len(some)))], axis=1)
                # The first k in any order: sorting is left to the end.
                first = np.argpartition(found, k - 1, axis=1)[:, :k]
                distance[these] = np.take_along_axis(found, first, axis=1)
                row[these] = np.take_along_axis(numbers, first, axis=1)
    row[np.isinf(distance)] = -1
    order = np.lexsort((row, distance), axis=1)
    return np.take_along_axis(distance, order, axis=1), np.take_along_axis(row, order, axis=1)
