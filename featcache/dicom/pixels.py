"""The pixels of a DICOM radiograph: each transfer syntax by one decoder, told what to make room for beforehand."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.dicom.elements import BIG_ENDIAN, JPEG_2000, JPEG_LS, NATIVE, RLE, Elements
from featcache.dicom.greyscale import grey_levels
from featcache.dicom.header import DicomHeader
from featcache.errors import UnreadableImageError

JPEG_START, JPEG_2000_START, END_OF_IMAGE = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\xff\xd9"

FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""JPEG markers that are followed by the size of the frame: SOF of every process, and of JPEG-LS."""

NO_LENGTH = (0x01, *range(0xD0, 0xD9))
"""JPEG markers that nothing belongs to."""

PREFACE = 2**12
"""Bytes within which a JPEG 2000 begins where it has a file's boxes around it, and a JPEG tells its colours."""

ADOBE = b"\xff\xee\x00\x0eAdobe"
"""What a JPEG holds that knows its colours better than the header does; of JFIF's mark that is not so (as pydicom)."""


def decode_pixels(header: DicomHeader, elements: Elements) -> NDArray[np.uint8]:
    """Decode a radiograph: [H, W] grey levels, 0 black, or [H, W, 3] RGB; to be called ``quietly``.

    Raises:
        UnreadableImageError: there are no pixels, too few, or of another size than the header says.
    """
    encoded = elements.raw("pixels")
    if not encoded:
        raise UnreadableImageError("truncated, or without pixel data")
    scale = header.scale
    if header.syntax in NATIVE:
        pixels = _native(header, encoded, words=elements.are_words("pixels"))
    elif header.syntax == RLE:
        pixels = _native(replace(header, syntax="", planar=True), _unpacked(header, _frame(encoded)), words=False)
    else:
        pixels, bits = _from_codestream(header, _frame(encoded))
        # What the codestream holds counts; and there are no other bits beside its values.
        scale = replace(scale, bits_stored=bits, lowest_bit=0)
    expected = (header.rows, header.columns, 3)[: 3 if header.samples == 3 else 2]
    if pixels.shape != expected or pixels.dtype.itemsize > (1 if header.samples == 3 else 2):
        raise UnreadableImageError("damaged DICOM pixels: of another shape than the header says")
    if header.samples == 3:
        return np.ascontiguousarray(pixels, np.uint8)
    signed = f"{'i' if header.signed else 'u'}{pixels.dtype.itemsize}"
    return grey_levels(np.ascontiguousarray(pixels).view(signed), scale)


def _native(header: DicomHeader, pixels: bytes, *, words: bool) -> NDArray[np.integer]:
    """Pixels that are not compressed, [H, W] or [H, W, 3].

    Raises:
        UnreadableImageError: too few bytes.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

    # Of YBR_FULL_422 two pixels share their colour.
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    wanted = header.rows * header.columns * samples * header.bits_allocated // 8
    if len(pixels) < wanted:
        raise UnreadableImageError(f"truncated: {len(pixels):,} of {wanted:,} bytes of pixels")
    uid = UID(ExplicitVRBigEndian if header.syntax == BIG_ENDIAN else ExplicitVRLittleEndian)
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "number_of_frames": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.scale.bits_stored,
        "photometric_interpretation": header.photometric,
        "pixel_representation": int(header.signed),
        "planar_configuration": int(header.planar),
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW" if words else "OB",
    }
    found, _ = get_decoder(uid).as_array(pixels, index=0, **options)
    # Without a byte order of its own, so that values can be seen as codes.
    plain: NDArray[np.integer] = found.astype(found.dtype.newbyteorder("="), copy=False)
    return plain


def _unpacked(header: DicomHeader, frame: bytes) -> bytes:
    """RLE pixels (PS3.5 annex G) as they would be without it: samples one after another, little-endian.

    Pillow unpacks as much as there is room for; pydicom's decoder makes room for whatever a file unpacks to.
    """
    count, *starts = struct.unpack_from("<16L", frame)
    size, width = header.rows * header.columns, header.bits_allocated // 8
    if count != header.samples * width:
        raise UnreadableImageError("damaged DICOM pixels: of another number of planes than the header says")
    ends = [*starts[1:count], len(frame)]
    planes = np.empty((header.samples, size, width), np.uint8)
    for number in range(count):
        packed = frame[starts[number] : ends[number]]
        # The most significant byte comes first.
        place = planes[number // width, :, width - 1 - number % width]
        place[:] = np.asarray(Image.frombytes("L", (size, 1), packed, "packbits", "L"))[0]
    return planes.tobytes()


def _frame(encoded: bytes) -> bytes:
    from pydicom.encaps import get_frame

    return get_frame(encoded, 0, number_of_frames=1)


def _from_codestream(header: DicomHeader, frame: bytes) -> tuple[NDArray[np.integer], int]:
    """Pixels of a JPEG, JPEG-LS or JPEG 2000, [H, W] or [H, W, 3], and the bits of their values.

    Raises:
        UnreadableImageError: its size is not the header's, and a decoder would make room for whatever it says; or it
            has no end.
    """
    import imagecodecs
    from pydicom.pixels.processing import convert_color_space

    if header.syntax in JPEG_2000:
        frame = frame[max(0, frame.find(JPEG_2000_START, 0, PREFACE)) :]
    size = _jpeg_2000_size(frame) if header.syntax in JPEG_2000 else _jpeg_size(frame)
    if size is None:
        raise UnreadableImageError("damaged DICOM pixels: no JPEG header in them")
    *found, bits = size
    if tuple(found) != (header.rows, header.columns, header.samples) or not 1 <= bits <= 16:
        raise UnreadableImageError("damaged DICOM pixels: of another size than the header says")
    if END_OF_IMAGE not in frame[-64:]:
        raise UnreadableImageError("truncated: its JPEG has no end")
    if header.syntax in JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(frame)
    elif header.syntax in JPEG_LS:
        pixels = imagecodecs.jpegls_decode(frame)
    elif header.photometric == "RGB" and ADOBE not in frame[:PREFACE]:
        return imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB"), bits
    else:
        return imagecodecs.jpeg8_decode(frame), bits
    if header.photometric.startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
    return pixels, bits


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, samples and bits of a JPEG, by ITU T.81 B.2.2; None where it has no such header."""
    place = 2 if frame.startswith(JPEG_START) else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in FRAMES:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            return rows, columns, samples, precision
        if marker == 0xFF:
            place += 1
        elif marker in NO_LENGTH:
            place += 2
        else:
            place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, samples and bits of a JPEG 2000, by ITU T.800 A.5.1; None where it has no such header."""
    if not frame.startswith(JPEG_2000_START) or len(frame) < 43:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    return bottom - top, right - left, struct.unpack_from(">H", frame, 40)[0], (frame[42] & 0x7F) + 1
