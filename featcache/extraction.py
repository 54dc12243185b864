"""The pass: decode once → every backbone, every view → parts.

The unit of work is a chunk: the same few hundred images of the table, in table order, for all backbones. What is
already in a store is looked up by content and not made again, so resuming after a kill, adding images, asking for
more views and renaming files are one mechanism. This module says what is to be made and what came of it; an engine
(``engines``) has it made.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featcache import atomic
from featcache.backbones import Backbone
from featcache.check import Quarantined, Scan
from featcache.engines import Engine, InProcess
from featcache.errors import DataError
from featcache.hardware import device_in_words
from featcache.images import ImageTable
from featcache.index import exclusive, write_index
from featcache.loading import are_small
from featcache.parts import PartHeader
from featcache.passes import Pass, note_pass
from featcache.planning import Job, chunks_of, first_missing, plan
from featcache.progress import Clock, Progress
from featcache.runtime import Compute, choose_batch_size, device_of
from featcache.sharing import Share, read_unreadable, write_unreadable
from featcache.store import part_headers
from featcache.work import Brief, Chunk

PART_IMAGES = 256
"""Images a part: some seconds of work, so that little is lost in a kill, and few enough files."""

CORES_A_PROCESS = 2
MOST_PROCESSES = 8
"""Eight on 16 cores and one GPU read four times what one does (docs/log.md); each takes the memory of its networks."""

LONG_PASS = 30.0
"""Seconds from which on it is worth while to start several processes."""


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
        lacking: images that are other workers' and not there yet.
        quarantined: images that could not be used, with the reason.
        views: views an image.
        seconds: the whole pass, all backbones.
        images_per_second: the pass's rate since its first images were done: networks are loaded and compiled before.
        limited_by: what the pass waited for.
        notes: what the user should be told: parts that were damaged and have been made again, processes that died,
            batches that memory did not suffice for.
    """

    backbone: str
    store: str
    fingerprint: str
    images: int
    extracted: int
    reused: int
    lacking: int
    quarantined: tuple[Quarantined, ...]
    views: int
    seconds: float
    images_per_second: float
    limited_by: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The stable form that ``cxr extract --json`` prints."""
        return dataclasses.asdict(self)

    def in_words(self) -> str:
        """The same, as a sentence."""
        how = f", {self.images_per_second:.1f} img/s, limited by {self.limited_by}" if self.extracted else ""
        left = f"; {self.lacking} are other workers' and not there yet" if self.lacking else ""
        return (
            f"{self.backbone}: {self.images} images × {self.views} views in {self.store} "
            f"({self.extracted} computed, {self.reused} reused{how}){left}"
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
    engine: Engine | None = None,
    share: Share | None = None,
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
        on_progress: called after each image, or now and then where other processes compute.
        engine: where the parts are made; in this process when None.
        share: which of the chunks are this process's; all when None.

    Raises:
        DataError: no image can be read, or, when ``strict``, one cannot.
        StoreError: a part that cannot be used cannot be moved aside either.
        WriteError: the disk is full; finished parts stay.
        BackboneError: the runtime cannot take a network.
        EngineError: the processes that compute die again and again.
    """
    compute, share = compute or Compute(), share or Share()
    engine = engine or InProcess(backbones)
    _refuse(scanned.quarantined, strict=strict, left=len(scanned.table))
    jobs = [plan(scanned, dataset, backbone, recipe_seed, compute) for backbone in backbones]
    chunks = [chunk for chunk in chunks_of(scanned, jobs, views, part_images) if share.holds(chunk[0])]
    clock = Clock(sum(len(rows) for _, rows in chunks), on_progress, engine.workers)
    clock.notes += [f"made again: {line}" for job in jobs for line in job.replaced]
    unreadable: dict[str, str] = {}
    elsewhere = np.zeros(len(jobs), np.int64)
    if chunks:
        brief = brief_of(scanned.table, root, jobs, views, compute)
        with closing(engine(brief, described(scanned, jobs, views, chunks), clock)) as outcomes:
            for made in outcomes:
                unreadable |= made.unreadable
                elsewhere += made.elsewhere
                clock.notes += made.notes
                if strict and unreadable:
                    break
        clock.notes += _ways_to_read_faster(engine, clock.progress(), brief)
    _refuse(_rows_of(unreadable, scanned), strict=strict, left=len(set(scanned.table.sha256) - unreadable.keys()))
    progress = clock.progress()
    mine = {scanned.table.sha256[row] for _, rows in chunks for row in rows} - unreadable.keys()
    summaries = [
        _finish(scanned, job, views, share, unreadable, mine, int(others), progress, tuple(clock.notes))
        for job, others in zip(jobs, elsewhere, strict=True)
    ]
    _note(summaries, compute)
    return summaries


def _note(summaries: Sequence[Summary], compute: Compute) -> None:
    """Leave a note of the pass in each store that it added to."""
    for summary in summaries:
        if summary.extracted:
            store, device = Path(summary.store), device_of(compute)
            ended = Pass(
                ended=datetime.now(UTC).isoformat(timespec="seconds"),
                images=summary.extracted,
                views=summary.views,
                backbones=len(summaries),
                seconds=summary.seconds,
                images_per_second=summary.images_per_second,
                limited_by=summary.limited_by,
                device=device if compute.elsewhere else device_in_words(device),
            )
            # The features are whole; what only describes how they came about is no reason to fail.
            with contextlib.suppress(atomic.WriteError), exclusive(store):
                note_pass(store, ended)


def _ways_to_read_faster(engine: Engine, progress: Progress, brief: Brief) -> list[str]:
    """What to say where the networks waited for one process to read small films, and there are cores for more."""
    processes = min(brief.threads // CORES_A_PROCESS, MOST_PROCESSES)
    alone = isinstance(engine, InProcess) and brief.small_films and processes > 1
    if not (alone and progress.limited_by == "decode" and progress.seconds > LONG_PASS):
        return []
    devices = ",".join([brief.device] * processes)
    return [f"the networks waited for images; {processes} processes read more than one: --devices {devices}"]


def _refuse(lost: Sequence[Quarantined], *, strict: bool, left: int) -> None:
    """Stop where an unreadable image is fatal, or where nothing is left."""
    if lost and (strict or not left):
        first = f"{lost[0].image_id}: {lost[0].reason}"
        more = f" (and {len(lost) - 1} more; 'cxr data check' lists them)" if len(lost) > 1 else ""
        raise DataError(f"{first}{more}; " + ("--strict wants every image" if left else "no image can be used"))


def brief_of(table: ImageTable, root: Path, jobs: Sequence[Job], views: int, compute: Compute) -> Brief:
    """What holds for every chunk of a pass over the images of a table."""
    device = device_of(compute)
    return Brief(
        root=root,
        specs=tuple(job.spec for job in jobs),
        stores=tuple(job.store for job in jobs),
        sources=tuple(job.backbone.source for job in jobs),
        views=views,
        device=device,
        batch_size=choose_batch_size(compute.batch_size, device),
        threads=compute.threads,
        small_films=are_small(table.height.astype(np.int64) * table.width),
    )


def described(
    scanned: Scan, jobs: Sequence[Job], views: int, chunks: Sequence[tuple[int, list[int]]]
) -> Iterator[Chunk]:
    """The chunks as engines take them, each when it is asked for: a million names are not held twice."""
    for number, rows in chunks:
        lacks = np.stack([np.minimum(job.first_missing[rows], views) for job in jobs], axis=1)
        yield Chunk(
            number=number,
            image_id=tuple(scanned.table.image_id[rows].tolist()),
            sha256=tuple(scanned.table.sha256[rows].tolist()),
            first_missing=tuple(map(tuple, lacks.tolist())),
        )


def _rows_of(unreadable: dict[str, str], scanned: Scan) -> list[Quarantined]:
    """Of identical files one is read; what it is found to be holds for its copies."""
    table = scanned.table
    return [
        Quarantined(image_id=image_id, reason=unreadable[digest])
        for image_id, digest in zip(table.image_id, table.sha256, strict=True)
        if digest in unreadable
    ]


def _finish(
    scanned: Scan,
    job: Job,
    views: int,
    share: Share,
    unreadable: dict[str, str],
    mine: set[str],
    elsewhere: int,
    progress: Progress,
    notes: tuple[str, ...],
) -> Summary:
    """Write the index over all parts there are, other workers' included."""
    if share.count > 1:
        write_unreadable(job.store, share, unreadable)
    # Between looking for parts and writing no other worker may write: it might know of more parts than we do.
    with exclusive(job.store):
        headers = [header for header in part_headers(job.store, job.spec) if isinstance(header, PartHeader)]
        first = first_missing(scanned.table.sha256, headers)
        reasons = {**read_unreadable(job.store), **unreadable}
        lost = [digest for digest in scanned.table.sha256[first == 0] if digest in reasons]
        kept = _without(scanned, {digest: reasons[digest] for digest in lost})
        write_index(job.store, job.spec, kept, headers)
    computed = sum(
        digest in mine and had < views
        for digest, had in zip(scanned.table.sha256, job.first_missing.tolist(), strict=True)
    )
    images = int((first >= views).sum())
    return Summary(
        backbone=job.spec.backbone,
        store=str(job.store),
        fingerprint=job.spec.fingerprint,
        images=images,
        extracted=computed - elsewhere,
        reused=images - computed + elsewhere,
        lacking=len(kept.table) - images,
        quarantined=kept.quarantined,
        views=views,
        seconds=progress.seconds,
        images_per_second=progress.images_per_second if computed > elsewhere else 0.0,
        limited_by=progress.limited_by,
        notes=notes,
    )


def _without(scanned: Scan, reasons: dict[str, str]) -> Scan:
    """The scan with the images of these hashes among the quarantined."""
    kept = np.array([digest not in reasons for digest in scanned.table.sha256], bool)
    quarantined = (*scanned.quarantined, *_rows_of(reasons, scanned))
    return dataclasses.replace(scanned, table=scanned.table.take(kept), quarantined=quarantined)
