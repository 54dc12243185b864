"""The image table: one row an image, and how it is found in a folder or a CSV.

Nothing here opens an image; ``check.scan`` does, and fills in content hashes and sizes.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm")
"""What an image's name ends in; it matters only for files that lie in no class folder."""

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
        DataError: no such folder, no class folders, no files in them or images beside them, or names that are no
            UTF-8.
    """
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; name the data set's folder with --data DIR")
    layout = f"wanted {root.name}/{{train,val,test}}/<class>/*.jpeg, or {root.name}/<class>/*.jpeg"
    found: list[tuple[str, str, str]] = []
    try:
        splits = _split_folders(root)
        for inner in _visible_folders(root):
            if not splits and _split_folders(inner):
                raise DataError(f"no images in {root}: {layout}; did you mean {inner}?")
        for split in splits or [""]:
            for class_folder in _visible_folders(root / split):
                for name in _files(class_folder):
                    found.append((f"{split}/{class_folder.name}/{name}".lstrip("/"), class_folder.name, split))
    except OSError as error:
        raise DataError(f"cannot list {error.filename or root}: {error.strerror or error}") from error
    if not found:
        raise DataError(f"no images in {root}: {layout}")
    for split in splits or [""]:
        _require_no_loose_images(root / split)
    try:
        found.sort(key=lambda row: row[0].encode())
    except UnicodeEncodeError as error:
        name = ascii(error.object)
        raise DataError(f"a file's name in {root} is not UTF-8: {name}; rename it") from error
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
    """Read an image table from a CSV with the columns ``path,label[,patient_id,split]``.

    Paths are relative to the data root and may not leave it. Without ``patient_id`` it is taken from the file's name.

    Raises:
        DataError: the file or a column is missing, or a row is wrong; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"no such table: {path}; --table wants a CSV with the columns path,label[,patient_id,split]")
    columns: dict[str, list[str]] = {"path": [], "label": [], "patient_id": [], "split": []}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"path", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} has no column {' or '.join(sorted(missing))}; it has {reader.fieldnames}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if any("\0" in str(value) for value in row.values()):
                    raise DataError(f"{where}: holds a NUL character")
                image_id, label = row["path"] or "", row["label"] or ""
                split = row.get("split") or ""
                if not image_id or not label:
                    raise DataError(f"{where}: path or label is empty")
                if Path(image_id).is_absolute() or ".." in Path(image_id).parts:
                    raise DataError(f"{where}: {image_id} leads outside the data folder; paths are relative to --data")
                if split not in (*SPLIT_FOLDERS, ""):
                    raise DataError(f"{where}: split is {split!r}, wanted train, val, test or nothing")
                columns["path"].append(Path(image_id).as_posix())
                columns["label"].append(label)
                columns["patient_id"].append(row.get("patient_id") or patient_of(image_id, split))
                columns["split"].append(split)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 CSV: {error}") from error
    duplicate = _first_duplicate(columns["path"])
    if duplicate is not None:
        raise DataError(f"{path} names {duplicate} twice")
    classes = tuple(sorted(set(columns["label"])))
    if len(classes) < 2:
        raise DataError(f"{path} holds {len(classes)} class(es) {list(classes)}: a comparison needs two or more")
    return ImageTable.from_columns(columns["path"], columns["label"], columns["patient_id"], columns["split"], classes)


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


def _split_folders(root: Path) -> list[str]:
    return [name for name in SPLIT_FOLDERS if (root / name).is_dir()]


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files(folder: Path) -> Iterator[str]:
    """Names of all visible files below a class folder, those in subfolders included.

    Links to folders are not followed but given as if they were files: reading one says what it is.
    """
    for here, subfolders, names in os.walk(folder, onerror=_raise):
        below = Path(here).relative_to(folder)
        links = [name for name in subfolders if Path(here, name).is_symlink()]
        yield from (str(below / name) for name in [*names, *links] if not name.startswith("."))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]


def _raise(error: OSError) -> NoReturn:
    raise error


def _require_no_loose_images(folder: Path) -> None:
    """An image beside the class folders has no label; leaving it out in silence would be worse than stopping.

    Raises:
        DataError: there is one.
    """
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if loose:
        raise DataError(f"{folder / loose[0]} lies in no class folder: move it into one, or use --table images.csv")


def _first_duplicate(values: list[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
