"""Files to features, any number of them, at the speed of the extraction and without a store.

As in ``making`` three things go on at once: threads read, decode and render the next files, the networks run several
batches, and the caller works on features that are there. The memory does not grow with the number of files.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Backbone
from featcache.batches import Batches, Runner
from featcache.films import Film, ImageFile, load_films
from featcache.loading import Rendering
from featcache.making import geometry_of
from featcache.outlines import SIDE, outline
from featcache.parts import stored_as
from featcache.reproduction import Specified, compiled, compute_by
from featcache.runtime import Compute, choose_streams

FILMS_AT_ONCE = 64
"""Films that are computed and handed on together, or a batch of them where that is more."""

NO_OUTLINE = np.zeros(SIDE * SIDE, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FilmFeatures:
    """What the networks made of one file.

    Attributes:
        film: the file; its views are dropped.
        outline: of the clean view of the first source, [64] float32; see ``outlines``.
        features: [V, D] float32 of each source, rounded as a store of its spec keeps them; none where it could not be
            read, or where a feature is no finite number.
        reason: why there are none.
    """

    film: Film
    outline: NDArray[np.float32]
    features: tuple[NDArray[np.float32], ...] = ()
    reason: str = ""


class Encoder:
    """Computes features of files by some specs; each file is decoded once for all of them.

    Args:
        sources: say how features are made.
        backbones: the network of each, as ``reproduction.backbone_of`` gives it.
        compute: device, batch size and threads; runtime and precision are the specs'.

    Attributes:
        streams: how many batches are best under way at once.
        notes: what the user should be told, a line each; whoever tells takes them out.

    Raises:
        BackboneError: a backbone is not that of its spec, or does not run here.
    """

    def __init__(
        self, sources: Sequence[Specified], backbones: Sequence[Backbone], compute: Compute | None = None
    ) -> None:
        self.specs = [source.spec for source in sources]
        self.threads = (compute or Compute()).threads
        self.runners: list[Runner] = []
        self.streams = 1
        for source, backbone in zip(sources, backbones, strict=True):
            how = compute_by(source, backbone, compute)
            assert how.runtime != "auto"
            assert how.batch_size is not None
            streams = choose_streams(how.runtime, how.device, how.threads)
            self.streams = max(self.streams, streams)
            self.runners.append(Runner(backbone.name, partial(compiled, backbone, how), how.batch_size, streams))

    @property
    def notes(self) -> list[str]:
        """What befell the networks since this was last asked."""
        return [runner.notes.pop(0) for runner in self.runners for _ in range(len(runner.notes))]

    def encode(self, files: Iterable[Path | ImageFile], views: int = 1) -> Generator[FilmFeatures]:
        """Features of each file, in order; a file that cannot be read has a reason instead.

        One caller at a time. Close the iterator where it is left early (``contextlib.closing``).

        Args:
            files: asked for the next no sooner than needed.
            views: how many of the same views that a store holds, the clean one first.

        Raises:
            BackboneError: a network has no room for a single image.
        """
        wanted = self.renderings(views)
        under_way: deque[_UnderWay] = deque()
        with load_films(files, frozenset(wanted), self.threads) as films:
            while some := self._started(films, wanted):
                under_way.append(some)
                if len(under_way) > 1:
                    yield from self._finished(*under_way.popleft(), views)
            while under_way:
                yield from self._finished(*under_way.popleft(), views)

    @property
    def batch_size(self) -> int:
        """Images that a network sees at once."""
        return max(runner.batch_size for runner in self.runners)

    def renderings(self, views: int = 1) -> list[Rendering]:
        """What each source wants of a film."""
        return [
            Rendering(geometry=geometry_of(spec), floor=spec.decode_floor, views=range(views)) for spec in self.specs
        ]

    def encode_loaded(self, films: Sequence[Film], views: int = 1) -> list[FilmFeatures]:
        """Features of films that ``films.load_film`` has rendered; several callers at a time may ask.

        Raises:
            BackboneError: a network has no room for a single image.
        """
        wanted, left = self.renderings(views), iter(films)
        features: list[FilmFeatures] = []
        while some := self._started(left, wanted):
            features += self._finished(*some, views)
        return features

    def close(self) -> None:
        """Stop the networks."""
        for runner in self.runners:
            runner.close()

    def _started(self, films: Iterator[Film], wanted: Sequence[Rendering]) -> _UnderWay | None:
        """Start the batches of the next films; None where there are no more."""
        # Whole batches, as long as files can be read.
        at_once = max(-(-FILMS_AT_ONCE // runner.batch_size) * runner.batch_size for runner in self.runners)
        batches = [Batches(runner) for runner in self.runners]
        taken: list[tuple[Film, NDArray[np.float32]]] = []
        readable = 0
        for film in films:
            seen = outline(film.views[wanted[0]][0]) if film.views else NO_OUTLINE
            taken.append((dataclasses.replace(film, views={}), seen))
            if not film.reason:
                readable += 1
                for rendering, of_source in zip(wanted, batches, strict=True):
                    of_source.add(film.sha256, film.views[rendering])
            # No end of waiting where none can be read.
            if readable == at_once or len(taken) == 4 * at_once:
                break
        for of_source in batches:
            of_source.flush()
        return (taken, batches) if taken else None

    def _finished(
        self, films: Sequence[tuple[Film, NDArray[np.float32]]], batches: Sequence[Batches], views: int
    ) -> Iterator[FilmFeatures]:
        """Wait for the features of some films."""
        count = sum(not film.reason for film, _ in films)
        arrays = [of_source.computed()[0].reshape(count, views, -1) for of_source in batches] if count else []
        row = 0
        for film, seen in films:
            if film.reason:
                yield FilmFeatures(film=film, outline=seen, reason=film.reason)
                continue
            found = [array[row] for array in arrays]
            row += 1
            odd = next((spec for spec, one in zip(self.specs, found, strict=True) if not np.isfinite(one).all()), None)
            if odd is not None:
                reason = f"{odd.backbone} in {odd.precision} gives features that are no finite numbers"
                yield FilmFeatures(film=film, outline=seen, reason=reason)
                continue
            kept = [stored_as(one, spec.dtype) for spec, one in zip(self.specs, found, strict=True)]
            yield FilmFeatures(film=film, outline=seen, features=tuple(one.astype(np.float32) for one in kept))


_UnderWay = tuple[list[tuple[Film, NDArray[np.float32]]], list[Batches]]
"""Films with their outlines, and the batches of each source that they are in."""
