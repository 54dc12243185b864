"""The image table's columns in ``features.h5``: written with checksums, read without decoding their text."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.images import ImageTable
from featcache.parts import damaged

TEXT_COLUMNS = ("image_id", "patient_id", "split", "image_sha256")
"""Those of the image table that hold text."""

DECODED_AT_ONCE = 65_536
"""Values of a column: as many bytes objects stand beside the column and its strings."""


@dataclass(frozen=True, kw_only=True)
class EncodedTable:
    """An image table whose text is not decoded yet: that of a million images takes a second, and not all need it.

    Attributes:
        path: the file that it was read from.
        classes: as in ``ImageTable``.
        text: name of a text column in the file → [N] UTF-8.
        label: [N] int64.
        width: [N] int32.
        height: [N] int32.
    """

    path: Path
    classes: tuple[str, ...]
    text: dict[str, NDArray[Any]]
    label: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]

    @functools.cached_property
    def decoded(self) -> ImageTable:
        """The table, decoded when it is first asked for.

        Raises:
            StoreError: some text is no UTF-8.
        """
        try:
            columns = {name: _decoded(column) for name, column in self.text.items()}
        except UnicodeDecodeError as error:
            raise damaged(self.path, error) from error
        sha256 = columns.pop("image_sha256")
        return ImageTable(
            classes=self.classes, sha256=sha256, label=self.label, width=self.width, height=self.height, **columns
        )


def write_table(file: h5py.File, table: ImageTable) -> None:
    """Write every column of an image table."""
    write_column(file, "image_id", text_bytes(table.image_id.tolist()))
    write_column(file, "image_sha256", np.array(table.sha256.tolist(), "S64"))
    write_column(file, "label", table.label)
    file["label"].attrs["classes"] = text_bytes(list(table.classes))
    write_column(file, "patient_id", text_bytes(table.patient_id.tolist()))
    write_column(file, "split", text_bytes(table.split.tolist()))
    write_column(file, "width", table.width)
    write_column(file, "height", table.height)


def read_table(file: h5py.File, path: Path) -> EncodedTable:
    """Read every column of an image table.

    Raises:
        TypeError: a column of text is none.
        ValueError: columns of different length, or labels that are no class.
    """
    text: dict[str, NDArray[Any]] = {}
    for name in TEXT_COLUMNS:
        if h5py.check_string_dtype(file[name].dtype) is None:
            raise TypeError(f"/{name} is not text")
        text[name] = file[name][:]
    table = EncodedTable(
        path=path,
        classes=tuple(_name(value) for value in file["label"].attrs["classes"]),
        text=text,
        label=file["label"][:].astype(np.int64),
        width=file["width"][:].astype(np.int32),
        height=file["height"][:].astype(np.int32),
    )
    count = len(table.label)
    if any(column.shape != (count,) for column in (*text.values(), table.label, table.width, table.height)):
        raise ValueError("the columns of the image table differ in length")
    if count and not 0 <= table.label.min() <= table.label.max() < len(table.classes):
        raise ValueError("a label is no class")
    return table


def write_column(file: h5py.File, name: str, values: NDArray[Any]) -> None:
    """Write a dataset with HDF5's own checksum, which a reader compares unasked; an empty one can have none."""
    file.create_dataset(name, data=values, fletcher32=True if values.size else None)


def text_bytes(values: list[str]) -> NDArray[np.bytes_]:
    """UTF-8 of fixed length: text of variable length is kept outside the dataset, where it has no checksum."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded), 1)))


def _decoded(column: NDArray[Any]) -> NDArray[np.object_]:
    """Text as strings, equal ones once: a split's name, or a patient's, stands beside many images."""
    known: dict[bytes, str] = {}
    decoded = np.empty(len(column), object)
    for start in range(0, len(column), DECODED_AT_ONCE):
        some = column[start : start + DECODED_AT_ONCE].tolist()
        decoded[start : start + len(some)] = [
            known.get(value) or known.setdefault(value, value.decode()) for value in some
        ]
        if len(known) > DECODED_AT_ONCE:
            known.clear()  # These are names of images, or hashes: hardly two are equal.
    return decoded


def _name(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
