"""A file that the user named, wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.check import read_file


def read_named(path: Path) -> bytes:
    """The bytes of a file that the user named: a link matters in a data set, here it may lead anywhere.

    Raises:
        UnreadableImageError: see ``check.read_file``.
    """
    real = Path(os.path.realpath(path))
    return read_file(real.parent, real.name)
