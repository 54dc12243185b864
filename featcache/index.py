"""``features.h5``: the image table, and a virtual dataset over the parts.

It is written last, holds nothing that the parts and the image table do not, and is rebuilt from them at will.
Any HDF5 reader that opens it sees one array ``/features`` [N, V, D].
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np
from numpy.typing import NDArray

from featcache import atomic
from featcache.check import Quarantined, Scan
from featcache.errors import StoreError
from featcache.images import ImageTable, strings
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
        image_table: the images, in the order of ``/features``.
        quarantined: images of the data set that could not be used.
        part_names: [P] file names below ``parts``.
        part: [N, V] int32, index into ``part_names``; -1 where a view is missing.
    """

    spec: FeatureSpec
    image_table: ImageTable
    quarantined: tuple[Quarantined, ...]
    part_names: tuple[str, ...]
    part: NDArray[np.int32]


def write_index(store: Path, spec: FeatureSpec, scanned: Scan, headers: Sequence[PartHeader]) -> None:
    """Write ``features.h5`` over the parts that exist.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    table = scanned.table
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(table.sha256):
        rows_of.setdefault(digest, []).append(row)
    view_count = max((max(header.views) + 1 for header in headers), default=1)
    part = np.full((len(table), view_count), -1, np.int32)
    wide = False
    layout_runs: list[tuple[PartHeader, _Run]] = []
    for number, header in enumerate(headers):
        source, target = _matching_rows(header, rows_of)
        held = np.array(header.views)
        new = (part[np.ix_(target, held)] < 0).any(axis=1)
        source, target = source[new], target[new]
        part[np.ix_(target, held)] = number
        layout_runs += [(header, run) for run in _runs(source, target)]
        wide = wide or _is_wide(header)
    dim = headers[0].dim if headers else 0
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        layout = h5py.VirtualLayout((len(table), view_count, dim), np.float32 if wide else np.float16)
        # Of all datasets h5py notes the time in virtual ones alone; equal stores are to be equal files.
        layout.dcpl.set_obj_track_times(False)
        for header, run in layout_runs:
            shape = (len(header.image_sha256), len(header.views), dim)
            source_view = h5py.VirtualSource(
                f"{PARTS_NAME}/{header.path.name}",
                "features",
                shape,
                np.float32 if _is_wide(header) else np.float16,
            )
            first = header.views[0]
            layout[run.target : run.target + run.length, first : first + len(header.views)] = source_view[
                run.source : run.source + run.length
            ]
        file.create_virtual_dataset("features", layout, fillvalue=np.nan)
        _write_table(file, table)
        _write_column(file, "parts", _text([header.path.name for header in headers]))
        _write_column(file, "part", part)
        _write_column(file, "quarantined/image_id", _text([row.image_id for row in scanned.quarantined]))
        _write_column(file, "quarantined/reason", _text([row.reason for row in scanned.quarantined]))
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spec"] = np.bytes_(spec.to_json())
        file.attrs["fingerprint"] = np.bytes_(spec.fingerprint)
    try:
        with filelock.FileLock(store / f"{INDEX_NAME}.lock"):
            atomic.write_bytes(store / INDEX_NAME, buffer.getbuffer())
    except OSError as error:
        raise atomic.explained(store / INDEX_NAME, None, error) from error


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
            table = _read_table(file)
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
    fits = part.ndim == 2 and part.dtype == np.int32 and len(part) == len(table)
    if not fits or (part.size and not -1 <= part.min() <= part.max() < len(names)):
        raise damaged(path, "its table of parts does not fit its images")
    if any(Path(name).name != name for name in names):
        raise damaged(path, "a part's name leads out of the store")
    return Index(spec=spec, image_table=table, quarantined=quarantined, part_names=names, part=part)


def _write_table(file: h5py.File, table: ImageTable) -> None:
    _write_column(file, "image_id", _text(table.image_id.tolist()))
    _write_column(file, "image_sha256", np.array(table.sha256.tolist(), "S64"))
    _write_column(file, "label", table.label)
    file["label"].attrs["classes"] = _text(list(table.classes))
    _write_column(file, "patient_id", _text(table.patient_id.tolist()))
    _write_column(file, "split", _text(table.split.tolist()))
    _write_column(file, "width", table.width)
    _write_column(file, "height", table.height)


def _write_column(file: h5py.File, name: str, values: NDArray[Any]) -> None:
    """Write a dataset with HDF5's own checksum, which a reader compares unasked; an empty one can have none."""
    file.create_dataset(name, data=values, fletcher32=True if values.size else None)


def _text(values: list[str]) -> NDArray[np.bytes_]:
    """UTF-8 of fixed length: text of variable length is kept outside the dataset, where it has no checksum."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded), 1)))


def _read_table(file: h5py.File) -> ImageTable:
    """The image table.

    Raises:
        ValueError: columns of different length, or labels that are no class.
    """
    table = ImageTable(
        classes=tuple(_name(value) for value in file["label"].attrs["classes"]),
        image_id=strings(file["image_id"].asstr()[:].tolist()),
        label=file["label"][:].astype(np.int64),
        patient_id=strings(file["patient_id"].asstr()[:].tolist()),
        split=strings(file["split"].asstr()[:].tolist()),
        sha256=strings(file["image_sha256"].asstr()[:].tolist()),
        width=file["width"][:].astype(np.int32),
        height=file["height"][:].astype(np.int32),
    )
    columns = (table.label, table.patient_id, table.split, table.sha256, table.width, table.height)
    if any(len(column) != len(table) for column in columns):
        raise ValueError("the columns of the image table differ in length")
    if len(table) and not 0 <= table.label.min() <= table.label.max() < len(table.classes):
        raise ValueError("a label is no class")
    return table


def _name(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True, kw_only=True)
class _Run:
    """``length`` consecutive rows, from ``source`` in a part to ``target`` in the index."""

    source: int
    target: int
    length: int


def _matching_rows(header: PartHeader, rows_of: dict[str, list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the part and of the table with equal content; an image that occurs twice is mapped twice."""
    pairs = [(source, target) for source, d in enumerate(header.image_sha256) for target in rows_of.get(d, ())]
    pairs.sort(key=lambda pair: pair[1])
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _runs(source: NDArray[np.int64], target: NDArray[np.int64]) -> Iterator[_Run]:
    """Cut paired rows into stretches in which both count up by one."""
    breaks = np.flatnonzero((np.diff(source) != 1) | (np.diff(target) != 1)) + 1
    for stretch in np.split(np.arange(len(source)), breaks):
        if len(stretch):
            yield _Run(source=int(source[stretch[0]]), target=int(target[stretch[0]]), length=len(stretch))


def _is_wide(header: PartHeader) -> bool:
    return header.dtype == "float32"
