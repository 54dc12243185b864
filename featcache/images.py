"""The image table: one row an image, and how it is found in a folder or a CSV.

Nothing here opens an image; ``check.scan`` does, and fills in content hashes and sizes.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featcache import atomic
from featcache.errors import DataError
from featcache.folders import SPLIT_FOLDERS, list_images

CSV_COLUMNS = ("path", "label", "patient_id", "split", "sha256", "width", "height")
"""Columns of an image table's CSV; the first two are wanted, the others may lack."""

SHA256 = re.compile(r"[0-9a-f]{64}")
UNPLAIN = ("//", "/.", "\\", ":")
"""What a path that leads out of the data folder, or that has another spelling, holds, unless it is seen by its ends."""

Strings = NDArray[np.object_]
"""[N] Python strings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTable:
    """The images of a data set, a column an attribute.

    Attributes:
        classes: class names; ``label`` counts in this order.
        image_id: [N] path below the data root, with ``/``.
        label: [N] int64, index into ``classes``.
        patient_id: [N] patient, qualified by the series that numbers it (``train/person1``).
        split: [N] the folder's or table's ``train``, ``val`` or ``test``; empty where it says nothing.
        sha256: [N] hash of the file's bytes as hex; empty until scanned.
        width: [N] int32, pixels; 0 until scanned.
        height: [N] int32, pixels; 0 until scanned.
    """

    classes: tuple[str, ...]
    image_id: Strings
    label: NDArray[np.int64]
    patient_id: Strings
    split: Strings
    sha256: Strings
    width: NDArray[np.int32]
    height: NDArray[np.int32]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.image_id)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """The table of some rows, by index or mask; the classes stay."""
        columns = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self) if f.name != "classes"}
        return dataclasses.replace(self, **columns)

    def counts(self, split: str) -> tuple[int, ...]:
        """Images a class in one split folder, in the order of ``classes``."""
        chosen = self.label[self.split == split]
        return tuple(int(n) for n in np.bincount(chosen, minlength=len(self.classes)))

    @classmethod
    def from_columns(
        cls,
        image_id: list[str],
        label: list[str],
        patient_id: list[str],
        split: list[str],
        classes: tuple[str, ...],
    ) -> Self:
        """Build an unscanned table from plain lists of equal length."""
        number = {name: index for index, name in enumerate(classes)}
        empty = np.zeros(len(image_id), np.int32)
        return cls(
            classes=classes,
            image_id=strings(image_id),
            label=np.array([number[name] for name in label], np.int64),
            patient_id=strings(patient_id),
            split=strings(split),
            sha256=strings([""] * len(image_id)),
            width=empty,
            height=empty,
        )


def strings(values: list[str]) -> Strings:
    """An object array of Python strings, [N]."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


def discover(root: Path) -> ImageTable:
    """Find the images of ``<root>/{train,val,test}/<class>/*``, or of ``<root>/<class>/*``.

    Every visible file in a class folder is a row, whatever its name: one that is no image is reported when it
    is read, never dropped. Rows are sorted by path as bytes, so that locale and file system do not matter.

    Raises:
        DataError: what ``folders.list_images`` raises, or a single class.
    """
    found = list_images(root)
    classes = tuple(sorted({label for _, label, _ in found}))
    if len(classes) < 2:
        raise DataError(f"{root} has the single class folder {classes[0]!r}: a comparison needs two classes or more")
    return ImageTable.from_columns(
        [image_id for image_id, _, _ in found],
        [label for _, label, _ in found],
        [patient_of(image_id, split) for image_id, _, split in found],
        [split for _, _, split in found],
        classes,
    )


def read_csv(path: Path) -> ImageTable:
    """Read an image table from a CSV with the columns ``path,label[,patient_id,split,sha256,width,height]``.

    Paths are relative to the data root and may not leave it. Without ``patient_id`` it is taken from the file's name.
    Hashes and sizes are taken as given; ``check.scan`` reads the images that have no hash.

    Raises:
        DataError: the file or a column is missing, or a row is wrong; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"no such table: {path}; --table wants a CSV with the columns path,label[,patient_id,split]")
    # A list a column, and no object a row: a million rows are common.
    texts: tuple[list[str], ...] = ([], [], [], [], [])
    sizes = array("i"), array("i")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            missing = {"path", "label"} - set(header or ())
            if header is None or missing:
                raise DataError(f"{path} has no column {' or '.join(sorted(missing))}; it has {header}")
            number = {name: index for index, name in enumerate(header)}
            places = [number.get(name, sys.maxsize) for name in CSV_COLUMNS]
            for cells in filter(None, reader):
                try:
                    row, size = _csv_row(cells, places)
                except ValueError as error:
                    raise DataError(f"{path}, line {reader.line_num}: {error}") from error
                for text_column, text in zip(texts, row, strict=True):
                    text_column.append(text)
                for size_column, pixels in zip(sizes, size, strict=True):
                    size_column.append(pixels)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 CSV: {error}") from error
    image_id, label, patient_id, split, sha256 = texts
    duplicate = _first_duplicate(image_id)
    if duplicate is not None:
        raise DataError(f"{path} names {duplicate} twice")
    classes = tuple(sorted(set(label)))
    if len(classes) < 2:
        raise DataError(f"{path} holds {len(classes)} class(es) {list(classes)}: a comparison needs two or more")
    table = ImageTable.from_columns(image_id, label, patient_id, split, classes)
    width, height = (np.array(column, np.int32) for column in sizes)
    return dataclasses.replace(table, sha256=strings(sha256), width=width, height=height)


def _csv_row(cells: Sequence[str], places: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, int]]:
    """(path, label, patient_id, split, sha256) and (width, height) of a row whose columns lie at ``places``.

    Raises:
        ValueError: the row is wrong, and why.
    """
    if "\0" in "".join(cells):
        raise ValueError("holds a NUL character")
    count = len(cells)
    image_id, label, patient_id, split, sha256, width, height = [
        cells[place] if place < count else "" for place in places
    ]
    if not image_id or not label:
        raise ValueError("path or label is empty")
    patient_id = patient_id or patient_of(image_id, split)
    if image_id[0] in "./" or image_id[-1] == "/" or any(odd in image_id for odd in UNPLAIN):
        # Not asked of every path: a million times, it takes longer than all the rest.
        spelled = Path(image_id)
        if spelled.is_absolute() or ".." in spelled.parts:
            raise ValueError(f"{image_id} leads outside the data folder; paths are relative to --data")
        image_id = spelled.as_posix()
    if split not in (*SPLIT_FOLDERS, ""):
        raise ValueError(f"split is {split!r}, wanted train, val, test or nothing")
    if sha256 and not SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 is {sha256[:80]!r}, wanted 64 lower-case hex digits, or nothing")
    # Interned, since the same few words would be kept a million times.
    words = image_id, sys.intern(label), patient_id, sys.intern(split), sha256
    return words, (_pixels("width", width), _pixels("height", height))


def _pixels(name: str, value: str) -> int:
    if not value:
        return 0
    if len(value) > 9 or not (value.isascii() and value.isdigit()):
        raise ValueError(f"{name} is {value[:80]!r}, wanted a whole number of pixels, 0 where it is not known")
    return int(value)


def write_csv(path: Path, table: ImageTable) -> None:
    """Write an image table as a CSV that ``read_csv`` gives back; an image without a hash has an empty one.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    text = io.StringIO(newline="")
    # Lines end as RFC 4180 says: Python quotes a carriage return in a file's name only where it is part of that end.
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    label = (table.classes[index] for index in table.label.tolist())
    size = table.width.tolist(), table.height.tolist()
    writer.writerows(zip(table.image_id, label, table.patient_id, table.split, table.sha256, *size, strict=True))
    atomic.write_text(path, text.getvalue())


def positive_class(classes: tuple[str, ...], wanted: str | None = None) -> int:
    """Index of the class whose recall is the sensitivity: the second of two unless told otherwise.

    Raises:
        DataError: ``wanted`` is no class of this data set.
    """
    if wanted is None:
        return 1
    if wanted not in classes:
        raise DataError(f"no class {wanted!r} in this data set; it has {', '.join(classes)}")
    return classes.index(wanted)


def patient_of(image_id: str, split: str) -> str:
    """Patient of a file named as in Kermany's set, else the file itself.

    ``personN_…`` is ``personN``; ``IM-0115-0001`` and ``NORMAL2-IM-1427-0001-0002`` are what stands before the
    image's numbers. Train and test number their patients independently (170 ``personN`` occur in both and are
    different children), while Kaggle's val folder was cut from train: so the name is qualified by its series.
    """
    stem = Path(image_id).stem
    known = re.match(r"(person\d+)_|((?:NORMAL\d*-)?IM-\d+)-", stem)
    series = "train" if split == "val" else split
    name = (known.group(1) or known.group(2)) if known else image_id.removeprefix(f"{split}/")
    return f"{series}/{name}".lstrip("/")


def _first_duplicate(values: list[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
