"""Parts read without HDF5, once it has said how they are laid out.

Opening a part by HDF5 takes longer than reading it. Parts of one size that one program wrote are laid out alike, so
once HDF5 has said where things lie in one, the next of that size is read at the same places. That is a guess, and the
checksum that stands there is the proof: it covers spec, hashes, views and features. Where it fails, HDF5 has the word.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from featcache.index import PARTS_NAME
from featcache.parts import FORMAT, FeatureArray, PartHeader, opened, read_features, read_header
from featcache.spec import FeatureSpec

Digests = NDArray[np.bytes_]
"""Content hashes as hex, [n] of 64 bytes."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where things lie in a part: shape [n, v, D], type and views of the features, and offsets in bytes."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    views: tuple[int, ...]
    features: int
    image_sha256: int
    checksum: int

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A part, or some of it: hashes [n], first view, features [n, v, D], which the thread's next reading overwrites."""

    image_sha256: Digests
    first_view: int
    features: FeatureArray


_NOT_READ: Digests = np.empty(0, "S64")


class PartReader:
    """Reads parts of one store; from several threads at once if need be.

    Args:
        store: the store's folder.
        spec: what its features were made with.
    """

    def __init__(self, store: Path, spec: FeatureSpec) -> None:
        self._folder = store / PARTS_NAME
        self._spec = spec
        self._spec_json = spec.to_json().encode()
        # By the size of the file; those of one size may hold other views.
        self._layouts: dict[int, list[_Layout]] = {}
        self._verified: dict[str, _Layout] = {}  # by the name of what has been read
        self._buffer = threading.local()

    def read(self, name: str, wanted: Digests, target: NDArray[Any]) -> Part:
        """Read a part whole and verify it.

        Args:
            name: the file.
            wanted: hashes of images that are wanted of it.
            target: where the features go at once if the part holds exactly those images, in this order; the result's
                ``features`` are this array then. Its content is undefined otherwise.

        Raises:
            StoreError: missing, damaged, or of another spec.
        """
        path = self._folder / name
        try:
            seen = path.stat()
            for layout in list(self._layouts.get(seen.st_size, ())) if stat.S_ISREG(seen.st_mode) else ():
                if (part := self._read_as(layout, path, wanted, target)) is not None:
                    self._verified[name] = layout
                    return part
        except OSError:
            pass  # HDF5 finds the same, and says it in our words.
        header = self.header(name)
        held = np.array(header.image_sha256, "S64")
        return Part(image_sha256=held, first_view=header.views[0], features=read_features(header))

    def header(self, name: str) -> PartHeader:
        """Read what a part holds by HDF5, and remember how it is laid out.

        Raises:
            StoreError: as ``read``.
        """
        header = read_header(self._folder / name, self._spec)
        if (found := _layout(header)) is not None:
            if found not in (known := self._layouts.setdefault(header.path.stat().st_size, [])):
                known.append(found)
            self._verified[name] = found
        return header

    def _read_as(self, layout: _Layout, path: Path, wanted: Digests, target: NDArray[Any]) -> Part | None:
        """Read a part that is taken to be laid out so; None if it is not."""
        with path.open("rb", buffering=0) as opened_file:
            file = opened_file.fileno()
            image_sha256 = np.empty(layout.shape[0], "S64")
            stated = np.empty(1, "S32")
            fits = (target.shape, target.dtype) == (layout.shape, layout.dtype) and target.flags.c_contiguous
            if not (_fill(file, image_sha256, layout.image_sha256) and _fill(file, stated, layout.checksum)):
                return None
            if _name(image_sha256, layout.views) != path.name:
                return None
            if not (fits and np.array_equal(image_sha256, wanted)):
                target = self._scratch(layout.shape, layout.dtype)
            if not _fill(file, target, layout.features):
                return None
        digest = xxhash.xxh3_128(self._spec_json)
        digest.update(image_sha256.data.cast("B"))
        digest.update(np.array(layout.views, "<i4").tobytes())
        digest.update(target.data.cast("B"))
        if digest.hexdigest().encode() != stated[0]:
            return None
        return Part(image_sha256=image_sha256, first_view=layout.views[0], features=target)

    def read_some(self, name: str, first: int, last: int, target: NDArray[Any]) -> Part | None:
        """Read images ``first`` to ``last`` of a part that has been verified, unverified; None if that is not possible.

        Args:
            name: the file.
            first: the first image.
            last: the one after the last.
            target: where the features go if they have its shape and type, as of ``read``.
        """
        layout = self._verified.get(name)
        if layout is None:
            return None
        try:
            # A pipe that has taken its place is not waited for.
            file = os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            shape = last - first, *layout.shape[1:]
            if not ((target.shape, target.dtype) == (shape, layout.dtype) and target.flags.c_contiguous):
                target = self._scratch(shape, layout.dtype)
            if not _fill(file, target, layout.features + first * layout.row_bytes):
                return None
        except OSError:
            return None
        finally:
            os.close(file)
        return Part(image_sha256=_NOT_READ, first_view=layout.views[0], features=target)

    def _scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """This thread's buffer, which stays in the processor's cache from part to part."""
        size = int(np.prod(shape)) * dtype.itemsize
        held: NDArray[np.uint8] | None = getattr(self._buffer, "held", None)
        if held is None or len(held) < size:
            held = self._buffer.held = np.empty(size, np.uint8)
        return held[:size].view(dtype).reshape(shape)


def matching_rows(held: Digests, wanted: Digests) -> NDArray[np.int64] | None:
    """The row of each wanted hash in those held, [m]; None where one is not there."""
    first = np.flatnonzero(held == wanted[0])
    if len(first) and np.array_equal(held[first[0] : first[0] + len(wanted)], wanted):
        return np.arange(first[0], first[0] + len(wanted))  # Nearly always they follow one another.
    # Numbers sort faster than text. Where two begin alike, which is rare, the whole text decides.
    for held_key, wanted_key in ((held.view(np.uint64)[::8], wanted.view(np.uint64)[::8]), (held, wanted)):
        order = np.argsort(held_key)
        place = np.minimum(np.searchsorted(held_key, wanted_key, sorter=order), len(held) - 1)
        rows: NDArray[np.int64] = order[place]
        if np.array_equal(held[rows], wanted):
            return rows
    return None


def _layout(header: PartHeader) -> _Layout | None:
    """Where things lie in a part; None if it is not as this program writes it."""
    with opened(header.path, FORMAT) as file:
        datasets = file["features"], file["image_sha256"]
        offsets = [dataset.id.get_offset() for dataset in datasets]
        types = [dataset.dtype for dataset in datasets]
    stated = header.checksum.encode()
    native = types[0].newbyteorder("=") == types[0] and types[1] == np.dtype("S64")
    if not native or None in offsets or len(stated) != 32:
        return None
    with header.path.open("rb") as whole:
        before = whole.read(offsets[0])
        skipped = len(header.image_sha256) * len(header.views) * header.dim * types[0].itemsize
        whole.seek(skipped, os.SEEK_CUR)
        after = whole.read()
    found = (before + bytes(len(stated)) + after).find(stated)
    if found < 0:
        return None
    at = found if found < len(before) else found - len(stated) + skipped
    return _Layout(
        shape=(len(header.image_sha256), len(header.views), header.dim),
        dtype=types[0],
        views=header.views,
        features=offsets[0],
        image_sha256=offsets[1],
        checksum=at,
    )


def _name(image_sha256: Digests, views: Sequence[int]) -> str:
    """``parts.part_name`` of hashes that are bytes already."""
    joined = np.full((len(image_sha256), 65), ord(","), np.uint8)
    joined[:, :64] = image_sha256.view(np.uint8).reshape(-1, 64)
    content = joined.tobytes()[:-1] + f";{','.join(map(str, views))}".encode()
    return f"part-{hashlib.sha256(content).hexdigest()[:16]}.h5"


def _fill(file: int, target: NDArray[Any], offset: int) -> bool:
    """Read as many bytes as the target takes; False if there are fewer."""
    view = target.data.cast("B")
    return os.preadv(file, [view], offset) == len(view)
