"""What must hold before heads are trained: images, views and classes are there."""

from __future__ import annotations

import numpy as np

from featcache.errors import RunError, StoreError
from featcache.images import ImageTable
from featcache.splits import Split
from featcache.store import FeatureStore


def require_images(store: FeatureStore, images: ImageTable, first: FeatureStore) -> None:
    """Every image must be in the store with its present content.

    Raises:
        StoreError: images are missing or have changed since they were extracted.
    """
    known = dict(zip(store.image_table.image_id, store.image_table.sha256, strict=True))
    wanted = zip(images.image_id, images.sha256, strict=True)
    missing = [image_id for image_id, digest in wanted if known.get(image_id) != digest]
    if missing:
        against = "" if store is first else f", unlike {first.path}"
        raise store.lacking(len(missing), len(images), missing[0], against)


def require_views(store: FeatureStore, views: int) -> None:
    """Every image must have these views; said before anything is trained.

    Raises:
        StoreError: it has fewer.
    """
    if store.view_count < views:
        raise StoreError(
            f"{store.path} has {store.view_count} views an image, wanted {views}: run 'cxr extract --backbone "
            f"{store.backbone} --views {views}', which makes only those"
        )


def require_classes(images: ImageTable, divided: Split) -> None:
    """A head needs two classes to learn from.

    Raises:
        RunError: the train images are all of one class.
    """
    present = np.unique(images.label[divided.train])
    if len(present) < 2:
        name = images.classes[int(present[0])]
        raise RunError(
            f"all {len(divided.train)} train images are {name}: a head needs two classes; check the labels with "
            "'cxr data check'"
        )
