"""``cxr cache``: list, verify and remove feature stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from cxr.options import Backbones, Cache, Config, Data, Json, Weights
from cxr.terminal import bar, note, print_json, print_table, show
from featcache.settings import load_settings


def list_stores(data: Data = None, cache: Cache = None, config: Config = None, as_json: Json = False) -> None:
    """The stores in the cache."""
    from featcache.store import describe_stores

    settings = load_settings({"data": data, "cache": cache}, config)
    rows = describe_stores(settings.cache, settings.data.resolve().name if settings.data else None)
    if as_json:
        print_json(rows)
        return
    lines = [(r["store"], str(r["images"]), str(r["views"]), f"{r['bytes'] / 2**20:.1f}", r["state"]) for r in rows]
    columns = ("store", "images", "views", "MiB", "state")
    print_table(str(settings.cache), columns, lines, text=["store", "state"])


def verify(
    data: Data = None,
    cache: Cache = None,
    config: Config = None,
    remove_damaged: Annotated[bool, typer.Option("--remove-damaged", help="Delete what is damaged.")] = False,
    recompute: Annotated[
        int, typer.Option("--recompute", metavar="K", min=0, help="Compute K random rows of each store again.")
    ] = 0,
    backbone: Backbones = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Read every byte of every store and compare checksums; exits 1 where something is damaged.

    With --recompute also some rows are computed again from their images: of the stores of the data set, or of the
    named backbones, with --weights for those whose weights were a file.
    """
    from featcache.errors import StoreError
    from featcache.store import dataset_folders, store_folders, verify_store

    settings = load_settings({"data": data, "cache": cache, "backbone": backbone, "weights": weights}, config)
    datasets = dataset_folders(settings.cache, settings.data.resolve().name if settings.data else None)
    stores = [store for dataset in datasets for store in store_folders(dataset)]
    problems = {str(store): verify_store(store, remove_damaged=remove_damaged) for store in stores}
    damage, wrong = [line for found in problems.values() for line in found], []
    lines = [f"{store}: {f'{len(found)} damaged' if found else 'sound'}" for store, found in problems.items()]
    again: list[Any] = []
    if recompute and not damage:
        from featcache.workspace import recompute_stores

        with bar("computing") as tell:
            again = recompute_stores(settings, backbone or (), recompute, tell)
        lines += [found.in_words() for found in again]
        wrong = [line for found in again for line in (*found.wrong, *filter(None, [found.refused]))]
    result = {"damaged": problems, "recomputed": [dataclasses.asdict(found) for found in again]}
    show(as_json, result if recompute else problems, lines)
    for line in (*damage, *wrong):
        note(line)
    if recompute and damage:
        note("no row was computed again: first the damage, then 'cxr extract', then this command once more")
    if wrong or (damage and not remove_damaged):
        raise StoreError(
            f"{len(damage) + len(wrong)} of the cache's files or rows are damaged, missing or wrong; see above"
        )


def remove(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE…", help="Folders, as 'cxr cache list' names them.")],
    data: Data = None,
    cache: Cache = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete feature stores."""
    from featcache.store import remove_store

    settings = load_settings({"data": data, "cache": cache}, config)
    freed = {str(store): remove_store(store, settings.cache) for store in stores}
    show(as_json, freed, [f"removed {name} ({size / 2**20:.1f} MiB)" for name, size in freed.items()])
