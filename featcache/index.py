"""``features.h5``: the image table, and a virtual dataset over the parts.

It is written last, holds nothing that the parts and the image table do not, and is rebuilt from them at will.
Any HDF5 reader that opens it sees one array ``/features`` [N, V, D].
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import h5py
import numpy as np
from numpy.typing import NDArray

from featcache import atomic
from featcache.check import Quarantined, Scan
from featcache.columns import EncodedTable, read_table, text_bytes, write_column, write_table
from featcache.errors import StoreError
from featcache.images import ImageTable
from featcache.parts import LIBVER, PartHeader, damaged, opened, require_plain, text_attribute
from featcache.spec import FORMAT_VERSION, FeatureSpec

FORMAT = "cxr-feature-store"
INDEX_NAME = "features.h5"
PARTS_NAME = "parts"
COLUMNS = (
    *("image_id", "image_sha256", "label", "patient_id", "split", "width", "height", "parts", "part"),
    *("quarantined/image_id", "quarantined/reason"),
)
"""The datasets that are read here; ``/features`` alone is virtual."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What ``features.h5`` says.

    Attributes:
        spec: what the features were made with.
        encoded: the images, in the order of ``/features``.
        quarantined: images of the data set that could not be used.
        part_names: [P] file names below ``parts``.
        part: [N, V] int32, index into ``part_names``; -1 where a view is missing.
    """

    spec: FeatureSpec
    encoded: EncodedTable
    quarantined: tuple[Quarantined, ...]
    part_names: tuple[str, ...]
    part: NDArray[np.int32]

    @property
    def image_table(self) -> ImageTable:
        """The images, in the order of ``/features``.

        Raises:
            StoreError: some text is no UTF-8.
        """
        return self.encoded.decoded


@contextlib.contextmanager
def exclusive(store: Path) -> Iterator[None]:
    """Hold the lock under which a store's index is written; waits while another process holds it.

    Raises:
        WriteError: the folder cannot be written.
    """
    lock = filelock.FileLock(store / f"{INDEX_NAME}.lock")
    try:
        store.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise atomic.explained(store / INDEX_NAME, None, error) from error
    try:
        yield
    finally:
        lock.release()


def write_index(store: Path, spec: FeatureSpec, scanned: Scan, headers: Sequence[PartHeader]) -> None:
    """Write ``features.h5`` over the parts that exist; several writers take turns by ``exclusive``.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    table = scanned.table
    first_row: dict[str, int] = {}
    # Few images have a copy: a list for each of a million would take longer than all the rest.
    copies: dict[str, list[int]] = {}
    for row, digest in enumerate(table.sha256):
        if first_row.setdefault(digest, row) != row:
            copies.setdefault(digest, []).append(row)
    view_count = max((max(header.views) + 1 for header in headers), default=1)
    part = np.full((len(table), view_count), -1, np.int32)
    wide = False
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for number, header in enumerate(headers):
        source, target = _matching_rows(header, first_row, copies)
        held = np.array(header.views)
        new = (part[np.ix_(target, held)] < 0).any(axis=1)
        source, target = source[new], target[new]
        part[np.ix_(target, held)] = number
        pairs.append((source, target))
        wide = wide or _is_wide(header)
    dim = headers[0].dim if headers else 0
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        layout = h5py.VirtualLayout((len(table), view_count, dim), np.float32 if wide else np.float16)
        # Of all datasets h5py notes the time in virtual ones alone; equal stores are to be equal files.
        layout.dcpl.set_obj_track_times(False)
        # By HDF5's own calls: h5py's slices take ten times as long, which tells where an order of images has changed.
        to = h5py.h5s.create_simple(layout.shape)
        for number, (header, (source, target)) in enumerate(zip(headers, pairs, strict=True)):
            of = h5py.h5s.create_simple((len(header.image_sha256), len(header.views), dim))
            for run in _runs(source, target, part[np.ix_(target, np.array(header.views))] == number):
                size = (run.length, len(run.views), dim)
                of.select_hyperslab((run.source, run.views.start, 0), size)
                to.select_hyperslab((run.target, header.views[0] + run.views.start, 0), size)
                layout.dcpl.set_virtual(to, f"{PARTS_NAME}/{header.path.name}".encode(), b"features", of)
        file.create_virtual_dataset("features", layout, fillvalue=np.nan)
        write_table(file, table)
        write_column(file, "parts", text_bytes([header.path.name for header in headers]))
        write_column(file, "part", part)
        write_column(file, "quarantined/image_id", text_bytes([row.image_id for row in scanned.quarantined]))
        write_column(file, "quarantined/reason", text_bytes([row.reason for row in scanned.quarantined]))
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spec"] = np.bytes_(spec.to_json())
        file.attrs["fingerprint"] = np.bytes_(spec.fingerprint)
    atomic.write_bytes(store / INDEX_NAME, buffer.getbuffer())


def read_index(store: Path) -> Index:
    """Read and check ``features.h5``.

    Raises:
        StoreError: no store, no index, or a damaged one.
    """
    path = store / INDEX_NAME
    if not path.is_file():
        if not (store / PARTS_NAME).is_dir():
            raise StoreError(f"no feature store in {store}; 'cxr cache list' shows those that exist")
        raise StoreError(
            f"{store} has parts but no {INDEX_NAME} (an extraction that did not finish?): run its 'cxr extract' "
            "again, which makes only what is missing"
        )
    with opened(path, FORMAT) as file:
        try:
            spec = FeatureSpec.from_json(text_attribute(file, "spec"), str(path))
            for name in COLUMNS:
                require_plain(file, name, path)
            table = read_table(file, path)
            quarantined = tuple(
                Quarantined(image_id=image_id, reason=reason)
                for image_id, reason in zip(
                    file["quarantined/image_id"].asstr()[:],
                    file["quarantined/reason"].asstr()[:],
                    strict=True,
                )
            )
            names = tuple(file["parts"].asstr()[:].tolist())
            part = file["part"][:]
        except (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise damaged(path, error) from error
    fits = part.ndim == 2 and part.dtype == np.int32 and len(part) == len(table.label)
    if not fits or (part.size and not -1 <= part.min() <= part.max() < len(names)):
        raise damaged(path, "its table of parts does not fit its images")
    if any(Path(name).name != name for name in names):
        raise damaged(path, "a part's name leads out of the store")
    return Index(spec=spec, encoded=table, quarantined=quarantined, part_names=names, part=part)


def stored_dtype(store: Path) -> np.dtype[np.float16] | np.dtype[np.float32]:
    """The type of ``/features``: float32 where any part holds that.

    Raises:
        StoreError: no index, or a damaged one.
    """
    path = store / INDEX_NAME
    with opened(path, FORMAT) as file:
        try:
            wide = file["features"].dtype.itemsize > 2
        except (KeyError, OSError, RuntimeError, AttributeError) as error:
            raise damaged(path, error) from error
    return np.dtype(np.float32) if wide else np.dtype(np.float16)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Some views of ``length`` consecutive rows, from ``source`` in a part to ``target`` in the index."""

    source: int
    target: int
    length: int
    views: range


def _matching_rows(
    header: PartHeader, first_row: dict[str, int], copies: dict[str, list[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the part and of the table with equal content; an image that occurs twice is mapped twice."""
    target = np.array([first_row.get(digest, -1) for digest in header.image_sha256], np.int64)
    source = np.flatnonzero(target >= 0)
    target = target[source]
    if copies:
        again = [(row, copy) for row, digest in enumerate(header.image_sha256) for copy in copies.get(digest, ())]
        both = np.array(again, np.int64).reshape(-1, 2)
        source, target = np.append(source, both[:, 0]), np.append(target, both[:, 1])
    order = np.argsort(target)
    return source[order], target[order]


def _runs(source: NDArray[np.int64], target: NDArray[np.int64], used: NDArray[np.bool_]) -> Iterator[_Run]:
    """Cut paired rows into stretches in which both count up by one and the same views are used.

    No two stretches of a store may overlap: HDF5 counts the elements of all stretches, and where there are as many as
    the dataset has, it fills nothing in, so that a missing view would read as anything but NaN.

    Args:
        source: [n] rows of the part.
        target: [n] rows of the index.
        used: [n, v] whether the index takes this view from this part, and not from one that holds it too.
    """
    other = (np.diff(source) != 1) | (np.diff(target) != 1) | (used[1:] != used[:-1]).any(axis=1)
    ends = [*(np.flatnonzero(other) + 1).tolist(), len(source)]
    for start, end in zip([0, *ends], ends, strict=False):
        if start < end:
            for views in _ranges(used[start].tobytes()):
                yield _Run(source=int(source[start]), target=int(target[start]), length=end - start, views=views)


@functools.lru_cache(maxsize=64)
def _ranges(used: bytes) -> tuple[range, ...]:
    """The unbroken ranges of flags that are set, of a byte each; nearly always the same one."""
    edges = np.flatnonzero(np.diff(np.frombuffer(used, np.bool_), prepend=False, append=False))
    return tuple(range(first, end) for first, end in edges.reshape(-1, 2).tolist())


def _is_wide(header: PartHeader) -> bool:
    return header.dtype == "float32"
