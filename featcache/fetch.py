"""Fetching Kermany's radiographs: from Kaggle, or out of a zip that was downloaded by hand.

Nothing that a zip says is trusted: of a path only split, class and file name are used, and they must be plain; links,
encrypted files and files that are too many or too large are refused; and the folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from featcache import atomic
from featcache.check import scan
from featcache.errors import DataError
from featcache.folders import JPEG_AND_PNG, SPLIT_FOLDERS
from featcache.images import ImageTable, discover

KAGGLE_HANDLE = "paultimothymooney/chest-xray-pneumonia"

BY_HAND = (
    "download 'Chest X-Ray Images (Pneumonia)' from Kaggle, or ChestXRay2017.zip of 'Labeled Optical Coherence "
    "Tomography (OCT) and Chest X-Ray Images for Classification' (Mendeley Data 10.17632/rscbjbr9sj) with a browser, "
    "then run 'cxr data fetch kermany --zip FILE --to DIR'; or unpack it yourself so that DIR/train/NORMAL, "
    "DIR/train/PNEUMONIA, DIR/test/NORMAL and DIR/test/PNEUMONIA hold the images"
)

MAX_FILES, MAX_FILE_BYTES, MAX_BYTES = 20_000, 64 * 2**20, 8 * 2**30
"""More and larger than the set's 5,856 films of some 200 KiB; a zip that unpacks to more is none of it."""

Counts = Mapping[str, Mapping[str, int]]
"""Images a class in each split folder."""

PUBLISHED: dict[str, Counts] = {
    "Kaggle": {
        "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
        "val": {"NORMAL": 8, "PNEUMONIA": 8},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    },
    "Mendeley": {
        "train": {"NORMAL": 1349, "PNEUMONIA": 3883},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    },
}
"""The set as it is published: Kaggle's val folder was cut from train."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """What was fetched; ``cxr data fetch --json`` prints it.

    Attributes:
        folder: where it lies.
        layout: whose folders these are, Kaggle's or Mendeley's.
        images: images in all.
        counts: images a class in each split folder.
        resumed: images that an earlier try had left.
        sha256: of the lines that ``sha256sum`` writes of the images, sorted by path; it tells two copies apart. That of
            the published set is not known to us, so it is compared with nothing.
    """

    folder: str
    layout: str
    images: int
    counts: Counts
    resumed: int
    sha256: str

    def in_words(self) -> list[str]:
        """The same, a line each."""
        cells = [f"{name} {sum(of.values())}" for name, of in self.counts.items()]
        lines = [f"{self.images} images ({', '.join(cells)}; {self.layout}'s folders) in {self.folder}, each decoded"]
        lines += [f"{self.resumed} of them lay there from an earlier try"] if self.resumed else []
        return [*lines, f"SHA-256 over names and bytes, to compare with another copy: {self.sha256}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    """An image in a zip or a folder: its path, its size in bytes, its CRC-32, and how to read it."""

    path: PurePosixPath
    size: int
    crc: Callable[[], int]
    read: Callable[[], bytes]


def fetch_kermany(
    to: Path,
    zip_file: Path | None = None,
    *,
    published: Mapping[str, Counts] | None = None,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> Fetched:
    """Place Kermany's radiographs in a folder; where they lie already, look at them.

    What is published is known by its counts; every image is decoded before the folder appears. An interrupted try is
    taken up: what it had unpacked is compared, and kept where it is the same.

    Args:
        to: the folder.
        zip_file: the set as a zip, from Mendeley or Kaggle; downloaded from Kaggle where it is not given.
        published: the counts to be met, by whose they are; the published ones where None.
        on_image: told of images unpacked or decoded, and how many there are of both.

    Raises:
        DataError: it cannot be downloaded; the zip is damaged, unsafe, or of something else; or ``to`` is.
        WriteError: the disk is full or the place cannot be written.
    """
    published = PUBLISHED if published is None else published
    if to.exists():
        try:
            return _examined(to, to, published, 0, on_image)
        except DataError as error:
            raise DataError(f"{to} exists and is not the whole set: {error}; name another folder with --to") from error
    with contextlib.ExitStack() as stack:
        source = _downloaded() if zip_file is None else zip_file
        members = _in_zip(stack.enter_context(_opened(source))) if zip_file else _in_folder(source)
        try:
            images = _images(members, published)
        except DataError as error:
            raise DataError(f"{source}: {error}; {BY_HAND}") from error
        folder = stack.enter_context(atomic.new_folder(to, resumed=True))
        kept = _place(folder, images, on_image)
        return _examined(folder, to, published, kept, on_image)


def _downloaded() -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise DataError(f"to download from Kaggle, pip install 'cxr[kaggle]'; without it, {BY_HAND}") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except Exception as error:
        raise DataError(f"cannot download from Kaggle ({type(error).__name__}): {BY_HAND}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip; what is wrong with it, whenever that is found, is said with its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}; {BY_HAND}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or no zip: download it again") from error


def _in_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.is_dir():
            continue
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or any(mark in info.filename for mark in ("\\", ":", "\0")):
            raise DataError("it holds files that lead out of it: it is not the published set")
        if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 1:
            raise DataError("it holds links or encrypted files: it is not the published set")
        yield _Member(
            path=name,
            size=info.file_size,
            crc=lambda info=info: info.CRC,  # type: ignore[misc]
            read=lambda info=info: archive.read(info),  # type: ignore[misc]
        )


def _in_folder(folder: Path) -> Iterator[_Member]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield _Member(
                path=PurePosixPath(path.relative_to(folder).as_posix()),
                size=path.stat().st_size,
                crc=lambda path=path: zlib.crc32(path.read_bytes()),  # type: ignore[misc]
                read=path.read_bytes,
            )


def _images(members: Iterator[_Member], published: Mapping[str, Counts]) -> dict[str, _Member]:
    """``train/NORMAL/name.jpeg`` → image: of the outermost folder that holds split folders; those within are copies.

    Raises:
        DataError: not the images of a published set, or more than it can have.
    """
    found: dict[tuple[str, ...], dict[str, _Member]] = {}
    for member in members:
        *outer, split, label, name = ("", "", *member.path.parts)[-max(3, len(member.path.parts)) :]
        hidden = any(part.startswith((".", "__MACOSX")) for part in member.path.parts)
        if hidden or split not in SPLIT_FOLDERS or not name.lower().endswith(JPEG_AND_PNG):
            continue
        here = found.setdefault(tuple(outer), {})
        here[f"{split}/{label}/{name}"] = member
        if len(here) > MAX_FILES or member.size > MAX_FILE_BYTES:
            raise DataError("it holds more or larger files than the published set")
    if not found:
        raise DataError("it holds no folder train with images: it is not the published set")
    images = found[min(found, key=lambda outer: (len(outer), outer))]
    if sum(member.size for member in images.values()) > MAX_BYTES:
        raise DataError("it holds more or larger files than the published set")
    _layout_of(_counts(images), published)
    return images


def _counts(names: Sequence[str] | Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Images a class in each split folder, of names like ``train/NORMAL/name.jpeg``."""
    counted = Counter(tuple(name.split("/")[:2]) for name in names)
    splits = [split for split in SPLIT_FOLDERS if any(split == one for one, _ in counted)]
    return {split: {label: n for (one, label), n in sorted(counted.items()) if one == split} for split in splits}


def _layout_of(counts: Counts, published: Mapping[str, Counts]) -> str:
    for name, wanted in published.items():
        if counts == wanted:
            return name
    choices = "; or ".join(f"{_in_words(of)} ({name})" for name, of in published.items())
    raise DataError(f"it holds {_in_words(counts)}; the published set has {choices}")


def _in_words(counts: Counts) -> str:
    return ", ".join(f"{split} {'/'.join(map(str, of.values()))}" for split, of in counts.items())


def _place(folder: Path, images: Mapping[str, _Member], on_image: Callable[[int, int], None]) -> int:
    """Write the images into a folder; returns how many of them lay there already. What else lies there goes."""
    for path in list(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in images:
            path.unlink()
    kept = 0
    for number, (name, member) in enumerate(images.items(), 1):
        place = folder / name
        if place.is_file() and not place.is_symlink() and _same(place, member):
            kept += 1
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(member.read())
        on_image(number, 2 * len(images))
    return kept


def _same(place: Path, member: _Member) -> bool:
    return place.stat().st_size == member.size and zlib.crc32(place.read_bytes()) == member.crc()


def _examined(
    folder: Path, to: Path, published: Mapping[str, Counts], kept: int, on_image: Callable[[int, int], None]
) -> Fetched:
    """Count and decode what lies in a folder that is, or becomes, ``to``.

    Raises:
        DataError: other counts than the published ones, or an image that does not decode.
    """
    table: ImageTable = discover(folder)
    counts = _counts(table.image_id.tolist())
    layout = _layout_of(counts, published)
    scanned = scan(table, folder, whole=True, on_image=lambda done: on_image(len(table) + done, 2 * len(table)))
    if scanned.quarantined:
        first = scanned.quarantined[0]
        shutil.rmtree(folder, ignore_errors=True) if folder != to else None
        raise DataError(f"{first.image_id}: {first.reason} ({len(scanned.quarantined)} such): download it again")
    lines = [f"{digest}  {name}\n" for digest, name in zip(scanned.table.sha256, scanned.table.image_id, strict=True)]
    return Fetched(
        folder=str(to),
        layout=layout,
        images=len(table),
        counts=counts,
        resumed=kept,
        sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
    )
