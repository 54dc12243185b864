"""The stores of a data set by what a user calls them: a backbone, a folder, or several joined by ``+``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.errors import StoreError, nearest
from featcache.index import INDEX_NAME
from featcache.joined import JOINT, FeatureSource, join
from featcache.store import FeatureStore, open_store, store_folders


def every_store(dataset: Path) -> list[FeatureStore]:
    """All finished stores below ``cache/<dataset>``.

    Raises:
        StoreError: there is none, or one cannot be opened.
    """
    folders = _folders(dataset, ["NAME"])
    # An extraction under way or stopped has no index yet; it is named when it is asked for.
    finished = [folder for folder in folders if (folder / INDEX_NAME).is_file()]
    return [open_store(folder) for folder in finished or folders]


def named_sources(dataset: Path, names: Sequence[str]) -> dict[str, list[FeatureSource]]:
    """What each name stands for: every store of a backbone, or stores joined by ``+``.

    Args:
        dataset: ``cache/<dataset>``.
        names: backbones as the stores keep them, folder names of stores, or several of these joined by ``+``.

    Raises:
        StoreError: a name has no store or, where joined, several; all that have none are named at once.
    """
    for name in names:
        if not all(name.split(JOINT)):
            raise StoreError(f"backbone {name!r} lacks a name: stores are joined as in resnet50{JOINT}vgg19")
    folders = _folders(dataset, [part for name in names for part in name.split(JOINT)])
    called = {folder: names_of(folder) for folder in folders}
    opened: dict[Path, FeatureStore] = {}

    def stores(name: str) -> list[FeatureStore]:
        matching = [folder for folder in folders if name in called[folder]]
        for folder in matching:
            opened.setdefault(folder, open_store(folder))
        return [opened[folder] for folder in matching]

    # A name with a + may be a store's own; only else is it taken apart.
    parts = {name: [name] if stores(name) else name.split(JOINT) for name in names}
    missing = list(dict.fromkeys(part for one in parts.values() for part in one if not stores(part)))
    if missing:
        known = sorted({_backbone_of(folder) for folder in folders})
        hints = "".join(nearest(part, known, 1) for part in missing[:1])
        raise StoreError(
            f"no features of {', '.join(map(repr, missing))} in {dataset}{hints}; run '{_extract(missing)}' first "
            f"(there are: {', '.join(known)})"
        )
    sources: dict[str, list[FeatureSource]] = {}
    for name, of_parts in parts.items():
        if len(of_parts) == 1:
            sources[name] = [*stores(of_parts[0])]
        else:
            sources[name] = [join([_only(part, stores(part)) for part in of_parts])]
    return sources


def names_of(folder: Path) -> tuple[str, str, str]:
    """What a store may be called: its folder, its backbone, and the backbone without its options."""
    backbone = _backbone_of(folder)
    return folder.name, backbone, backbone.partition("@")[0]


def _folders(dataset: Path, wanted: Sequence[str]) -> list[Path]:
    folders = store_folders(dataset)
    if not folders:
        raise StoreError(f"no feature stores in {dataset}: run '{_extract(dict.fromkeys(wanted))}' first")
    return folders


def _extract(backbones: Sequence[str] | dict[str, None]) -> str:
    return " ".join(["cxr extract", *(f"--backbone {name}" for name in backbones)])


def _only(name: str, stores: Sequence[FeatureStore]) -> FeatureStore:
    if len(stores) > 1:
        folders = ", ".join(store.path.name for store in stores)
        raise StoreError(f"{len(stores)} stores are called {name!r}: join one of them by its folder's name ({folders})")
    return stores[0]


def _backbone_of(folder: Path) -> str:
    """The backbone's name of a store's folder, without opening parts."""
    try:
        return open_store(folder).spec.backbone
    except StoreError:
        return folder.name.rpartition("-")[0]
