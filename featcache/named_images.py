"""What a user means by IMAGE on the command line: a file, or the name of an image of the data set.

The content decides. A file whose bytes are in the store needs no network, wherever it lies and whatever it is called;
a file of the data set that has changed since the extraction is another image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.decode import UnreadableImageError
from featcache.errors import DataError, StoreError, nearest
from featcache.images import ImageTable
from featcache.named_files import read_named
from featcache.settings import Settings
from featcache.store import FeatureStore
from featcache.workspace import compute_of, open_stores


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedImage:
    """One image that was asked for.

    Attributes:
        name: as it was asked for.
        sha256: content hash as hex.
        row: its row in the store's image table; None for an image that the store does not hold.
        data: the file's bytes; None where only the store was looked at.
    """

    name: str
    sha256: str
    row: int | None
    data: bytes | None


def find_images(names: Sequence[str], table: ImageTable, root: Path | None = None) -> list[NamedImage]:
    """Find out which images are meant.

    Args:
        names: paths of files (from here, or below the root), or image ids.
        table: the store's images.
        root: the data set's folder, where it is known.

    Raises:
        UnreadableImageError: a file cannot be read.
        DataError: a name is neither a file nor an image of the table.
    """
    return [_find_image(name, table, root) for name in names]


def _find_image(name: str, table: ImageTable, root: Path | None) -> NamedImage:
    below_root = [] if root is None else [root / name]
    file = next((path for path in [Path(name), *below_root] if path.is_file()), None)
    named = np.flatnonzero(table.image_id == name)
    if file is None:
        if not len(named):
            ids = table.image_id.tolist() if len(table) < 100_000 else []
            raise DataError(
                f"no image {name}: it is neither a file nor an image id of the store{nearest(name, ids, 1)}"
            )
        return NamedImage(name=name, sha256=str(table.sha256[named[0]]), row=int(named[0]), data=None)
    place = file.resolve()
    try:
        data = read_named(file)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{name}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    same = np.flatnonzero(table.sha256 == digest)
    chosen = np.intersect1d(same, named) if np.isin(named, same).any() else same
    if len(chosen) > 1:
        # Of copies under several names, the one that lies where the file lies.
        ends = np.array([place.as_posix().endswith(f"/{table.image_id[row]}") for row in chosen])
        chosen = chosen[ends] if ends.any() else chosen
    return NamedImage(name=name, sha256=digest, row=int(chosen[0]) if len(chosen) else None, data=data)


def features_of(
    images: Sequence[NamedImage], store: FeatureStore, settings: Settings, weights: str | None = None
) -> NDArray[np.float32]:
    """Features of the clean view, [n, D] float32: read where the store has them, else computed by its spec.

    Args:
        images: the images.
        store: the store.
        settings: say what computes, and which weights where none are given.
        weights: see ``reproduction.backbone_of``.

    Raises:
        BackboneError: a network is needed, and it is not the store's or cannot be had here.
        UnreadableImageError: a file is no image.
        StoreError: a part is damaged.
    """
    kept = [number for number, image in enumerate(images) if image.row is not None]
    new = [number for number, image in enumerate(images) if image.row is None]
    found: dict[int, NDArray[np.float32]] = {}
    if kept:
        ids = [str(store.image_table.image_id[images[number].row]) for number in kept]
        found |= dict(zip(kept, store.features(ids), strict=True))
    if new:
        # Here, so that cached images need no torch.
        from featcache.encoding import ImageFile, encode
        from featcache.reproduction import backbone_of

        files = [ImageFile(name=images[number].name, data=images[number].data or b"") for number in new]
        backbone = backbone_of(store, settings, weights)
        found |= dict(zip(new, encode(files, store, backbone, compute_of(settings)), strict=True))
    return np.stack([found[number] for number in range(len(images))])


def only_store(settings: Settings) -> FeatureStore:
    """The one store that is meant: of the backbone that flag or settings name, else the only one of the data set.

    Raises:
        StoreError: there are none, or several fit.
        DataError: no data set is named.
    """
    stores = open_stores(settings, settings.backbone if "backbone" in settings.model_fields_set else ())
    if len(stores) > 1:
        names = ", ".join(store.path.name for store in stores)
        raise StoreError(
            f"{stores[0].path.parent} holds {len(stores)} stores that fit: say --backbone with one of {names}"
        )
    return stores[0]
