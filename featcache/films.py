"""Image files of any place, read ahead: what the user calls them, their views, and the way the rays went."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.decode import read_header
from featcache.dicom import is_dicom
from featcache.errors import UnreadableImageError
from featcache.loading import Rendering, in_threads, render_all
from featcache.named_files import read_named


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One file: what the user calls it, and its bytes."""

    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """The content hash, as the image table keeps it."""
        return hashlib.sha256(self.data).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """What came of one file.

    Attributes:
        name: what the user calls it.
        sha256: the content hash; empty where the file could not be read.
        views: [v, c, S, S] uint8 a rendering; empty where there is a reason.
        projection: PA, AP, lateral, oblique or not said, of a DICOM file; empty for formats that have no word for it.
        reason: why there are no views.
    """

    name: str
    sha256: str = ""
    views: Mapping[Rendering, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    projection: str = ""
    reason: str = ""


@contextlib.contextmanager
def load_films(
    files: Iterable[Path | ImageFile], renderings: frozenset[Rendering], threads: int
) -> Iterator[Iterator[Film]]:
    """Yield an iterator over some files, in order, the next of them already read and rendered in threads.

    Args:
        files: paths, or bytes with a name; asked for the next no sooner than needed.
        renderings: what is wanted of each.
        threads: threads that read, decode and render.
    """
    load = partial(load_film, renderings=renderings)
    with in_threads(load, files, threads, lambda _: renderings) as films:
        yield films


def load_film(file: Path | ImageFile, renderings: frozenset[Rendering]) -> Film:
    """Read one file once, decode it once a size, and render all that is wanted of it."""
    name, digest = str(file) if isinstance(file, Path) else file.name, ""
    try:
        data = read_named(file) if isinstance(file, Path) else file.data
        digest = hashlib.sha256(data).hexdigest()
        views = render_all(data, digest, renderings)
        projection = read_header(data).projection if is_dicom(data) else ""
    except UnreadableImageError as error:
        return Film(name=name, sha256=digest, reason=str(error))
    return Film(name=name, sha256=digest, views=views, projection=projection)
