"""Small pictures of images, to look at in a page or on a sheet."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from featcache.check import read_file
from featcache.decode import UnreadableImageError, decode_for, oversize_is_an_error

QUALITY = 80
"""JPEG quality: enough to see what a film is of."""


def thumbnail(root: Path, image_id: str, side: int = 160) -> bytes:
    """A JPEG of an image, its longer side at most ``side`` pixels; never enlarged.

    It is drawn anew from the pixels, so nothing that the file says beside them (names, dates) comes along, and it is
    at most ``3 · side² + 4096`` bytes large, in practice some 5 KB.

    Args:
        root: the folder that ``image_id`` is relative to.
        image_id: path below the root.
        side: pixels.

    Raises:
        UnreadableImageError: the file cannot be read; the message begins with its name.
    """
    try:
        with oversize_is_an_error():
            # As decoding shrinks by its shorter side: twice what is shown leaves the resizing something to average.
            film = decode_for(read_file(root, image_id), [2 * side])[2 * side]
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{image_id}: {error}") from error
    picture = Image.fromarray(film.pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
