"""Chunk → parts: decode once, run every backbone, write. The one function that every engine drives.

Three things go on at once: threads read, decode and render the next images; the networks run several batches; and a
finished chunk is written while the next one is computed. So the networks, which are the slow part, never wait.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version

from featcache.backbones import Backbone, load_backbone
from featcache.batches import Batches, Runner
from featcache.decode import DICOM, decoder_of
from featcache.errors import BackboneError, StoreError
from featcache.forward import compile_forward
from featcache.index import PARTS_NAME
from featcache.loading import ImageViews, Rendering, Wanted, decoders_for, load_ahead
from featcache.parts import part_name, read_header, write_part
from featcache.runtime import choose_streams
from featcache.spec import FeatureSpec
from featcache.views import Geometry
from featcache.work import Brief, Chunk, Made

OnImages = Callable[[int, float], None]
"""Told of images done and the seconds waited for them."""

_Parts = dict[tuple[int, int], Batches]
"""(backbone, first view) → the images that lack the views from there on."""


class PartMaker:
    """Makes the parts of chunks, in this process, on one device."""

    def __init__(self, brief: Brief, backbones: Sequence[Backbone] | None = None) -> None:
        """``backbones`` are loaded by their sources, once they are needed, where they are not given."""
        self.brief = brief
        self.backbones = backbones
        self.runners: dict[int, Runner] = {}
        self.geometries = [geometry_of(spec) for spec in brief.specs]
        self.decoders = decoders_for(brief.threads, small_films=brief.small_films)

    def make(self, chunks: Iterable[Chunk | None], on_images: OnImages = lambda *_: None) -> Iterator[Made]:
        """Make the parts of each chunk and yield what came of it, in order.

        Chunks are taken ahead of what is yielded: while one is written the next is computed, and images of those
        after it are read. Where the next is not known yet, ``chunks`` gives None instead of waiting.

        Raises:
            WriteError: the disk is full; finished parts stay.
            BackboneError: a backbone cannot be loaded or run.
        """
        ahead, here = itertools.tee(None if chunk is None else self._lacking(chunk) for chunk in chunks)
        work = (wanted for found in ahead for wanted in (self._work(found[0]) if found else [None]))
        unfinished: deque[Future[Made]] = deque()
        with (
            load_ahead(self.brief.root, work, self.decoders) as images,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            writer.submit(int)  # Starts the thread while there is memory for one.
            for found in here:
                if found is None:
                    while unfinished:
                        yield unfinished.popleft().result()
                    continue
                chunk, elsewhere, done = found
                if done:
                    on_images(done, 0.0)
                parts, unreadable, waited = self._computed(chunk, images, on_images)
                made = Made(
                    number=chunk.number,
                    images=len(chunk.sha256),
                    unreadable=unreadable,
                    elsewhere=elsewhere,
                    waited=waited,
                )
                unfinished.append(writer.submit(self._written, parts, made))
                if len(unfinished) > 1:
                    yield unfinished.popleft().result()
            while unfinished:
                yield unfinished.popleft().result()

    def rate(self, chunk: Chunk, seconds: float) -> float:
        """Images a second, tried on images of a chunk for about so long; nothing is written.

        Loading and compiling the networks is not counted.
        """
        lacking = [row for row, lacks in enumerate(chunk.first_missing) if any(map(self._lacks, lacks))]
        rows = itertools.cycle(lacking)
        pieces = (_piece(chunk, list(itertools.islice(rows, self.brief.batch_size))) for _ in itertools.count())
        ahead, here = itertools.tee(pieces)
        work = (wanted for piece in ahead for wanted in self._work(piece))
        under_way: deque[_Parts] = deque()
        started, done = 0.0, -1
        with load_ahead(self.brief.root, work, self.decoders) as images:
            while not started or time.perf_counter() - started < seconds:
                under_way.append(self._computed(next(here), images, lambda *_: None)[0])
                if len(under_way) > 2:
                    for batches in under_way.popleft().values():
                        batches.computed()
                    done += 1
                    started = started or time.perf_counter()
        return max(done, 1) * self.brief.batch_size / (time.perf_counter() - started)

    def close(self) -> None:
        """Stop the networks; what has been yielded is on the disk."""
        for runner in self.runners.values():
            runner.close()
        self.runners.clear()

    def _lacking(self, chunk: Chunk) -> tuple[Chunk, tuple[int, ...], int]:
        """The chunk without what another process has made since it was planned.

        Also how many images that is for each backbone, and how many lack nothing any more.
        """
        views, elsewhere = self.brief.views, [0] * len(self.brief.specs)
        first_missing = [list(row) for row in chunk.first_missing]
        for number, (spec, store) in enumerate(zip(self.brief.specs, self.brief.stores, strict=True)):
            for first in {row[number] for row in chunk.first_missing} - {views}:
                rows = [row for row, lacks in enumerate(chunk.first_missing) if lacks[number] == first]
                name = part_name([chunk.sha256[row] for row in rows], range(first, views))
                try:
                    read_header(store / PARTS_NAME / name, spec)
                except StoreError:
                    continue
                elsewhere[number] += len(rows)
                for row in rows:
                    first_missing[row][number] = views
        left = Chunk(
            number=chunk.number,
            image_id=chunk.image_id,
            sha256=chunk.sha256,
            first_missing=tuple(map(tuple, first_missing)),
        )
        before, after = (
            sum(any(map(self._lacks, lacks)) for lacks in rows) for rows in (chunk.first_missing, first_missing)
        )
        return left, tuple(elsewhere), before - after

    def _work(self, chunk: Chunk) -> Iterator[Wanted]:
        """What is to be read and rendered for a chunk; nothing of an image that lacks nothing."""
        for image_id, sha256, lacks in zip(chunk.image_id, chunk.sha256, chunk.first_missing, strict=True):
            renderings = frozenset(self._rendering(n, first) for n, first in enumerate(lacks) if self._lacks(first))
            if renderings:
                yield Wanted(image_id=image_id, sha256=sha256, renderings=renderings)

    def _lacks(self, first: int) -> bool:
        return first < self.brief.views

    def _rendering(self, number: int, first: int) -> Rendering:
        """Some views for one backbone; equal for backbones of equal geometry, which then share them."""
        floor = self.brief.specs[number].decode_floor
        return Rendering(geometry=self.geometries[number], floor=floor, views=range(first, self.brief.views))

    def _computed(
        self, chunk: Chunk, images: Iterator[ImageViews], on_images: OnImages
    ) -> tuple[_Parts, dict[str, str], float]:
        """Start all batches of a chunk.

        Returns the parts to be, content hash → reason of what is unreadable, and the seconds waited for images.
        """
        parts: _Parts = {}
        waited = 0.0
        unreadable: dict[str, str] = {}
        for sha256, lacks in zip(chunk.sha256, chunk.first_missing, strict=True):
            if not any(map(self._lacks, lacks)):
                continue
            before = time.perf_counter()
            image = next(images)
            seconds = time.perf_counter() - before
            waited += seconds
            if image.reason:
                unreadable[sha256] = image.reason
            else:
                for number, first in enumerate(lacks):
                    if self._lacks(first):
                        # Images that lack other view ranges go to a part of their own.
                        if (number, first) not in parts:
                            parts[number, first] = Batches(self._runner(number))
                        parts[number, first].add(sha256, image.views[self._rendering(number, first)])
            on_images(1, seconds)
        for batches in parts.values():
            batches.flush()
        return parts, unreadable, waited

    def _written(self, parts: _Parts, made: Made) -> Made:
        """Wait for a chunk's features and write its parts."""
        for (number, first), batches in parts.items():
            spec, held = self.brief.specs[number], range(first, self.brief.views)
            flat, batch_size = batches.computed()
            features = flat.reshape(len(batches.sha256), len(held), -1)
            provenance = _provenance(spec, batch_size)
            write_part(self.brief.stores[number] / PARTS_NAME, spec, batches.sha256, held, features, provenance)
        notes = [runner.notes.pop(0) for runner in list(self.runners.values()) for _ in range(len(runner.notes))]
        return dataclasses.replace(made, notes=tuple(notes))

    def _runner(self, number: int) -> Runner:
        """The backbone ready to run; it is loaded and compiled when it is first needed."""
        if number not in self.runners:
            brief, spec = self.brief, self.brief.specs[number]
            backbone = self.backbones[number] if self.backbones else load_source(brief, number)
            streams = choose_streams(spec.runtime, brief.device, brief.threads)
            self.runners[number] = Runner(
                backbone.name,
                lambda batch_size: compile_forward(
                    backbone,
                    batch_size,
                    runtime=spec.runtime,
                    precision=spec.precision,
                    device=brief.device,
                    threads=brief.threads,
                ),
                brief.batch_size,
                streams,
            )
        return self.runners[number]


def _piece(chunk: Chunk, rows: list[int]) -> Chunk:
    return Chunk(
        number=chunk.number,
        image_id=tuple(chunk.image_id[row] for row in rows),
        sha256=tuple(chunk.sha256[row] for row in rows),
        first_missing=tuple(chunk.first_missing[row] for row in rows),
    )


def load_source(brief: Brief, number: int) -> Backbone:
    """Load one of a pass's backbones anew.

    Raises:
        BackboneError: it cannot be had here, or its weights or what decodes images are not those of the spec.
    """
    source, spec = brief.sources[number], brief.specs[number]
    backbone = load_backbone(source.name, source.weights, source.image_size)
    if backbone.weights_sha256 != spec.weights_sha256:
        raise BackboneError(
            f"the weights of {source.name} here are not those of the pass ({backbone.weights_sha256[:12]} against "
            f"{spec.weights_sha256[:12]}): give every machine the same file with --weights"
        )
    if spec.decoder != (here := decoder_of(dicom=DICOM in spec.decoder)):
        raise BackboneError(
            f"images are decoded by {here} here, by {spec.decoder} in the pass: install the same packages"
        )
    return backbone


def geometry_of(spec: FeatureSpec) -> Geometry:
    """What the network of a spec sees of an image."""
    return Geometry(
        image_size=spec.image_size,
        resize_side=spec.resize_side,
        interpolation=spec.interpolation,
        recipe=spec.recipe,
        recipe_seed=spec.recipe_seed,
    )


def _provenance(spec: FeatureSpec, batch_size: int) -> dict[str, str | int]:
    """What made a part, beyond what determines its values; no clock, so that equal parts are equal files."""
    some = ["openvino"] if spec.runtime == "openvino" else []
    some += ["pydicom", "imagecodecs"] if DICOM in spec.decoder else []
    packages = ("torch", "torchvision", "timm", "pillow", "simplejpeg", *some)
    return {**{name: version(name) for name in packages}, "cxr": version("cxr"), "batch_size": batch_size}
