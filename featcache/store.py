"""The feature store as its readers see it: ``open_store(path).features(image_ids)``.

Nothing here needs torch. Parts are read whole, in order, and each one's checksum is compared as it is read.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.atomic import TEMPORARY_PREFIX
from featcache.check import Quarantined
from featcache.columns import EncodedTable
from featcache.errors import StoreError
from featcache.images import ImageTable
from featcache.index import INDEX_NAME, PARTS_NAME, read_index
from featcache.parts import FeatureArray, PartHeader, read_features, read_header
from featcache.reading import FeatureReader
from featcache.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """An opened store; it holds no open file.

    Attributes:
        path: the store's folder.
        spec: what the features were made with.
        encoded: the images, N rows, not decoded yet.
        quarantined: images of the data set that could not be used.
        part_names: [P] file names below ``parts``.
        part: [N, V] int32, the part that holds an image's view; -1 where it is missing.
    """

    path: Path
    spec: FeatureSpec
    encoded: EncodedTable = field(repr=False)
    quarantined: tuple[Quarantined, ...]
    part_names: tuple[str, ...] = field(repr=False)
    part: NDArray[np.int32] = field(repr=False)

    @property
    def backbone(self) -> str:
        """The frozen network's name."""
        return self.spec.backbone

    @property
    def fingerprint(self) -> str:
        """The spec's."""
        return self.spec.fingerprint

    @property
    def image_table(self) -> ImageTable:
        """The images, N rows; decoded when first asked for.

        Raises:
            StoreError: some text is no UTF-8.
        """
        return self.encoded.decoded

    @property
    def view_count(self) -> int:
        """Views that every image has, counted from view 0."""
        complete: NDArray[np.bool_] = np.all(self.part >= 0, axis=0)
        return int(np.argmin(complete)) if not complete.all() else len(complete)

    def features(self, image_ids: Sequence[str] | None = None, view: int = 0) -> NDArray[np.float32]:
        """Features of one view, [N, D] float32, in the order asked for (all images when None).

        Raises:
            StoreError: an image or view is not in the store, or a part is damaged.
        """
        return self.reader(self.rows(image_ids), [view]).read_all()[:, 0].astype(np.float32)

    def views(self, image_ids: Sequence[str] | None = None, count: int | None = None) -> FeatureArray:
        """Features of the first ``count`` views (all that every image has when None), [N, V, D] as stored.

        Raises:
            StoreError: as ``features``.
        """
        return self.reader(self.rows(image_ids), range(self.view_count if count is None else count)).read_all()

    def rows(self, image_ids: Sequence[str] | NDArray[np.object_] | None = None) -> NDArray[np.int64]:
        """The row of each image in the image table (all when None), [n].

        Raises:
            StoreError: an image is not in the store.
        """
        if image_ids is None:
            return np.arange(len(self.part))
        known, wanted = self.image_table.image_id, np.asarray(image_ids, object)
        if np.array_equal(known, wanted):
            return np.arange(len(known))
        row_of = dict(zip(known.tolist(), range(len(known)), strict=True))
        rows = np.fromiter(map(row_of.get, wanted.tolist(), itertools.repeat(-1)), np.int64, len(wanted))
        if missing := int(np.count_nonzero(rows < 0)):
            raise self.lacking(missing, len(rows), str(wanted[np.argmax(rows < 0)]))
        return rows

    def reader(self, rows: NDArray[np.int64], views: Sequence[int]) -> FeatureReader:
        """A reader of features [N, V, D], for those who do not want all of them at once.

        Args:
            rows: which images, by their row in the image table, in this order.
            views: view numbers, which follow one another.

        Raises:
            StoreError: as ``features``, but for damaged parts, which are found when they are read.
        """
        if not len(rows) or not views or min(views) < 0 or list(views) != list(range(views[0], views[-1] + 1)):
            raise ValueError(
                f"wanted one image or more and views from 0 on that follow one another, got {len(rows)} images and "
                f"views {list(views)}"
            )
        if max(views) >= self.part.shape[1]:
            raise StoreError(
                f"{self.path} has {self.part.shape[1]} views an image, wanted {max(views) + 1}: run "
                f"'cxr extract --backbone {self.spec.backbone} --views {max(views) + 1}', which makes only those"
            )
        part = self.part[rows, views[0] : views[-1] + 1]
        lacking = (part < 0).any(axis=1)
        if lacking.any():
            raise self.lacking(int(lacking.sum()), len(rows), str(self.image_table.image_id[rows[np.argmax(lacking)]]))
        image_sha256 = self.encoded.text["image_sha256"].astype("S64", copy=False)
        return FeatureReader(self.path, self.spec, self.part_names, part, image_sha256, rows, views[0])

    def lacking(self, missing: int, wanted: int, example: str, against: str = "") -> StoreError:
        """The error that says how many images the store has no features for, and the way out."""
        return StoreError(
            f"{self.spec.backbone} has no features for {missing} of {wanted} images in {self.path} (such as "
            f"{example}){against}: run 'cxr extract --backbone {self.spec.backbone}' again"
        )


def open_store(path: str | Path) -> FeatureStore:
    """Open a store's folder, or its ``features.h5``.

    Raises:
        StoreError: no store there, an unfinished or a damaged one.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == INDEX_NAME else folder
    index = read_index(folder)
    return FeatureStore(
        path=folder,
        spec=index.spec,
        encoded=index.encoded,
        quarantined=index.quarantined,
        part_names=index.part_names,
        part=index.part,
    )


def store_folders(dataset: Path) -> list[Path]:
    """Folders of stores below ``cache/<dataset>``, sorted; unfinished ones too."""
    if not dataset.is_dir():
        return []
    return sorted(path.parent for path in dataset.glob(f"*/{PARTS_NAME}") if path.is_dir())


def dataset_folders(cache: Path, dataset: str | None = None) -> list[Path]:
    """Folders of all data sets below ``cache``, sorted, or of the one named.

    Raises:
        StoreError: there is no such cache or data set; a mistyped name must not look like an empty cache.
    """
    if not cache.is_dir():
        raise StoreError(f"no cache in {cache}: name it with --cache DIR, or run 'cxr extract' first")
    if dataset is None:
        return sorted(cache.glob("*"))
    if not (cache / dataset).is_dir():
        held = ", ".join(path.name for path in sorted(cache.glob("*")) if path.is_dir()) or "nothing"
        raise StoreError(f"{cache} has no stores of {dataset}; it holds {held}")
    return [cache / dataset]


def part_headers(store: Path, spec: FeatureSpec | None = None) -> Iterator[PartHeader | tuple[Path, StoreError]]:
    """The header of each part, sorted by name; a part that cannot be used comes as its path and error."""
    for path in sorted((store / PARTS_NAME).glob("part-*.h5")):
        try:
            yield read_header(path, spec)
        except StoreError as error:
            yield path, error


def verify_store(store: Path, *, remove_damaged: bool = False) -> list[str]:
    """Read every byte of a store and return what is wrong, a line each; empty when all is well.

    Args:
        store: the store's folder.
        remove_damaged: delete the parts (or the index) that are named, so that ``extract`` makes them again, and what
            killed processes left half-written.

    Raises:
        StoreError: something that is damaged cannot be deleted.
    """
    problems: list[str] = []
    spec: FeatureSpec | None = None
    try:
        index = read_index(store)
        spec, _ = index.spec, index.image_table
        for name in index.part_names:
            if not (store / PARTS_NAME / name).is_file():
                problems.append(f"{store / PARTS_NAME / name} is missing: run 'cxr extract' again")
    except StoreError as error:
        if remove_damaged and (store / INDEX_NAME).exists():
            _remove(store / INDEX_NAME)
            problems.append(f"removed {store / INDEX_NAME}, which was damaged: run 'cxr extract' again to rebuild it")
        else:
            problems.append(str(error))
    if remove_damaged:
        # What a killed process left half-written; no reader looks at it.
        for path in [*store.glob(f"{TEMPORARY_PREFIX}*"), *(store / PARTS_NAME).glob(f"{TEMPORARY_PREFIX}*")]:
            _remove(path)
    for path in sorted((store / PARTS_NAME).glob("part-*.h5")):
        try:
            read_features(read_header(path, spec))
        except StoreError as error:
            if remove_damaged:
                _remove(path)
                problems.append(f"removed {path}, which was damaged: run 'cxr extract' again to make it anew")
            else:
                problems.append(str(error))
    return problems


def _remove(path: Path) -> None:
    """Delete what stands where a file of ours should.

    Raises:
        StoreError: it cannot be deleted.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be removed: {error.strerror or error}") from error


def remove_store(store: Path, cache: Path) -> int:
    """Delete a store's folder and return the bytes freed.

    Raises:
        StoreError: the folder is no store, does not lie below ``cache``, or cannot be removed.
    """
    if not store.resolve().is_relative_to(cache.resolve()) or not (store / PARTS_NAME).is_dir():
        raise StoreError(f"{store} is no feature store below {cache}; 'cxr cache list' shows those that are")
    size = store_bytes(store)
    try:
        shutil.rmtree(store)
    except OSError as error:
        raise StoreError(f"{store} cannot be removed: {error.strerror or error}") from error
    return size


def describe_stores(cache: Path, dataset: str | None = None) -> list[dict[str, Any]]:
    """What ``cxr cache list`` tells of each store below ``cache``, JSON-ready."""
    rows: list[dict[str, Any]] = []
    for folder in dataset_folders(cache, dataset):
        for store in store_folders(folder):
            row: dict[str, Any] = {"store": str(store), "bytes": store_bytes(store), "images": 0, "views": 0}
            try:
                opened = open_store(store)
            except StoreError as error:
                rows.append({**row, "state": str(error)})
                continue
            row |= {"images": len(opened.part), "views": opened.view_count}
            row |= {"backbone": opened.spec.backbone, "fingerprint": opened.spec.fingerprint}
            lost = sum(not (store / PARTS_NAME / name).is_file() for name in opened.part_names)
            state = f"{lost} of {len(opened.part_names)} parts missing: run 'cxr extract' again" if lost else "complete"
            rows.append({**row, "state": state, "quarantined": len(opened.quarantined)})
    return rows


def store_bytes(store: Path) -> int:
    """Bytes that a store's files take."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file() and not path.is_symlink())
