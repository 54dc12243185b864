"""What an extraction would do, before it is done: ``cxr extract --dry-run``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from featcache.backbones import Backbone
from featcache.check import Scan
from featcache.extraction import PART_IMAGES, brief_of, described
from featcache.making import PartMaker
from featcache.planning import chunks_of, plan
from featcache.runtime import Compute
from featcache.sharing import Share

PROBE_SECONDS = 2.0
HEADER_BYTES = 4096
"""Of a part, beside features and hashes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneEstimate:
    """What one backbone's store would be given.

    Attributes:
        backbone: its name.
        store: the store's folder.
        fingerprint: of the spec.
        missing: images that lack something.
        parts: files to be written.
        bytes: their size.
        damaged: parts that cannot be used and would be made again.
    """

    backbone: str
    store: str
    fingerprint: str
    missing: int
    parts: int
    bytes: int
    damaged: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pass would do.

    Attributes:
        images: readable images of the data set.
        unreadable: the others.
        to_do: images of distinct content of which something is missing, in this process's share.
        views: views an image.
        backbones: what each backbone's store would be given.
        images_per_second: as tried on this machine in one process, all backbones and views together; 0 where there
            is nothing to do.
        seconds: for all of it at that rate.
    """

    images: int
    unreadable: int
    to_do: int
    views: int
    backbones: tuple[BackboneEstimate, ...]
    images_per_second: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What ``cxr extract --dry-run --json`` prints."""
        return dataclasses.asdict(self)

    def in_words(self) -> list[str]:
        """The same, a line each."""
        lines = [
            f"{each.backbone}: {each.missing:,} of {self.images:,} images to compute, {each.parts:,} parts, "
            f"{each.bytes / 2**20:,.1f} MiB in {each.store}"
            + (f"; {each.damaged} damaged parts among them" if each.damaged else "")
            for each in self.backbones
        ]
        if self.unreadable:
            lines.append(f"{self.unreadable:,} images are unreadable; 'cxr data check' lists them")
        if not self.to_do:
            return [*lines, "nothing to do"]
        lines.append(
            f"{self.to_do:,} images × {self.views} views at {self.images_per_second:.1f} img/s, tried here for "
            f"{PROBE_SECONDS:.0f} s: about {_duration(self.seconds)}"
        )
        return lines


def estimate(
    scanned: Scan,
    root: Path,
    dataset: Path,
    backbones: Sequence[Backbone],
    *,
    views: int = 1,
    recipe_seed: int = 0,
    compute: Compute | None = None,
    part_images: int = PART_IMAGES,
    share: Share | None = None,
) -> Estimate:
    """Plan as ``extraction.extract`` does with the same arguments, try the speed, and write nothing.

    Raises:
        BackboneError: the runtime cannot take a network.
    """
    compute, share = compute or Compute(), share or Share()
    jobs = [plan(scanned, dataset, backbone, recipe_seed, compute, set_aside=False) for backbone in backbones]
    chunks = [chunk for chunk in chunks_of(scanned, jobs, views, part_images) if share.holds(chunk[0])]
    each = []
    for job, backbone in zip(jobs, backbones, strict=True):
        lacks = [[first for first in job.first_missing[rows].tolist() if first < views] for _, rows in chunks]
        parts = sum(len(set(firsts)) for firsts in lacks)
        vectors = sum(views - first for firsts in lacks for first in firsts)
        size = 2 * backbone.dim * vectors + 64 * sum(map(len, lacks)) + HEADER_BYTES * parts
        each.append(
            BackboneEstimate(
                backbone=backbone.name,
                store=str(job.store),
                fingerprint=job.spec.fingerprint,
                missing=sum(map(len, lacks)),
                parts=parts,
                bytes=size,
                damaged=len(job.replaced),
            )
        )
    to_do, rate = sum(len(rows) for _, rows in chunks), 0.0
    if chunks:
        with closing(PartMaker(brief_of(scanned.table, root, jobs, views, compute), backbones)) as maker:
            rate = maker.rate(next(described(scanned, jobs, views, chunks)), PROBE_SECONDS)
    return Estimate(
        images=len(scanned.table),
        unreadable=len(scanned.quarantined),
        to_do=to_do,
        views=views,
        backbones=tuple(each),
        images_per_second=rate,
        seconds=to_do / rate if rate else 0.0,
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
