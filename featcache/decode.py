"""A file's bytes to pixels, or a reason why not.

Radiographs are grey: an image whose three channels are equal is carried as one channel from here to the
network's door, which makes every later step three times cheaper and changes no value.

Pillow reads the headers and all that is unusual; the pixels of a plain JPEG come from libjpeg-turbo through
simplejpeg, which gives the same bytes in less than half the time and shrinks in finer steps (ADR 5).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from featcache.dicom import decode_dicom, dicom_decoder, is_dicom, read_dicom
from featcache.errors import UnreadableImageError as UnreadableImageError
from featcache.warning_filters import decoders_warnings

DECODER = f"simplejpeg-{simplejpeg.__version__.split('.')[0]} pillow-{PIL.__version__.split('.')[0]}"

DICOM = " dicom-"
"""What stands in the spec's decoder where there are DICOM files among the images."""

SHRINKING = (1, 2, 3, 4)
"""Eighths of its size at which a JPEG may be decoded. Larger ones save next to nothing and take longer than all."""

WHOLE = 8
"""Eighths of a JPEG's size when it is not shrunk."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter GiB of RGB): a larger image is refused before a pixel is decoded."""

FORMATS = ("JPEG", "PNG")
"""Only these decoders are tried: each further one is code that hostile input can reach."""

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\0\0"

MAX_SEGMENTS = 2**18
"""Bytes in which EXIF would stand: a segment has at most 64 KiB, and few come before it."""

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

LYING = (5, 6, 7, 8)
"""Orientations in which height and width change places."""

Pixels = NDArray[np.uint8]
"""Decoded pixels: [H, W] when grey, [H, W, 3] otherwise."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What a file says of itself before it is decoded.

    Attributes:
        width: in pixels.
        height: in pixels.
        mode: Pillow's word for the pixels.
        rotated: whether EXIF has it turned.
        projection: which way the rays went; empty where the format has no word for it.
        notes: what else is unusual of it.
    """

    width: int
    height: int
    mode: str
    rotated: bool
    projection: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Pixels, and how much of them the film fills.

    Attributes:
        pixels: [H, W] or [H, W, 3] uint8, upright.
        height: of the film, in these pixels: a JPEG of 1001 lines at half its size has 501, and the film ends at
            500.5. To stretch 501 over what 500.5 should fill would move features further than the shrinking does.
        width: the same across.
    """

    pixels: Pixels
    height: float
    width: float


def decoder_of(*, dicom: bool) -> str:
    """What decodes here, for the spec; what decodes DICOM only where that is among the images (ADR 7)."""
    return f"{DECODER} {dicom_decoder()}".rstrip() if dicom else DECODER


@contextmanager
def oversize_is_an_error() -> Iterator[None]:
    """Make Pillow's warning on oversized images an error, for the whole pass, and silence its remarks on metadata.

    One for all threads; they may enter and leave it as they like.
    """
    with decoders_warnings():
        yield


def read_header(data: bytes) -> ImageHeader:
    """Read size and mode without decoding.

    Raises:
        UnreadableImageError: not an image that we read, or too large.
    """
    plain = _plain_jpeg(data)
    if plain is not None:
        height, width, mode = plain
        return ImageHeader(width=width, height=height, mode=mode, rotated=_camera_turn(data) != 1)
    if is_dicom(data):
        film = read_dicom(data, MAX_PIXELS)
        mode = "L" if film.samples == 1 else "RGB"
        size = {"width": film.columns, "height": film.rows}
        return ImageHeader(**size, mode=mode, rotated=False, projection=film.projection, notes=film.notes)
    with _opened(data) as image:
        return ImageHeader(width=image.width, height=image.height, mode=image.mode, rotated=_orientation(image) != 1)


def decode(data: bytes, floor: int | None = None) -> Pixels:
    """Decode an image to 8-bit grey [H, W] or RGB [H, W, 3], upright; see ``decode_for``."""
    return decode_for(data, [floor])[floor].pixels


def decode_for(data: bytes, floors: Collection[int | None]) -> dict[int | None, Decoded]:
    """Decode an image once for each size that is wanted of it; where one size serves several floors, once for all.

    Sixteen-bit images are scaled from their full range; palette, CMYK and transparent images become RGB;
    the camera's EXIF rotation is applied.

    Args:
        data: the file's bytes.
        floors: a JPEG is decoded at 1/8, 2/8, 3/8 or 4/8 of its size (the DCT does the averaging) where its shorter
            side stays at least so many pixels; None decodes it whole.

    Raises:
        UnreadableImageError: empty, truncated, damaged, too large, or no image at all.
    """
    plain = _plain_jpeg(data)
    if plain is not None:
        height, width, mode = plain
        sizes = {floor: eighths_for(min(height, width), floor) for floor in floors}
        made = {eighths: _shrunk(data, height, width, mode, eighths) for eighths in set(sizes.values())}
        sound = {eighths: decoded for eighths, decoded in made.items() if decoded is not None}
        if len(sound) == len(made):
            return {floor: sound[eighths] for floor, eighths in sizes.items()}
    if is_dicom(data):
        pixels = _one_channel_if_grey(decode_dicom(data, MAX_PIXELS))
    else:
        with _opened(data) as image:
            pixels = _upright(_one_channel_if_grey(_pixels_of(image)), _orientation(image))
    whole = Decoded(pixels=pixels, height=pixels.shape[0], width=pixels.shape[1])
    return dict.fromkeys(floors, whole)


def eighths_for(shorter: int, floor: int | None) -> int:
    """The eighths of its size at which a JPEG with this shorter side, in pixels, is decoded for a floor."""
    if floor is None:
        return WHOLE
    return next((eighths for eighths in SHRINKING if shorter * eighths >= 8 * floor), WHOLE)


def _plain_jpeg(data: bytes) -> tuple[int, int, str] | None:
    """Height, width and mode of a JPEG in grey or YCbCr; None for all else, and for what libjpeg remarks on."""
    if not data.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("Gray", "YCbCr") or height * width > MAX_PIXELS:
        return None
    return height, width, "L" if colours == "Gray" else "RGB"


def _camera_turn(data: bytes) -> int:
    """The EXIF orientation of a JPEG; Pillow is asked only where there is any EXIF."""
    if EXIF not in data[:MAX_SEGMENTS]:
        return 1
    with _opened(data) as image:
        return _orientation(image)


def _shrunk(data: bytes, height: int, width: int, mode: str, eighths: int) -> Decoded | None:
    """A plain JPEG at some eighths of its size; None where libjpeg remarks on its data: Pillow decides then."""
    lines, columns = -(-height * eighths // 8), -(-width * eighths // 8)
    shrink = {"min_height": lines, "min_width": columns, "min_factor": 2} if eighths < WHOLE else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", **shrink)
    except ValueError:
        return None
    except MemoryError as error:
        raise UnreadableImageError("not enough memory to decode it") from error
    if pixels.shape[:2] != (lines, columns):
        return None
    turn = _camera_turn(data)
    extent = (height * eighths / 8, width * eighths / 8)
    extent = extent[::-1] if turn in LYING else extent
    return Decoded(pixels=_upright(_one_channel_if_grey(pixels), turn), height=extent[0], width=extent[1])


def _pixels_of(image: Image.Image) -> Pixels:
    """Pixels of any image that Pillow reads, whole."""
    try:
        return _eight_bit(image)
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


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned as the camera says."""
    turn = UPRIGHT.get(orientation)
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def _one_channel_if_grey(pixels: Pixels) -> Pixels:
    if pixels.ndim == 3 and (pixels.shape[2] == 1 or _is_grey(pixels)):
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    if not data:
        raise UnreadableImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not a {', '.join(FORMATS)} or DICOM image") from error
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
        wide = np.asarray(image)
        if wide.dtype.kind == "u" and wide.itemsize == 2:
            # As it is: a film of 40 million pixels would take four times its bytes for nothing.
            return (wide // 257).astype(np.uint8)
        return (wide.astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
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
