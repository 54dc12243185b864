"""What engines hand around: the brief of a pass, the pieces it is cut into, and what came of each.

All three are plain values with a JSON form, so that a piece can be done in this process, in one started beside it,
or on another machine, by the same code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from featcache.spec import FeatureSpec

Value = TypeVar("Value", "Brief", "Chunk", "Made")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """How to load a backbone: the arguments of ``backbones.load_backbone``."""

    name: str
    weights: str | None = None
    image_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brief:
    """What holds for every piece of a pass.

    Attributes:
        root: the folder that image names are relative to.
        specs: one a backbone.
        stores: their stores' folders.
        sources: how each backbone is loaded.
        views: views an image.
        device: where the networks run: ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: images a network sees at once.
        threads: threads that decode, and threads of a processor's network.
        small_films: whether most images are so small that few threads read them best; see ``loading.decoders_for``.
    """

    root: Path
    specs: tuple[FeatureSpec, ...]
    stores: tuple[Path, ...]
    sources: tuple[Source, ...]
    views: int
    device: str
    batch_size: int
    threads: int
    small_films: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """The unit of work: a few hundred images of distinct content, which become one part a backbone.

    Attributes:
        number: place in the cut of the whole data set.
        image_id: [n] file names below the root.
        sha256: [n] content hashes.
        first_missing: [n][backbones] the first view that a backbone lacks of an image; the number of views where
            it lacks none.
    """

    number: int
    image_id: tuple[str, ...]
    sha256: tuple[str, ...]
    first_missing: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What came of a chunk.

    Attributes:
        number: the chunk's.
        images: images done, those that failed included.
        unreadable: content hash → why nothing could be made of the image.
        elsewhere: [backbones] images that another process had made in the meantime.
        waited: seconds for which the networks waited for images.
        notes: what the user should be told, a line each.
    """

    number: int
    images: int
    unreadable: dict[str, str]
    elsewhere: tuple[int, ...]
    waited: float = 0.0
    notes: tuple[str, ...] = ()


def to_json(value: Brief | Chunk | Made) -> str:
    """One line of JSON."""
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(type(value))
    return adapter.dump_json(value).decode()


def from_json(kind: type[Value], text: str | bytes) -> Value:
    """The value that ``to_json`` wrote.

    Raises:
        ValueError: it is no such value.
    """
    return pydantic.TypeAdapter(kind).validate_json(text)
