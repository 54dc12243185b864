"""A file's bytes to pixels, or a reason why not.

Radiographs are grey: an image whose three channels are equal is carried as one channel from here to the
network's door, which makes every later step three times cheaper and changes no value.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from featcache.errors import DataError

DECODER = f"pillow-{PIL.__version__.split('.')[0]}"

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter GiB of RGB): a larger image is refused before a pixel is decoded."""

FORMATS = ("JPEG", "PNG")
"""Only these decoders are tried: each further one is code that hostile input can reach."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation; all else that an orientation may say means upright."""

Pixels = NDArray[np.uint8]
"""Decoded pixels: [H, W] when grey, [H, W, 3] otherwise."""


class UnreadableImageError(DataError):
    """An image that cannot be read; the message is the reason shown to the user."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What a file says of itself before it is decoded: size in pixels, and Pillow's mode."""

    width: int
    height: int
    mode: str
    rotated: bool


@contextmanager
def oversize_is_an_error() -> Iterator[None]:
    """Make Pillow's warning on oversized images an error, for the whole pass, and silence its remarks on metadata.

    Warning filters are one for all threads, so this is entered once by the thread that starts the others.
    """
    with warnings.catch_warnings():
        # Damaged EXIF says nothing about the pixels, and a warning does not say which file it is in.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_header(data: bytes) -> ImageHeader:
    """Read size and mode without decoding.

    Raises:
        UnreadableImageError: not an image that we read, or too large.
    """
    with _opened(data) as image:
        return ImageHeader(width=image.width, height=image.height, mode=image.mode, rotated=_orientation(image) != 1)


def decode(data: bytes, floor: int | None = None) -> Pixels:
    """Decode an image to 8-bit grey [H, W] or RGB [H, W, 3], upright.

    Sixteen-bit images are scaled from their full range; palette, CMYK and transparent images become RGB;
    the camera's EXIF rotation is applied.

    Args:
        data: the file's bytes.
        floor: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size while its shorter side stays at least this
            many pixels (the DCT does the averaging); None decodes it whole.

    Raises:
        UnreadableImageError: empty, truncated, damaged, too large, or no image at all.
    """
    with _opened(data) as image:
        if floor is not None and image.format == "JPEG":
            shorter = min(image.size)
            if floor < shorter:
                # In whole numbers: rounding down to floor - 1 would let the shorter side fall below the floor.
                image.draft(None, (image.width * floor // shorter, image.height * floor // shorter))
        try:
            turn = UPRIGHT.get(_orientation(image))
            pixels = _eight_bit(image if turn is None else image.transpose(turn))
        except (
            OSError,
            ValueError,
            SyntaxError,
            EOFError,
            IndexError,
            MemoryError,
            Image.DecompressionBombError,
        ) as error:
            raise UnreadableImageError(f"damaged or truncated: {_first_line(error)}") from error
    if pixels.ndim == 3 and _is_grey(pixels):
        return np.ascontiguousarray(pixels[:, :, 0])
    return pixels


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    if not data:
        raise UnreadableImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not a {' or '.join(FORMATS)} image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise UnreadableImageError(f"damaged header: {_first_line(error)}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImageError(f"{image.width}×{image.height} is more than {MAX_PIXELS:,} pixels")
        yield image


def _eight_bit(image: Image.Image) -> Pixels:
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode.startswith(("I", "F")):
        # Pillow clips 16-bit grey when it converts it; the upper byte is what is meant.
        wide = np.asarray(image).astype(np.int64)
        return (wide.clip(0, 65535) // 257).astype(np.uint8)
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns that it cannot keep the transparency.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _is_grey(pixels: Pixels) -> bool:
    red = pixels[:, :, 0]
    return bool(np.array_equal(red, pixels[:, :, 1]) and np.array_equal(red, pixels[:, :, 2]))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where it says nothing sensible."""
    try:
        found = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error):
        return 1
    return found if found in UPRIGHT else 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
