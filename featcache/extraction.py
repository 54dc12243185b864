"""The pass: decode once → every backbone, every view → parts.

The unit of work is a part: the same few hundred images of the table, in table order, for all backbones. What is
already in a store is looked up by content and not made again, so resuming after a kill, adding images, asking for
more views and renaming files are one mechanism.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.check import Quarantined, Scan
from featcache.errors import DataError
from featcache.index import PARTS_NAME, write_index
from featcache.loading import ImageViews, load_ahead
from featcache.parts import PartHeader, write_part
from featcache.planning import Job, chunks_of, plan
from featcache.progress import Clock, Progress
from featcache.runtime import (
    Compute,
    Forward,
    choose_device,
    compile_forward,
)
from featcache.spec import FeatureSpec
from featcache.store import part_headers

PART_IMAGES = 256
"""Images a part: some seconds of work, so that little is lost in a kill, and few enough files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What one backbone's extraction did; ``cxr extract --json`` prints it.

    Attributes:
        backbone: its name.
        store: the store's folder.
        fingerprint: of the spec.
        images: images of the data set that the store now has.
        extracted: images of which something was computed now.
        reused: images of which everything was there.
        quarantined: images that could not be used, with the reason.
        views: views an image.
        seconds: the whole pass, all backbones.
        images_per_second: images a second of which something was computed.
        limited_by: what the pass waited for.
        replaced: parts that were damaged or of another spec, and have been made again.
    """

    backbone: str
    store: str
    fingerprint: str
    images: int
    extracted: int
    reused: int
    quarantined: tuple[Quarantined, ...]
    views: int
    seconds: float
    images_per_second: float
    limited_by: str
    replaced: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The stable form that ``cxr extract --json`` prints."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "replaced"}

    def in_words(self) -> str:
        """The same, as a sentence."""
        how = f", {self.images_per_second:.1f} img/s, limited by {self.limited_by}" if self.extracted else ""
        return (
            f"{self.backbone}: {self.images} images × {self.views} views in {self.store} "
            f"({self.extracted} computed, {self.reused} reused{how})"
        )


def extract(
    scanned: Scan,
    root: Path,
    dataset: Path,
    backbones: Sequence[Backbone],
    *,
    views: int = 1,
    recipe_seed: int = 0,
    compute: Compute | None = None,
    part_images: int = PART_IMAGES,
    strict: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Summary]:
    """Bring the stores of some backbones up to date with a data set, computing what is missing and nothing else.

    Args:
        scanned: the images with their hashes, from ``check.scan``.
        root: the folder that ``image_id`` is relative to.
        dataset: ``cache/<dataset>``, where the stores lie.
        backbones: the networks; each image is decoded once for all of them.
        views: views an image, view 0 (clean) included.
        recipe_seed: seed of the augmented views.
        compute: device, runtime, precision, batch size, threads.
        part_images: images a part.
        strict: an image that cannot be used is an error instead of a row in the summary.
        on_progress: called after each image.

    Raises:
        DataError: no image can be read, or, when ``strict``, one cannot.
        StoreError: a part that cannot be used cannot be moved aside either.
        WriteError: the disk is full; finished parts stay.
        BackboneError: the runtime cannot take a network.
    """
    compute = compute or Compute()
    _refuse(scanned.quarantined, strict=strict, left=len(scanned.table))
    jobs = [plan(scanned, dataset, backbone, recipe_seed, compute) for backbone in backbones]
    chunks = chunks_of(scanned, jobs, views, part_images)
    clock = Clock(total=sum(map(len, chunks)), on_progress=on_progress)
    failed: dict[int, str] = {}
    if chunks:
        forwards = [_compiled(job, views, compute) for job in jobs]
        work = [
            (row, {job.rendering(row, views) for job in jobs if job.first_missing[row] < views})
            for chunk in chunks
            for row in chunk
        ]
        with load_ahead(scanned.table, root, work, compute.threads) as images:
            for chunk in chunks:
                failed |= _make_parts(scanned, chunk, images, jobs, forwards, views, compute, clock)
                if strict and failed:
                    break
    # Of identical files one is read; what it is found to be holds for its copies.
    reasons = {scanned.table.sha256[row]: reason for row, reason in failed.items()}
    failed = {row: reasons[digest] for row, digest in enumerate(scanned.table.sha256) if digest in reasons}
    lost = [Quarantined(image_id=scanned.table.image_id[row], reason=reason) for row, reason in failed.items()]
    _refuse(lost, strict=strict, left=len(scanned.table) - len(lost))
    kept = _without(scanned, lost)
    return [_finish(kept, job, views, set(failed), clock.progress()) for job in jobs]


def _refuse(lost: Sequence[Quarantined], *, strict: bool, left: int) -> None:
    """Stop where an unreadable image is fatal, or where nothing is left."""
    if lost and (strict or not left):
        first = f"{lost[0].image_id}: {lost[0].reason}"
        more = f" (and {len(lost) - 1} more; 'cxr data check' lists them)" if len(lost) > 1 else ""
        raise DataError(f"{first}{more}; " + ("--strict wants every image" if left else "no image can be used"))


def _compiled(job: Job, views: int, compute: Compute) -> Forward | None:
    """The network ready to run, or None where its store lacks nothing."""
    if not (job.first_missing < views).any():
        return None
    return compile_forward(
        job.backbone,
        compute.batch_size,
        runtime=job.spec.runtime,
        precision=job.spec.precision,
        device=choose_device(compute.device),
        threads=compute.threads,
    )


def _make_parts(
    scanned: Scan,
    chunk: Sequence[int],
    images: Iterator[ImageViews],
    jobs: Sequence[Job],
    forwards: Sequence[Forward | None],
    views: int,
    compute: Compute,
    clock: Clock,
) -> dict[int, str]:
    """Compute and write the parts of one chunk; returns the rows that failed and why."""
    batches: dict[tuple[int, int], Batches] = {}
    failed: dict[int, str] = {}
    for row in chunk:
        image = clock.awaited(images)
        if image.reason:
            failed[row] = image.reason
        else:
            for number, (job, forward) in enumerate(zip(jobs, forwards, strict=True)):
                first = int(job.first_missing[row])
                if forward is not None and first < views:
                    # Images that lack other view ranges go to a part of their own.
                    batch = batches.setdefault((number, first), Batches(forward, job, compute.batch_size))
                    batch.add(row, image.views[job.rendering(row, views)])
        clock.tick()
    for (number, first), batch in batches.items():
        job, held = jobs[number], range(first, views)
        features = batch.finish().reshape(len(batch.rows), len(held), -1)
        digests = scanned.table.sha256[batch.rows].tolist()
        write_part(job.store / PARTS_NAME, job.spec, digests, held, features, _provenance(job.spec, compute))
    return failed


class Batches:
    """Gathers views into batches of one fixed size, the last padded with black, and keeps what comes out.

    A fixed size is what makes a feature independent of its neighbours: the network runs the same instructions
    whichever images share the batch.
    """

    def __init__(self, forward: Forward, job: Job, batch_size: int) -> None:
        side = job.spec.image_size
        self.forward = forward
        self.rows: list[int] = []
        self.pixels = np.zeros((batch_size, 3, side, side), np.uint8)
        self.filled = 0
        self.features: list[NDArray[np.float32]] = []

    def add(self, row: int, views: NDArray[np.uint8]) -> None:
        """Add one image's views, [v, c, S, S] uint8 with c = 1 or 3."""
        self.rows.append(row)
        for view in views:
            self.pixels[self.filled] = view
            self.filled += 1
            if self.filled == len(self.pixels):
                self.finish()

    def finish(self) -> NDArray[np.float32]:
        """Run what is left and return all features so far, [rows · v, D] float32."""
        if self.filled:
            self.pixels[self.filled :] = 0
            self.features.append(self.forward(self.pixels)[: self.filled])
            self.filled = 0
        return np.concatenate(self.features)


def _without(scanned: Scan, lost: Sequence[Quarantined]) -> Scan:
    names = {row.image_id for row in lost}
    kept = np.array([image_id not in names for image_id in scanned.table.image_id], bool)
    return dataclasses.replace(scanned, table=scanned.table.take(kept), quarantined=(*scanned.quarantined, *lost))


def _finish(kept: Scan, job: Job, views: int, failed: set[int], progress: Progress) -> Summary:
    """Write the index over all parts there are, other workers' included."""
    found = [header for header in part_headers(job.store, job.spec) if isinstance(header, PartHeader)]
    write_index(job.store, job.spec, kept, found)
    computed = int((np.delete(job.first_missing, sorted(failed)) < views).sum())
    return Summary(
        backbone=job.spec.backbone,
        store=str(job.store),
        fingerprint=job.spec.fingerprint,
        images=len(kept.table),
        extracted=computed,
        reused=len(kept.table) - computed,
        quarantined=kept.quarantined,
        views=views,
        seconds=progress.seconds,
        images_per_second=computed / progress.seconds if computed else 0.0,
        limited_by=progress.limited_by,
        replaced=job.replaced,
    )


def _provenance(spec: FeatureSpec, compute: Compute) -> dict[str, str | int]:
    """What made a part, beyond what determines its values; no clock, so that equal parts are equal files."""
    packages = (
        "torch",
        "torchvision",
        "timm",
        "pillow",
        *(["openvino"] if spec.runtime == "openvino" else []),
    )
    return {
        **{name: version(name) for name in packages},
        "cxr": version("cxr"),
        "batch_size": compute.batch_size,
    }
