"""Several stores read as one: features of the same image and view, side by side.

View v of an image is drawn from (content hash, v, recipe seed) alone, so stores of one recipe and seed hold the same
augmentation as their view v, whatever their backbones. What a joined store is called can be taken apart again: its
backbone is ``a+b`` and its fingerprint that of a, ``+``, that of b; see ``part_names``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from featcache.check import Quarantined
from featcache.errors import StoreError
from featcache.images import ImageTable
from featcache.parts import FeatureArray
from featcache.store import FeatureStore

JOINT = "+"


@dataclass(frozen=True, kw_only=True)
class JoinedStore:
    """Stores of several backbones, read as one of features [N, V, D₁ + D₂ + …].

    Attributes:
        stores: two or more, in the order of their features; made by ``join``.
    """

    stores: tuple[FeatureStore, ...]

    @property
    def backbone(self) -> str:
        """The backbones' names, joined by ``+``."""
        return JOINT.join(store.backbone for store in self.stores)

    @property
    def fingerprint(self) -> str:
        """The specs' fingerprints, joined by ``+`` in the same order."""
        return JOINT.join(store.fingerprint for store in self.stores)

    @property
    def path(self) -> Path:
        """The first store's folder."""
        return self.stores[0].path

    @property
    def image_table(self) -> ImageTable:
        """The first store's images."""
        return self.stores[0].image_table

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """What any of the stores could not use."""
        return tuple(dict.fromkeys(row for store in self.stores for row in store.quarantined))

    @property
    def view_count(self) -> int:
        """Views that every image has in all of the stores."""
        return min(store.view_count for store in self.stores)

    def views(self, image_ids: Sequence[str] | None = None, count: int | None = None) -> FeatureArray:
        """Features of the first ``count`` views (all when None) of some images (of the first store's when None).

        Returns:
            [N, V, D₁ + D₂ + …]; float32 where one of the stores has float32 there, float16 otherwise.

        Raises:
            StoreError: an image or view is missing in one of the stores, or a part is damaged.
        """
        wanted = self.image_table.image_id.tolist() if image_ids is None else image_ids
        views = self.view_count if count is None else count
        blocks = [store.views(wanted, views) for store in self.stores]
        return cast("FeatureArray", np.concatenate(blocks, axis=2))


FeatureSource = FeatureStore | JoinedStore
"""What heads are fitted on."""


def join(stores: Sequence[FeatureStore]) -> JoinedStore:
    """Read several stores as one.

    Raises:
        StoreError: their views are not of one recipe and seed, two are of one spec, or a name holds ``+``.
        ValueError: fewer than two.
    """
    if len(stores) < 2:
        raise ValueError(f"join: wanted two stores or more, got {len(stores)}")
    first, seen = stores[0], set[str]()
    for store in stores:
        if JOINT in store.backbone:
            raise StoreError(
                f"{store.path} cannot be joined: its backbone's name {store.backbone!r} holds the + that joins names"
            )
        if store.fingerprint in seen:
            raise StoreError(f"{store.path} is named twice: a store adds nothing to itself")
        seen.add(store.fingerprint)
        mine, theirs = ((one.spec.recipe, one.spec.recipe_seed) for one in (store, first))
        if mine != theirs:
            raise StoreError(
                f"the views in {store.path} (recipe {mine[0]}, seed {mine[1]}) are not those in {first.path} (recipe "
                f"{theirs[0]}, seed {theirs[1]}): extract one of the two backbones again with the other's view_seed"
            )
    return JoinedStore(stores=tuple(stores))


def stores_of(source: FeatureSource) -> tuple[FeatureStore, ...]:
    """The stores that a source reads: several where it is joined."""
    return source.stores if isinstance(source, JoinedStore) else (source,)


def part_names(backbone: str, fingerprint: str) -> tuple[tuple[str, str], ...]:
    """Take the names of a joined store apart: (backbone, fingerprint) of each part; of the one where it is not joined.

    No fingerprint holds a ``+``, so it says whether the backbone's ``+`` joins two names or belongs to one.
    """
    fingerprints = fingerprint.split(JOINT)
    names = backbone.split(JOINT) if len(fingerprints) > 1 else [backbone]
    return tuple(zip(names, fingerprints, strict=True))
