"""The cache's folder, for ``cxr doctor``: can it be written, do locks hold there, does a store fit in."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from featcache import atomic
from featcache.doctor.finding import Finding, first_line, guarded
from featcache.errors import CxrError, StoreError
from featcache.settings import Settings

NO_LOCKING = "HDF5_USE_FILE_LOCKING"
UNLOCK = f"export {NO_LOCKING}=FALSE: cxr writes whole files and renames them, and needs no locks of HDF5"

FLOAT16 = 2
"""Bytes of a feature in the store."""

BESIDE_FEATURES = 1024
"""Bytes an image and store beside the features: hashes, names, and its share of what a part says of itself."""


def cache_folder(cache: Path) -> Iterator[Finding]:
    """A file is written whole, flushed, renamed and read back; then the locks of that file system are tried.

    Raises:
        StoreError: the folder cannot be made or written, or what was written does not come back.
    """
    with _probe_folder(cache) as folder:
        written = bytes(range(256)) * 256
        atomic.write_bytes(folder / "probe", written)
        if (folder / "probe").read_bytes() != written:
            raise StoreError(f"a file in {cache} reads back as something else than was written")
        yield Finding(checked="cache", found=f"{cache.resolve()} can be written")
        yield from guarded("locks", "lay the cache elsewhere: --cache DIR", partial(_locks, folder))
        yield from guarded("hdf5", UNLOCK, partial(_hdf5, folder))


@contextlib.contextmanager
def _probe_folder(cache: Path) -> Iterator[Path]:
    """A folder of our own in the cache; afterwards it is gone, and so are folders of the cache's path that we made."""
    made: list[Path] = []
    try:
        made = [folder for folder in (cache, *cache.parents) if not folder.exists()]
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{atomic.TEMPORARY_PREFIX}doctor-", dir=cache) as ours:
            yield Path(ours)
    except (OSError, atomic.WriteError) as error:
        cause = error.__cause__ or error  # What atomic raises was caused by the system's error.
        reason = getattr(cause, "strerror", None) or cause
        way_out = "name another place with --cache DIR, or make this one writable"
        raise StoreError(f"{cache.absolute()} cannot be written: {reason}; {way_out}") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _locks(folder: Path) -> Iterator[Finding]:
    """The lock that two extractions into one store would share."""
    import filelock

    with filelock.FileLock(folder / "lock"):
        try:
            with filelock.FileLock(folder / "lock", timeout=0):
                kept_out = False
        except filelock.Timeout:
            kept_out = True
    if kept_out:
        yield Finding(checked="locks", found="a second writer waits for the first")
    else:
        yield Finding(
            checked="locks",
            state="warning",
            found="a second writer is let in beside the first: locks do not work there",
            remedy="run one extraction at a time, or lay the cache on another file system: --cache DIR",
        )


def _hdf5(folder: Path) -> Iterator[Finding]:
    """HDF5 opens a file as our readers do; and for writing, which locks it against others.

    Raises:
        OSError: HDF5 cannot read there.
    """
    import h5py

    from featcache.parts import LIBVER

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        file["probe"] = b"radiograph"
    path = folder / "probe.h5"
    atomic.write_bytes(path, buffer.getbuffer())
    with h5py.File(path, "r") as file:
        if file["probe"][()] != b"radiograph":
            raise StoreError("an HDF5 file reads back as something else than was written")
    said = f"HDF5 {h5py.version.hdf5_version} reads files there"
    switched = os.environ.get(NO_LOCKING, "").upper()
    try:
        with h5py.File(path, "r+"):
            locked = _is_locked(path)
    except OSError as error:
        found = f"{said}, but cannot open one for writing: {first_line(error)}"
        yield Finding(checked="hdf5", state="warning", found=found, remedy=UNLOCK)
        return
    if locked:
        yield Finding(checked="hdf5", found=f"{said} and locks those that it writes")
    elif switched in ("FALSE", "0"):
        yield Finding(checked="hdf5", found=f"{said}; its locks are off ({NO_LOCKING}={switched}), and cxr needs none")
    else:
        yield Finding(
            checked="hdf5",
            state="warning",
            found=f"{said}, but its locks hold nobody back on this file system",
            remedy="let no other program write into the cache's files; cxr itself needs no locks of HDF5",
        )


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the lock that HDF5 takes; another handle in one process counts as somebody else."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def space(settings: Settings, sizes: Mapping[str, int]) -> Iterator[Finding]:
    """Free space against what the stores of these backbones will take.

    Args:
        settings: name the cache, the data set and the views.
        sizes: D by backbone, of those that can be made.
    """
    from featcache.store import store_folders
    from featcache.workspace import dataset_folder, image_table

    place = settings.cache.resolve()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if not sizes:
        yield Finding(checked="space", found=f"{in_units(free)} free")
        return
    features = sum(sizes.values())
    an_image = len(sizes) * BESIDE_FEATURES + settings.views * features * FLOAT16
    times = f"{settings.views} view{'s' if settings.views > 1 else ''} × {features:,} features"
    try:
        images = len(image_table(settings))
    except CxrError:
        # None is named, or what is wrong with it is a finding of its own.
        yield Finding(
            checked="space", found=f"{in_units(free)} free; an image will take {in_units(an_image)} ({times})"
        )
        return
    needed = images * an_image
    found = f"{in_units(free)} free, {in_units(needed)} needed ({images:,} images × {times})"
    if needed < free:
        yield Finding(checked="space", found=found)
        return
    held = bool(store_folders(dataset_folder(settings)))
    yield Finding(
        checked="space",
        state="warning" if held else "failed",
        found=found + (", what the cache holds of them already counted in" if held else ""),
        remedy="free some, name another place with --cache DIR, or take fewer --views",
    )


def in_units(size: int) -> str:
    """A number of bytes as people read it: ``1.5 GiB``."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size / 2**10:.1f} KiB"
