"""What a store lacks, and how the work is cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.check import Scan
from featcache.decode import decoder_of
from featcache.errors import StoreError
from featcache.images import Strings
from featcache.parts import PartHeader
from featcache.runtime import Compute, choose_precision, choose_runtime, device_of
from featcache.spec import FeatureSpec
from featcache.store import part_headers


@dataclass(frozen=True, kw_only=True)
class Job:
    """One backbone's share of the pass.

    Attributes:
        backbone: the network.
        spec: what its features are made with.
        store: the store's folder.
        replaced: why parts were moved aside.
        first_missing: [N] the first view that an image lacks.
    """

    backbone: Backbone
    spec: FeatureSpec
    store: Path
    replaced: tuple[str, ...]
    first_missing: NDArray[np.int64]


def spec_of(
    backbone: Backbone, *, recipe_seed: int = 0, compute: Compute | None = None, dicom: bool = False
) -> FeatureSpec:
    """The spec that features of this backbone have on this machine.

    ``dicom``: whether there are DICOM files among the images.
    """
    compute = compute or Compute()
    device = device_of(compute)
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
        decoder=decoder_of(dicom=dicom),
        decode_floor=_decode_floor(preprocessing.resize_side),
    )


def _decode_floor(resize_side: int) -> int:
    """The least shorter side, in pixels, at which a JPEG may be decoded.

    At twice what it is resized to, features keep a cosine of 0.999 to those of the whole image (docs/benchmarks.md).
    By powers of two, so that one decoded image serves backbones of about the same size.
    """
    floor = 512
    while floor < 2 * resize_side:
        floor *= 2
    return floor


def store_folder(dataset: Path, spec: FeatureSpec) -> Path:
    """``cache/<dataset>/<backbone>-<fingerprint12>``."""
    name = "".join(c if c.isalnum() or c in "._=-" else "-" for c in spec.backbone)
    return dataset / f"{name}-{spec.fingerprint[:12]}"


def plan(
    scanned: Scan, dataset: Path, backbone: Backbone, recipe_seed: int, compute: Compute, *, set_aside: bool = True
) -> Job:
    """Find what a store lacks; a part that cannot be used is moved aside, so that it is made again.

    Without ``set_aside`` nothing is moved, and such a part counts as missing all the same.
    """
    spec = spec_of(backbone, recipe_seed=recipe_seed, compute=compute, dicom=scanned.dicom)
    store = store_folder(dataset, spec)
    headers: list[PartHeader] = []
    replaced: list[str] = []
    for found in part_headers(store, spec):
        if isinstance(found, PartHeader):
            headers.append(found)
        else:
            path, error = found
            if set_aside:
                _set_aside(path)
            replaced.append(str(error))
    return Job(
        backbone=backbone,
        spec=spec,
        store=store,
        replaced=tuple(replaced),
        first_missing=first_missing(scanned.table.sha256, headers),
    )


def first_missing(sha256: Strings, headers: Sequence[PartHeader]) -> NDArray[np.int64]:
    """The first view that the parts lack of each image, [N]; 0 where they have none of it.

    Args:
        sha256: [N] content hashes.
        headers: of the parts, in any order.
    """
    have: dict[str, int] = {}
    # By first view, so that a later range counts only where the earlier ones are there.
    for header in sorted(headers, key=lambda part: part.views):
        first, end = header.views[0], header.views[-1] + 1
        for digest in header.image_sha256:
            if first <= have.get(digest, 0) < end:
                have[digest] = end
    return np.fromiter((have.get(digest, 0) for digest in sha256), np.int64, len(sha256))


def _set_aside(path: Path) -> None:
    folder = path.parent.parent / "damaged"
    try:
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
    except FileNotFoundError:
        # Another extraction has moved it.
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be used, and cannot be moved to {folder}: {error.strerror}") from error


def chunks_of(scanned: Scan, jobs: Sequence[Job], views: int, part_images: int) -> list[tuple[int, list[int]]]:
    """Cut the table into numbered stretches of distinct images, and keep of each what some backbone lacks.

    The cut depends on the table alone, so an undisturbed run and a resumed one write the same parts.
    """
    # Backwards, so that of equal hashes the first row is the one that stays. numpy's unique would sort a quarter GB.
    first = dict(zip(reversed(scanned.table.sha256.tolist()), reversed(range(len(scanned.table))), strict=True))
    distinct = np.sort(np.fromiter(first.values(), np.int64, len(first)))
    lacking = np.any([job.first_missing < views for job in jobs], axis=0)
    cut = [distinct[start : start + part_images] for start in range(0, len(distinct), part_images)]
    return [(number, rows) for number, chunk in enumerate(cut) if (rows := chunk[lacking[chunk]].tolist())]
