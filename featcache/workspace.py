"""From settings to what the commands work on: the data set, its image table, its backbones and stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.check import Scan, scan
from featcache.errors import DataError, SettingsError, StoreError, nearest
from featcache.images import ImageTable, discover, read_csv
from featcache.index import INDEX_NAME, PARTS_NAME
from featcache.settings import Settings
from featcache.store import FeatureStore, open_store, store_folders

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.runtime import Compute


def data_root(settings: Settings) -> Path:
    """The folder that image paths are relative to.

    Raises:
        DataError: no data set is named.
    """
    if settings.data is not None:
        return settings.data
    if settings.table is not None:
        return settings.table.parent
    raise DataError("no data set: name its folder with --data DIR, in CXR_DATA, or in cxr.toml ('cxr init --data DIR')")


def dataset_folder(settings: Settings) -> Path:
    """``cache/<dataset>``, named after the data folder; the only one in the cache where none is named.

    Raises:
        DataError: none is named, and the cache does not hold exactly one.
    """
    if settings.data is not None or settings.table is not None:
        return settings.cache / data_root(settings).resolve().name
    datasets = sorted({parts.parent.parent for parts in settings.cache.glob(f"*/*/{PARTS_NAME}")})
    if len(datasets) == 1:
        return datasets[0]
    held = f"; {settings.cache} holds {', '.join(path.name for path in datasets)}" if datasets else ""
    raise DataError(f"no data set: name its folder with --data DIR, in CXR_DATA, or in cxr.toml{held}")


def image_table(settings: Settings) -> ImageTable:
    """The images as folder or table name them, unread.

    Raises:
        DataError: no data set, or no images in it.
    """
    return discover(data_root(settings)) if settings.table is None else read_csv(settings.table)


def scan_images(settings: Settings, *, whole: bool = False, on_image: Callable[[int, int], None] | None = None) -> Scan:
    """Hash the images of the data set; see ``check.scan``. ``on_image`` is told images done and in all."""
    table = image_table(settings)
    tell = None if on_image is None else lambda done: on_image(done, len(table))
    return scan(table, data_root(settings), whole=whole, on_image=tell)


def load_backbones(settings: Settings) -> list[Backbone]:
    """The backbones with their weights, in the order asked for.

    Raises:
        SettingsError: another number of weights than of backbones.
        BackboneError: see ``backbones.load_backbone``.
    """
    from featcache.backbones import load_backbone

    weights = settings.weights or ["pretrained"]
    if len(weights) == 1 and (len(settings.backbone) == 1 or weights[0] in ("random", "pretrained")):
        weights = weights * len(settings.backbone)
    if len(weights) != len(settings.backbone):
        raise SettingsError(
            f"{len(settings.backbone)} backbones but {len(weights)} weights: give one --weights for each --backbone in "
            "the same order (a file, 'random' or 'pretrained')"
        )
    pairs = zip(settings.backbone, weights, strict=True)
    return [load_backbone(name, None if file == "pretrained" else file, settings.image_size) for name, file in pairs]


def compute_of(settings: Settings) -> Compute:
    """How to compute, as the settings say."""
    from featcache.runtime import Compute

    return Compute(
        device=settings.device,
        runtime=settings.runtime,
        precision=settings.precision,
        batch_size=settings.extract_batch_size,
    )


def open_stores(settings: Settings, backbones: Sequence[str] = ()) -> list[FeatureStore]:
    """The stores of the data set: of the named backbones, or all of them.

    Args:
        settings: name the data set and the cache.
        backbones: names as the stores keep them, or folder names of stores.

    Raises:
        DataError: no data set is named.
        StoreError: there are none, one cannot be opened, or a backbone has none.
    """
    dataset = dataset_folder(settings)
    folders = store_folders(dataset)
    if not folders:
        raise StoreError(f"no feature stores in {dataset}: run 'cxr extract --backbone NAME' first")
    if not backbones:
        # An extraction under way or stopped has no index yet; it is named when it is asked for.
        finished = [folder for folder in folders if (folder / INDEX_NAME).is_file()]
        return [open_store(folder) for folder in finished or folders]
    stores: dict[Path, FeatureStore] = {}
    for name in backbones:
        matching = [folder for folder in folders if name in _names_of(folder)]
        if not matching:
            known = sorted({_backbone_of(folder) for folder in folders})
            raise StoreError(
                f"no features of {name!r} in {dataset}{nearest(name, known, 1)}; run 'cxr extract --backbone {name}' "
                f"first (there are: {', '.join(known)})"
            )
        stores |= {folder: open_store(folder) for folder in matching}
    return list(stores.values())


def present_table(settings: Settings, stores: Sequence[FeatureStore]) -> tuple[ImageTable | None, str]:
    """The data set's images as they are now, and what the user should know of them.

    A fit uses no row whose image has changed, so the files are hashed again; where they do not lie here, the
    image table kept in the store stands for them.

    Raises:
        DataError: the folder is there and holds no images.
    """
    if not stores or (settings.table is None and (settings.data is None or not settings.data.is_dir())):
        return None, f"the images are not here: using the image table kept in {stores[0].path}" if stores else ""
    scanned = scan_images(settings)
    known = {row.image_id for store in stores for row in store.quarantined} | {
        row.image_id for row in scanned.quarantined
    }
    table = scanned.table.take(np.array([name not in known for name in scanned.table.image_id], bool))
    return table, f"{len(known)} unreadable images are left out; 'cxr data check' lists them" if known else ""


def _names_of(folder: Path) -> tuple[str, str, str]:
    """What a store may be called: its folder, its backbone, and the backbone without its options."""
    backbone = _backbone_of(folder)
    return folder.name, backbone, backbone.partition("@")[0]


def _backbone_of(folder: Path) -> str:
    """The backbone's name of a store's folder, without opening parts."""
    try:
        return open_store(folder).spec.backbone
    except StoreError:
        return folder.name.rpartition("-")[0]
