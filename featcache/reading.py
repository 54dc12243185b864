"""Rows of a store at the speed of the disk: whole, or in blocks, and nothing unverified."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache.errors import StoreError
from featcache.index import INDEX_NAME
from featcache.layouts import Digests, Part, PartReader, matching_rows
from featcache.parts import FeatureArray
from featcache.settings import usable_cores
from featcache.spec import FeatureSpec

THREADS = 4
"""Parts read at once at most: two saturate most memory, four a fast disk."""


FEW_RUNS = 16
"""Stretches of rows that are written one by one; more of them are scattered at once, by way of a copy."""


class WiderPartError(Exception):
    """A part holds float32 where float16 was to be read."""


Rows = slice | NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """What is known of images that were read and verified.

    Attributes:
        digest: XXH3-64 of their features.
        pieces: what came from where: number of a part, rows in it, rows of the block, which of the V views.
    """

    digest: int
    pieces: tuple[tuple[int, Rows, Rows, slice], ...]


class FeatureReader:
    """Some images and views of a store, [N, V, D], read whole or in blocks.

    Args:
        store: the store's folder.
        spec: what its features were made with.
        part_names: [P] file names.
        part: [N, V] int32, the part of each image and view.
        image_sha256: content hashes of all images of the store.
        rows: [N] the images' places in those.
        first_view: of the V views, which follow one another.
    """

    def __init__(
        self,
        store: Path,
        spec: FeatureSpec,
        part_names: Sequence[str],
        part: NDArray[np.int32],
        image_sha256: Digests,
        rows: NDArray[np.int64],
        first_view: int,
    ) -> None:
        self._store, self._spec, self._part_names = store, spec, part_names
        self._part, self._image_sha256, self._rows, self._first_view = part, image_sha256, rows, first_view
        self._reader = PartReader(store, spec)
        self._verified: dict[tuple[int, int], _Block] = {}
        self.dim = self._reader.header(part_names[int(part[0, 0])]).dim

    @property
    def shape(self) -> tuple[int, int, int]:
        """[N, V, D]."""
        return *self._part.shape, self.dim

    def clean(self) -> FeatureReader:
        """A reader of the first of the views alone, which is the clean one where all are read."""
        return FeatureReader(
            self._store,
            self._spec,
            self._part_names,
            self._part[:, :1],
            self._image_sha256,
            self._rows,
            self._first_view,
        )

    def read_all(self) -> FeatureArray:
        """Features [N, V, D] in float16, or in float32 where a part holds that; parts are read by several threads.

        Raises:
            StoreError: a part is missing or damaged, or is not what the index says.
        """
        try:
            return self._read_all(np.dtype(np.float16))
        except WiderPartError:
            return self._read_all(np.dtype(np.float32))

    def _read_all(self, dtype: np.dtype[Any]) -> FeatureArray:
        result = np.empty(self.shape, dtype)
        pool = ThreadPoolExecutor(min(THREADS, usable_cores()), "reading")
        try:
            for _ in pool.map(lambda piece: self._place(piece, result, 0), self._pieces(0, len(result))):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return result

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read images ``start`` to ``stop``, whose parts are verified.

        What has been read so before is read alone, not with the rest of its parts: it must be the same bytes.

        Args:
            start: the first image.
            stop: the one after the last.
            out: where they go, [stop - start, V, D] float16 or float32, C-contiguous.

        Raises:
            StoreError: as ``read_all``; or a part holds float32 and ``out`` float16.
        """
        known = self._verified.get((start, stop))
        again = known is not None and all(self._place_again(*piece, out) for piece in known.pieces)
        if known is not None and again and _digest(out) == known.digest:
            return
        try:
            pieces = tuple(
                (number, self._place((number, rows, views), out, start), _run(rows - start), views)
                for number, rows, views in self._pieces(start, stop)
            )
        except WiderPartError as error:
            raise self._misfit() from error
        self._verified[start, stop] = _Block(digest=_digest(out), pieces=pieces)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.int64], slice]]:
        """Cut images by what one part holds of them: its number, the images in order, which of the V views."""
        columns = self._part[start:stop].T
        edges = [0, *(v for v in range(1, len(columns)) if not np.array_equal(columns[v - 1], columns[v]))]
        for first, last in zip(edges, [*edges[1:], len(columns)], strict=True):
            # Looking for each part's rows in all rows would take as many passes as there are parts.
            order = np.argsort(columns[first], kind="stable")
            ends = np.flatnonzero(np.diff(columns[first][order], append=-1)) + 1
            for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
                rows = order[begin:end]
                yield int(columns[first][rows[0]]), rows + start, slice(first, last)

    def _place(self, piece: tuple[int, NDArray[np.int64], slice], out: NDArray[Any], start: int) -> Rows:
        """Read a part, verify it, put what is wanted of it where it belongs, and return where in the part that was."""
        number, rows, views = piece
        wanted = self._image_sha256[self._rows[rows]]
        run = _run(rows - start)
        target = out[run, views] if isinstance(run, slice) else out[:0]
        part = self._reader.read(self._part_names[number], wanted, target)
        if part.features is target:
            if part.first_view != self._first_view + views.start:
                raise self._misfit()
            return slice(0, len(rows))
        found = matching_rows(part.image_sha256, wanted)
        if found is None:
            raise self._misfit()
        source = _run(found)
        self._copy(part, source, out, run, views)
        return source

    def _place_again(self, number: int, source: Rows, target: Rows, views: slice, out: NDArray[Any]) -> bool:
        """Read rows of a part alone, unverified; False if that is not possible."""
        first = source.start if isinstance(source, slice) else int(source.min())
        last = source.stop if isinstance(source, slice) else int(source.max()) + 1
        into = out[target, views] if isinstance(source, slice) and isinstance(target, slice) else out[:0]
        part = self._reader.read_some(self._part_names[number], first, last, into)
        if part is None:
            return False
        if part.features is not into:
            inside = slice(0, last - first) if isinstance(source, slice) else source - first
            self._copy(part, inside, out, target, views)
        return True

    def _copy(
        self,
        part: Part,
        source: Rows,
        out: NDArray[Any],
        target: Rows,
        views: slice,
    ) -> None:
        first = self._first_view + views.start - part.first_view
        last = first + views.stop - views.start
        if first < 0 or last > part.features.shape[1] or part.features.shape[2] != out.shape[2]:
            raise self._misfit()
        if part.features.dtype.itemsize > out.dtype.itemsize:
            raise WiderPartError
        features, place = part.features[:, first:last], out[:, views]
        if isinstance(source, slice):
            place[target] = features[source]
            return
        rows = np.arange(target.start, target.stop) if isinstance(target, slice) else target
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        if features.dtype != out.dtype or len(edges) > FEW_RUNS:
            place[rows] = features[source]
            return
        for begin, end in itertools.pairwise(edges):
            # 'clip' lets it write without a buffer; no index is out of range.
            into = place[rows[begin] : rows[begin] + end - begin]
            np.take(features, source[begin:end], axis=0, out=into, mode="clip")

    def _misfit(self) -> StoreError:
        index = self._store / INDEX_NAME
        return StoreError(f"{index} does not fit its parts: run 'cxr extract' again to rebuild it")


def _run(rows: NDArray[np.int64]) -> Rows:
    """Rows that follow one another as a slice, others as they are."""
    first = int(rows[0])
    return slice(first, first + len(rows)) if (np.diff(rows) == 1).all() else rows


def _digest(features: NDArray[Any]) -> int:
    return xxhash.xxh3_64_intdigest(features.data.cast("B"))
