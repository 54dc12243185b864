"""From settings to what the commands work on: the data set, its image table, its backbones and stores."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.check import Quarantined, Scan, scan
from featcache.errors import BackboneError, DataError, SettingsError
from featcache.images import ImageTable, discover, read_csv, strings
from featcache.index import PARTS_NAME
from featcache.joined import FeatureSource, stores_of
from featcache.naming import every_store, named_sources
from featcache.settings import Settings, usable_cores, weights_of
from featcache.sharing import Share, parse_share, share_from_environment
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.engines import Engine
    from featcache.recompute import Recomputed
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


def films_folder(settings: Settings) -> Path | None:
    """The folder that image paths are relative to, if a data set is named."""
    return None if settings.data is None and settings.table is None else data_root(settings)


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


def scan_images(
    settings: Settings,
    table: ImageTable | None = None,
    *,
    whole: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Scan:
    """Hash the images of the data set that their table gives no hash of; see ``check.scan``.

    Args:
        settings: name the data set.
        table: its image table, where it has been read already.
        whole: decode each image too.
        on_image: told images done and in all.
    """
    return _scanned(image_table(settings) if table is None else table, settings, whole=whole, on_image=on_image)


def hashed_table(
    settings: Settings, *, on_image: Callable[[int, int], None] | None = None
) -> tuple[ImageTable, tuple[Quarantined, ...]]:
    """Every image of the data set, each file hashed anew, and those that cannot be read; these have no hash."""
    table = image_table(settings)
    none = strings([""] * len(table))
    scanned = _scanned(dataclasses.replace(table, sha256=none), settings, on_image=on_image)
    lost = {row.image_id for row in scanned.quarantined}
    read = np.array([image_id not in lost for image_id in table.image_id], bool)
    sha256, width, height = none, np.zeros(len(table), np.int32), np.zeros(len(table), np.int32)
    sha256[read], width[read], height[read] = scanned.table.sha256, scanned.table.width, scanned.table.height
    return dataclasses.replace(table, sha256=sha256, width=width, height=height), scanned.quarantined


def _scanned(
    table: ImageTable,
    settings: Settings,
    *,
    whole: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Scan:
    tell = None if on_image is None else lambda done: on_image(done, len(table))
    threads = settings.threads or max(2, usable_cores())
    return scan(table, data_root(settings), whole=whole, threads=threads, on_image=tell)


def load_backbones(settings: Settings) -> list[Backbone]:
    """The backbones with their weights, in the order asked for.

    Raises:
        SettingsError: another number of weights than of backbones.
        BackboneError: see ``backbones.load_backbone``.
    """
    from featcache.backbones import load_backbone

    pairs = zip(settings.backbone, weights_of(settings), strict=True)
    return [load_backbone(name, None if file == "pretrained" else file, settings.image_size) for name, file in pairs]


def recompute_stores(
    settings: Settings, backbones: Sequence[str], count: int, on_row: Callable[[int, int], None]
) -> list[Recomputed]:
    """Compute random rows of the data set's stores again; see ``recompute.recompute``.

    Args:
        settings: name data set, cache, and the weights of ``backbones``.
        backbones: only the stores of these; all when empty.
        count: rows a store.
        on_row: told of rows done and in all.

    A store whose network, weights or decoder are not to be had here is among the results, with the reason.

    Raises:
        CxrError: no data set or no store, or a part is damaged.
    """
    from featcache.recompute import Recomputed, recompute
    from featcache.reproduction import backbone_of

    found = []
    for number, store in enumerate(stores := open_stores(settings, backbones)):
        tell = functools.partial(_tell_of_rows, on_row, number, len(stores))
        try:
            backbone, how = backbone_of(store, settings), compute_of(settings)
            again = recompute(store, data_root(settings), backbone, count, compute=how, on_row=tell)
        except BackboneError as error:
            # The other stores are looked at all the same.
            again = Recomputed(
                store=str(store.path), rows=0, equal=0, least_cosine=1.0, wrong=(), unreadable=(), refused=str(error)
            )
        found.append(again)
    return found


def _tell_of_rows(on_row: Callable[[int, int], None], stores_done: int, stores: int, done: int, total: int) -> None:
    on_row(stores_done * total + done, stores * total)


def compute_of(settings: Settings) -> Compute:
    """How to compute, as the settings say; under torchrun on the GPU that is this process's.

    Raises:
        SettingsError: all devices are meant and there is none; or Ray's GPUs are, without a precision.
    """
    from featcache.runtime import Compute, cuda_devices

    device = settings.device
    if settings.devices:
        device = settings.devices[0]
        if device == "all" and not cuda_devices():
            raise SettingsError("--devices is all, and this machine has no CUDA device: leave it out")
        device = "cuda" if device == "all" else device
    elif device == "auto" and os.environ.get("LOCAL_RANK", "").isdecimal() and cuda_devices():
        # Some launchers show each rank its own GPU alone.
        device = cuda_devices()[int(os.environ["LOCAL_RANK"]) % len(cuda_devices())]
    elif settings.engine == "ray" and device == "auto":
        # The nodes' devices count, and not those of the machine that hands out the work.
        device = "cuda" if settings.ray_gpus else "cpu"
    if settings.engine == "ray" and settings.ray_gpus and settings.precision == "auto":
        raise SettingsError(
            "the GPUs of a cluster cannot be asked from here: say --precision bfloat16 (from compute capability 8.0 "
            "on), float16 or float32"
        )
    return Compute(
        device=device,
        runtime=settings.runtime,
        precision=settings.precision,
        batch_size=settings.extract_batch_size,
        elsewhere=settings.engine == "ray",
        **({"threads": settings.threads} if settings.threads else {}),
    )


def engine_of(settings: Settings, backbones: Sequence[Backbone]) -> Engine:
    """Where parts are made, as the settings say.

    Raises:
        EngineError: Ray is not installed or not there.
        BackboneError: there is no such device.
    """
    from featcache.engines import InProcess, OnDevices
    from featcache.runtime import choose_device, cuda_devices

    if settings.engine == "ray":
        from featcache.ray_engine import OnRay

        return OnRay(threads=settings.threads or 2, gpus=settings.ray_gpus)
    if settings.devices:
        named = settings.devices if settings.devices != ["all"] else cuda_devices()
        return OnDevices([choose_device(name) for name in named])
    return InProcess(backbones)


def share_of(settings: Settings) -> tuple[Share, str]:
    """This process's share of the extraction, and a note on where that was found out unasked.

    Raises:
        SettingsError: the variables fit no share.
    """
    if settings.worker is not None:
        return parse_share(settings.worker), ""
    share, variable = share_from_environment(os.environ)
    return share, f"worker {share}, by {variable}: say --worker 1/1 to do all of it here" if share.count > 1 else ""


def open_stores(settings: Settings, backbones: Sequence[str] = ()) -> list[FeatureStore]:
    """The stores of the data set: of the named backbones, or all of them.

    Args:
        settings: name the data set and the cache.
        backbones: names as the stores keep them, or folder names of stores.

    Raises:
        DataError: no data set is named.
        StoreError: there are none, one cannot be opened, or a backbone has none.
    """
    stores = [store for source in open_sources(settings, backbones) for store in stores_of(source)]
    return list({store.path: store for store in stores}.values())


def open_sources(settings: Settings, names: Sequence[str] = ()) -> list[FeatureSource]:
    """The same, for heads: where names are joined by ``+``, their stores are read as one.

    Raises:
        DataError: no data set is named.
        StoreError: as ``open_stores``; or stores cannot be joined.
    """
    dataset = dataset_folder(settings)
    if not names:
        return [*every_store(dataset)]
    found = [source for sources in named_sources(dataset, names).values() for source in sources]
    return list({tuple(store.path for store in stores_of(source)): source for source in found}.values())


def present_table(settings: Settings, stores: Sequence[FeatureSource]) -> tuple[ImageTable | None, str]:
    """The data set's images as they are now, and what the user should know of them.

    A fit uses no row whose image has changed, so the files are hashed again, unless a table gives their hashes; where
    they do not lie here, the image table kept in the store stands for them.

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
