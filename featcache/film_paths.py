"""What a user means by PATH where any films are meant: a file, a folder and all below it, or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.errors import DataError


def film_paths(names: Sequence[str], root: Path | None = None) -> Iterator[Path]:
    """The files that are meant, in the order asked for, those of a folder by name.

    Of a folder every visible file is meant, whatever it is called: DICOM files often bear no suffix, and one that is no
    image is told when it is read. So is a file that does not exist or may not be looked at, and a folder below that
    cannot be listed. Links to folders are not followed. No more is held
    than the names in one folder, or those that one pattern matches.

    Args:
        names: files, folders, and patterns as a shell has them (``**`` for any folders).
        root: where a name is looked for that is not found from here: names may be image ids of this data set.

    Raises:
        DataError: a folder that is named holds no file or cannot be listed, or a pattern matches none.
    """
    for name in names:
        path = Path(name)
        # Those of os.path take what may not be looked at, or has too long a name, for absent; Path's raise.
        if not os.path.exists(path) and root is not None and os.path.exists(root / name):  # noqa: PTH110
            path = root / name
        if os.path.isdir(path):  # noqa: PTH112
            yield from _some(_below(path), f"no files in {path}")
        elif not os.path.exists(path) and glob.has_magic(name):  # noqa: PTH110
            # Path.glob takes no absolute pattern.
            matching = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            files = (Path(match) for match in matching if os.path.isfile(match))  # noqa: PTH113
            yield from _some(files, f"no file matches {name}")
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
    unlisted: list[OSError] = []
    for here, subfolders, names in os.walk(folder, onerror=unlisted.append):
        yield from _places(unlisted)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
    if unlisted and unlisted[0].filename == os.fspath(folder):
        error = unlisted[0]
        raise DataError(f"cannot list {folder}: {error.strerror or error}") from error
    yield from _places(unlisted)


def _places(unlisted: list[OSError]) -> Iterator[Path]:
    """The subfolders that could not be listed, each once: why not is told when they are read."""
    while unlisted:
        yield Path(unlisted.pop(0).filename)
