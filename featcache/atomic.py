"""Whole files or none: write beside the target, flush to the disk, rename, flush the folder.

A reader never sees half a file, and a kill at any instant leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from featcache.errors import CxrError

TEMPORARY_PREFIX = ".partial-"


class WriteError(CxrError):
    """A file or folder could not be written: disk full, read-only, or no permission."""


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` as the whole content of ``path``, or leave ``path`` as it was.

    Raises:
        WriteError: the disk is full or the folder cannot be written; nothing of ours stays behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explained(path, len(data), error) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; see ``write_bytes``."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_text(path: Path) -> Iterator[IO[str]]:
    """Yield a file for UTF-8 text of any length, which becomes ``path`` when the block ends well; see ``write_bytes``.

    Names of files that are no UTF-8 keep their bytes.

    Raises:
        WriteError: the disk is full or the folder cannot be written; nothing of ours stays behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}")
    try:
        with _told_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _NewText(temporary.open("xb"), path)
        try:
            yield file
            with _told_of(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            # What is still to be written may find no room; after an error of the block that one counts.
            with contextlib.suppress(OSError):
                file.close()
        with _told_of(path):
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class _NewText(io.TextIOWrapper):
    """A text file whose own errors are explained: of others, raised while it is open, it knows nothing."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape", newline="")
        self.path = path

    def write(self, text: str, /) -> int:
        with _told_of(self.path):
            return super().write(text)


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explained(path, None, error) from error


@contextlib.contextmanager
def new_folder(path: Path, *, resumed: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that becomes ``path`` when the block ends well.

    Args:
        path: the folder to make.
        resumed: the temporary folder has one name and stays where the block fails, so that the next try finds it: the
            block must then judge each file that lies there.

    Raises:
        WriteError: the disk is full, the place cannot be written, or ``path`` already exists.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{'' if resumed else secrets.token_hex(6) + '-'}{path.name}")
    try:
        if path.exists():
            # Said before the work is done; and renaming would replace an empty folder in silence.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary.mkdir(parents=True, exist_ok=resumed)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException as error:
        if not resumed:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise explained(path, None, error) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def explained(path: Path, size: int | None, error: OSError) -> WriteError:
    """The error that tells a user why ``path``, of ``size`` bytes, could not be written, and the way out."""
    need = f" ({size / 2**20:.1f} MiB)" if size is not None else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        way_out = "free some space or name another place, then run the same command again: what was finished is kept"
    else:
        way_out = "name a place that is free and may be written to"
    return WriteError(f"cannot write {path}{need}: {reason}; {way_out}")
