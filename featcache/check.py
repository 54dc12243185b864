"""Reading every file of an image table: content hashes, sizes, and what is odd or unreadable."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from featcache.decode import UnreadableImageError, decode, oversize_is_an_error, read_header
from featcache.dicom import begins_as_dicom, is_dicom
from featcache.folders import JPEG_AND_PNG, SPLIT_FOLDERS
from featcache.images import ImageTable
from featcache.quarantine import Quarantined as Quarantined
from featcache.quarantine import in_lines

FILES_A_TASK = 16
"""To hand a small file to another thread costs more than to read it."""

READ_AHEAD = 8
"""Tasks that may be under way: enough to keep the threads at work, and a bound on memory."""

NOT_THE_TABLES = "its SHA-256 is not the one in the table: make the table anew with 'cxr data table'"

_Facts = tuple[str, int, int, str, str, str]
"""SHA-256, width, height, what is odd, why unreadable, and projection of one file."""

MAX_FILE_BYTES = 512 * 2**20
"""No radiograph is larger; reading stops there, so that a hostile file cannot fill the memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """An image table with hashes and sizes, and the images left out of it.

    Attributes:
        table: the readable images.
        quarantined: the others.
        odd: image_id and what is unusual of it (mode, rotation), for images that are used nevertheless.
        projections: image_id → PA, AP, lateral, oblique or not said, of the DICOM files that were opened.
        dicom: whether any image is DICOM: then what decodes it is part of the spec.
    """

    table: ImageTable
    quarantined: tuple[Quarantined, ...]
    odd: tuple[Quarantined, ...]
    projections: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dicom: bool = False


def read_file(root: Path, image_id: str) -> bytes:
    """Read an image's bytes; a link may not lead out of ``root``.

    Raises:
        UnreadableImageError: missing, unreadable, too large, or outside the data folder.
    """
    path = root / image_id
    try:
        if not _lies_within(root, path):
            raise UnreadableImageError("the link leads outside the data folder")
        if not path.is_file():
            raise UnreadableImageError(_why_no_file(path))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UnreadableImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")
            # No more than it has: Python makes room for all that is asked for.
            data = file.read(size)
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror or error}") from error
    if image_id.lower().endswith(JPEG_AND_PNG) and is_dicom(data):
        # Where a table gives the hashes, files of such names are not opened to learn whether DICOM is among them.
        raise UnreadableImageError("a DICOM file by the name of a JPEG or PNG: rename it to .dcm")
    return data


def _why_no_file(path: Path) -> str:
    try:
        path.stat()
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        return "a folder that cannot be listed: Permission denied"
    return "not a plain file"


def _lies_within(root: Path, path: Path) -> bool:
    """Whether a file lies below ``root``, all links followed."""
    if path.is_symlink():
        # Of links that lead in a circle Python's versions make different things in Path.resolve.
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    # Absolute, because what a relative path means changes with the working folder.
    return _folder_lies_within(root.absolute(), path.parent.absolute())


@functools.lru_cache(4096)
def _folder_lies_within(root: Path, folder: Path) -> bool:
    """The same for a folder, whose files are many: to follow the links of a path costs half of decoding its image."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


def forget_folders() -> None:
    """Look at the folders anew: since the last pass one may have become a link that leads outside."""
    _folder_lies_within.cache_clear()


def scan(
    table: ImageTable,
    root: Path,
    *,
    whole: bool = False,
    threads: int = 2,
    on_image: Callable[[int], None] | None = None,
) -> Scan:
    """Hash every image and read its size; those whose hash the table gives are not opened.

    A hash that was given and is wrong is found by ``whole``, and by the extraction when it computes the image.

    Args:
        table: the images to read.
        root: the folder that ``image_id`` is relative to.
        whole: open and decode each image, which also finds the truncated ones, and those of another hash than the
            table's.
        threads: how many files are read at once.
        on_image: called with the number of images done, those with a hash included, after each that was read.
    """
    forget_folders()
    unread = np.arange(len(table)) if whole else np.flatnonzero(table.sha256 == "")
    sha256, width, height = table.sha256.copy(), table.width.copy(), table.height.copy()
    reasons: dict[int, str] = {}
    oddities: dict[int, str] = {}
    projections: dict[str, str] = {}
    done = len(table) - len(unread)
    with oversize_is_an_error(), ThreadPoolExecutor(threads) as pool:
        for row, facts in zip(unread.tolist(), _in_order(pool, root, table.image_id[unread], whole), strict=True):
            digest, width[row], height[row], odd, reason, projection = facts
            if digest and sha256[row] and digest != sha256[row]:
                reason = NOT_THE_TABLES
            sha256[row] = digest
            reasons |= {row: reason} if reason else {}
            oddities |= {row: odd} if odd and not reason else {}
            projections |= {table.image_id[row]: projection} if projection and not reason else {}
            done += 1
            if on_image is not None:
                on_image(done)
    full = dataclasses.replace(table, sha256=sha256, width=width, height=height)
    good = np.ones(len(table), bool)
    good[list(reasons)] = False
    # Of those not opened, that is known of the ones named as JPEG or PNG; one that is DICOM settles it.
    others = (name for name in np.delete(table.image_id, unread) if not name.lower().endswith(JPEG_AND_PNG))
    return Scan(
        table=full.take(good),
        quarantined=_listed(table, reasons),
        odd=_listed(table, oddities),
        projections=projections,
        dicom=bool(projections) or any(begins_as_dicom(root / name) for name in others),
    )


def _in_order(pool: ThreadPoolExecutor, root: Path, image_ids: Iterable[str], whole: bool) -> Iterator[_Facts]:
    """The facts of each file, in order; few are under way, so that the memory does not grow with their number."""
    under_way: deque[Future[list[_Facts]]] = deque()
    names = iter(image_ids)
    while some := list(itertools.islice(names, FILES_A_TASK)):
        under_way.append(pool.submit(lambda some: [_facts(root, image_id, whole) for image_id in some], some))
        if len(under_way) >= READ_AHEAD:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _facts(root: Path, image_id: str, whole: bool) -> _Facts:
    """What is to be known of one file."""
    try:
        data = read_file(root, image_id)
        header = read_header(data)
        if whole:
            decode(data)
    except UnreadableImageError as error:
        return "", 0, 0, "", str(error), ""
    odd = [f"mode {header.mode}"] if header.mode not in ("L", "RGB") else []
    odd += ["rotated by EXIF"] if header.rotated else []
    odd += header.notes
    odd += [f"{header.width}×{header.height} is small"] if min(header.width, header.height) < 64 else []
    return hashlib.sha256(data).hexdigest(), header.width, header.height, ", ".join(odd), "", header.projection


def _listed(table: ImageTable, notes: dict[int, str]) -> tuple[Quarantined, ...]:
    return tuple(Quarantined(image_id=table.image_id[row], reason=note) for row, note in notes.items())


def summarise(scanned: Scan) -> dict[str, Any]:
    """What ``cxr data check`` tells, as JSON-ready values.

    ``class_weights`` are n/(K·n_k) of the train folder. ``straddling`` are patients with images in more than
    one series of folders; ``coincident_names`` counts patient names that train and test use for different
    children.
    """
    table = scanned.table
    splits = [name for name in (*SPLIT_FOLDERS, "") if (table.split == name).any()]
    folders: dict[str, set[str]] = defaultdict(set)
    for patient, folder in zip(table.patient_id, table.split, strict=True):
        folders[patient].add(folder)
    names: dict[str, set[str]] = defaultdict(set)
    for patient in folders:
        series, _, name = patient.partition("/")
        names[name].add(series)
    fit = table.counts("train") if "train" in splits else table.counts("")
    present = [count for count in fit if count]
    groups = duplicates(table)
    folder_of = dict(zip(table.image_id, table.split, strict=True))
    return {
        "images": len(table),
        "classes": list(table.classes),
        "counts": {
            split or "(no split)": dict(zip(table.classes, table.counts(split), strict=True)) for split in splits
        },
        "patients": {split or "(no split)": len(set(table.patient_id[table.split == split])) for split in splits},
        "straddling": sorted(patient for patient, seen in folders.items() if len(seen) > 1),
        "coincident_names": sum({"train", "test"} <= series for series in names.values()),
        "duplicate_groups": len(groups),
        "duplicates": groups,
        "duplicates_across_splits": sum(len({folder_of[name] for name in group}) > 1 for group in groups),
        "sizes": _sizes(table),
        "projections": dict(Counter(scanned.projections.values()).most_common()),
        "quarantined": [dataclasses.asdict(row) for row in scanned.quarantined],
        "odd": [dataclasses.asdict(row) for row in scanned.odd],
        "class_weights": {
            name: sum(present) / (len(present) * count) for name, count in zip(table.classes, fit, strict=True) if count
        },
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary in words, a line each."""
    classes = summary["classes"]
    table = [["split", *classes, "patients"]]
    table += [
        [split, *map(str, counts.values()), str(summary["patients"][split])]
        for split, counts in summary["counts"].items()
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    size = summary["sizes"]
    if size:
        spread = "all" if size["different"] == 1 else f"{size['different']} sizes, most often"
        lines.append(f"size: {spread} {size['commonest'][0]}×{size['commonest'][1]} pixels")
    if summary["projections"]:
        lines.append(
            "projections of the DICOM files: " + ", ".join(f"{n} {p}" for p, n in summary["projections"].items())
        )
    weights = ", ".join(f"{name} {weight:.4f}" for name, weight in summary["class_weights"].items())
    lines.append(f"class weights of train: {weights}")
    straddling = summary["straddling"]
    such = f" ({', '.join(straddling[:3])}…)" if straddling else ""
    lines.append(f"patients in more than one split: {len(straddling)}{such}")
    if summary["coincident_names"]:
        lines.append(
            f"patient names that train and test both use: {summary['coincident_names']} "
            "(each numbers its own patients; counted as different ones)"
        )
    across = summary["duplicates_across_splits"]
    lines.append(f"groups of byte-identical images: {summary['duplicate_groups']} ({across} across splits)")
    for name in ("odd", "quarantined"):
        rows = summary[name]
        title = {"odd": "odd, but used", "quarantined": "unreadable, left out"}[name]
        lines.append(f"{title}: {len(rows)}")
        lines += [f"  {line}" for line in in_lines((Quarantined(**row) for row in rows), 20)]
    return lines


def duplicates(table: ImageTable) -> list[list[str]]:
    """Groups of byte-identical images, as lists of image_id in table order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for image_id, digest in zip(table.image_id, table.sha256, strict=True):
        groups[digest].append(image_id)
    return [group for group in groups.values() if len(group) > 1]


def _sizes(table: ImageTable) -> dict[str, Any]:
    """Median, least and most of width and height, and the commonest size."""
    if not len(table):
        return {}
    pairs = Counter(zip(table.width.tolist(), table.height.tolist(), strict=True))
    return {
        "width": [int(table.width.min()), int(np.median(table.width)), int(table.width.max())],
        "height": [int(table.height.min()), int(np.median(table.height)), int(table.height.max())],
        "commonest": list(pairs.most_common(1)[0][0]),
        "different": len(pairs),
    }
