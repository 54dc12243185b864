"""Notes on the passes that filled a store: when, how fast, on what. They determine nothing; a damaged one is none.

They lie beside ``features.h5`` and not in the parts, since a clock there would make equal parts unequal files.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from featcache import atomic

PASSES_NAME = "passes.json"

MOST_PASSES = 20
"""The latest are kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """One extraction, as one process saw it.

    Attributes:
        ended: ISO 8601 in UTC.
        images: of which something was computed for this store.
        views: views an image that were asked for.
        backbones: networks that ran over each decoded image; the rate is of all of them together.
        seconds: the whole pass.
        images_per_second: its rate since the first images were done.
        limited_by: what it waited for.
        device: the processor or accelerator, in words.
    """

    ended: str
    images: int
    views: int
    backbones: int
    seconds: float
    images_per_second: float
    limited_by: str
    device: str


_PASSES = TypeAdapter(tuple[Pass, ...])


def note_pass(store: Path, ended: Pass) -> None:
    """Add a pass that has just ended; the caller holds the store's lock.

    Raises:
        WriteError: the disk is full or the folder cannot be written.
    """
    held = [dataclasses.asdict(one) for one in (*read_passes(store), ended)]
    atomic.write_text(store / PASSES_NAME, json.dumps(held[-MOST_PASSES:], indent=1) + "\n")


def read_passes(store: Path) -> tuple[Pass, ...]:
    """The passes that are known of a store, oldest first; none where the note is missing or damaged."""
    try:
        return _PASSES.validate_json((store / PASSES_NAME).read_bytes())
    except (OSError, ValidationError):
        return ()
