"""Small pictures of images, to look at in a page or on a sheet."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from featcache.check import read_file
from featcache.decode import Pixels, UnreadableImageError, decode_for, oversize_is_an_error

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
        return thumbnail_of(read_file(root, image_id), side)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{image_id}: {error}") from error


def thumbnail_of(data: bytes, side: int = 160) -> bytes:
    """The same of a file's bytes.

    Raises:
        UnreadableImageError: they are no image; the message is the reason.
    """
    with oversize_is_an_error():
        # As decoding shrinks by its shorter side: twice what is shown leaves the resizing something to average.
        film = decode_for(data, [2 * side])[2 * side]
    return jpeg(shrunk(film.pixels, side))


def shrunk(pixels: Pixels, side: int) -> Image.Image:
    """An image whose longer side is at most ``side`` pixels; never enlarged."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def jpeg(picture: Image.Image, *, coloured: bool = False) -> bytes:
    """A picture as JPEG; the small details of colour are kept where colour says something."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0 if coloured else 2)
    return buffer.getvalue()
