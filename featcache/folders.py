"""The files of a data set's folder: ``<root>/{train,val,test}/<class>/*``, or ``<root>/<class>/*``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from featcache.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")

JPEG_AND_PNG = (".jpeg", ".jpg", ".png")
IMAGE_SUFFIXES = (*JPEG_AND_PNG, ".dcm", ".dicom")
"""What an image's name ends in; it matters only for files that lie in no class folder."""


def list_images(root: Path) -> list[tuple[str, str, str]]:
    """(path below ``root`` with ``/``, class, split or nothing) of every visible file in a class folder.

    They are sorted by path as bytes, so that locale and file system do not matter.

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
    return found


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
