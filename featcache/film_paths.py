"""What a user means by PATH where any films are meant: a file, a folder and all below it, or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from featcache.errors import DataError


def film_paths(names: Sequence[str], root: Path | None = None) -> Iterator[Path]:
    """The files that are meant, in the order asked for, those of a folder by name.

    Of a folder every visible file is meant, whatever it is called: DICOM files often bear no suffix, and one that is no
    image is told when it is read. So is a file that does not exist. Links to folders are not followed. No more is held
    than the names in one folder, or those that one pattern matches.

    Args:
        names: files, folders, and patterns as a shell has them (``**`` for any folders).
        root: where a name is looked for that is not found from here: names may be image ids of this data set.

    Raises:
        DataError: a folder holds no file, or a pattern matches none; or a folder cannot be listed.
    """
    for name in names:
        path = Path(name)
        if not path.exists() and root is not None and (root / name).exists():
            path = root / name
        if path.is_dir():
            yield from _some(_below(path), f"no files in {path}")
        elif not path.exists() and glob.has_magic(name):
            # Path.glob takes no absolute pattern.
            matching = (Path(match) for match in sorted(glob.glob(name, recursive=True)))  # noqa: PTH207
            yield from _some((match for match in matching if match.is_file()), f"no file matches {name}")
        else:
            yield path


def _some(paths: Iterator[Path], complaint: str) -> Iterator[Path]:
    found = False
    for path in paths:
        found = True
        yield path
    if not found:
        raise DataError(complaint)


def _below(folder: Path) -> Iterator[Path]:
    """All visible files below a folder: its own by name, then those of its subfolders."""
    for here, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror or error}") from error
