"""What a store lacks, and how the work is cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.check import Scan
from featcache.decode import DECODER
from featcache.errors import StoreError
from featcache.loading import Rendering
from featcache.parts import PartHeader
from featcache.runtime import Compute, choose_device, choose_precision, choose_runtime
from featcache.spec import FeatureSpec
from featcache.store import part_headers
from featcache.views import Geometry


@dataclass(frozen=True, kw_only=True)
class Job:
    """One backbone's share of the pass.

    Attributes:
        backbone: the network.
        spec: what its features are made with.
        store: the store's folder.
        geometry: what the network sees of an image.
        replaced: why parts were moved aside.
        first_missing: [N] the first view that an image lacks.
    """

    backbone: Backbone
    spec: FeatureSpec
    store: Path
    geometry: Geometry
    replaced: tuple[str, ...]
    first_missing: NDArray[np.int64]

    def rendering(self, row: int, views: int) -> Rendering:
        """What is to be computed of one image; its view range is empty when all is there."""
        return Rendering(
            geometry=self.geometry,
            floor=self.spec.decode_floor,
            views=range(int(self.first_missing[row]), views),
        )


def spec_of(backbone: Backbone, *, recipe_seed: int = 0, compute: Compute | None = None) -> FeatureSpec:
    """The spec that features of this backbone have on this machine."""
    compute = compute or Compute()
    device = choose_device(compute.device)
    preprocessing = backbone.preprocessing
    return FeatureSpec(
        backbone=backbone.name,
        weights_sha256=backbone.weights_sha256,
        image_size=preprocessing.image_size,
        resize_side=preprocessing.resize_side,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        recipe_seed=recipe_seed,
        runtime=choose_runtime(compute.runtime, device),
        precision=choose_precision(compute.precision, device),
        decoder=DECODER,
        # One floor for all common sizes, so that one decoded image serves all backbones.
        decode_floor=512 if preprocessing.resize_side <= 512 else 2 * preprocessing.resize_side,
    )


def store_folder(dataset: Path, spec: FeatureSpec) -> Path:
    """``cache/<dataset>/<backbone>-<fingerprint12>``."""
    name = "".join(c if c.isalnum() or c in "._=-" else "-" for c in spec.backbone)
    return dataset / f"{name}-{spec.fingerprint[:12]}"


def plan(scanned: Scan, dataset: Path, backbone: Backbone, recipe_seed: int, compute: Compute) -> Job:
    """Find what a store lacks; a part that cannot be used is moved aside, so that it is made again."""
    spec = spec_of(backbone, recipe_seed=recipe_seed, compute=compute)
    store = store_folder(dataset, spec)
    headers: list[PartHeader] = []
    replaced: list[str] = []
    for found in part_headers(store, spec):
        if isinstance(found, PartHeader):
            headers.append(found)
        else:
            path, error = found
            _set_aside(path)
            replaced.append(str(error))
    have: dict[str, int] = {}
    # By first view, so that a later range counts only where the earlier ones are there.
    for header in sorted(headers, key=lambda part: part.views):
        for digest in header.image_sha256:
            if header.views[0] <= have.get(digest, 0) <= header.views[-1]:
                have[digest] = header.views[-1] + 1
    geometry = Geometry(
        image_size=spec.image_size,
        resize_side=spec.resize_side,
        interpolation=spec.interpolation,
        recipe=spec.recipe,
        recipe_seed=spec.recipe_seed,
    )
    first_missing = np.array([have.get(digest, 0) for digest in scanned.table.sha256], np.int64)
    return Job(
        backbone=backbone,
        spec=spec,
        store=store,
        geometry=geometry,
        replaced=tuple(replaced),
        first_missing=first_missing,
    )


def _set_aside(path: Path) -> None:
    folder = path.parent.parent / "damaged"
    try:
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
    except OSError as error:
        raise StoreError(f"{path} cannot be used, and cannot be moved to {folder}: {error.strerror}") from error


def chunks_of(scanned: Scan, jobs: Sequence[Job], views: int, part_images: int) -> list[list[int]]:
    """Cut the table into fixed stretches of distinct images, and keep of each what some backbone lacks.

    The cut depends on the table alone, so an undisturbed run and a resumed one write the same parts.
    """
    _, first = np.unique(scanned.table.sha256.astype(str), return_index=True)
    distinct = np.sort(first)
    lacking = np.any([job.first_missing < views for job in jobs], axis=0)
    cut = [distinct[start : start + part_images] for start in range(0, len(distinct), part_images)]
    return [rows for chunk in cut if (rows := chunk[lacking[chunk]].tolist())]
