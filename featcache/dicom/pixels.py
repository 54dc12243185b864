"""The pixels of a DICOM radiograph: each transfer syntax by one decoder, named, and bounded beforehand."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featcache.dicom.elements import JPEG, JPEG_2000, NATIVE, RLE, Elements
from featcache.dicom.greyscale import grey_levels
from featcache.dicom.header import DicomHeader
from featcache.errors import UnreadableImageError

JPEG_START, JPEG_2000_START, END_OF_IMAGE = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\xff\xd9"

FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""JPEG markers that are followed by the size of the frame: SOF of every process, and of JPEG-LS."""

NO_LENGTH = (0x01, *range(0xD0, 0xD9))
"""JPEG markers that nothing belongs to."""

JPEG_2000_BOXES = 2**12
"""Bytes within which a JPEG 2000 codestream begins, where it has a file's boxes around it against the standard."""


def plugin_of(syntax: str) -> str:
    """The plugin of pydicom's that decodes a transfer syntax; one alone, so that no installation decodes otherwise."""
    if syntax in JPEG:
        return "gdcm"
    return "pylibjpeg" if syntax in JPEG_2000 else ""


def decode_pixels(header: DicomHeader, elements: Elements) -> NDArray[np.uint8]:
    """Decode a radiograph: [H, W] grey levels, 0 black, or [H, W, 3] RGB; to be called ``quietly``.

    Raises:
        UnreadableImageError: there are no pixels, too few, or of another size than the header says.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGExtended12Bit

    encoded, precision = elements.raw("pixels"), header.scale.bits_stored
    if not encoded:
        raise UnreadableImageError("truncated, or without pixel data")
    if header.syntax in NATIVE:
        _require_length(header, encoded)
    elif header.syntax in JPEG | JPEG_2000:
        precision = _require_size(header, encoded)
    if header.syntax == JPEGExtended12Bit and precision > 8:
        raise UnreadableImageError("lossy JPEG of 12 bits is not read: decompress it with another program first")
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
    }
    uid = UID(header.syntax)
    if uid == RLE:
        encoded, uid = _unpacked(header, encoded), ExplicitVRLittleEndian
        options["planar_configuration"] = 1
    pixels, _ = get_decoder(uid).as_array(encoded, index=0, decoding_plugin=plugin_of(uid), **options)
    expected = (header.rows, header.columns, 3)[: 3 if header.samples == 3 else 2]
    if pixels.shape != expected or pixels.dtype.itemsize > 2:
        raise UnreadableImageError("damaged DICOM pixels: of another shape than the header says")
    if header.samples == 3:
        return np.ascontiguousarray(pixels, np.uint8)
    scale = header.scale
    if header.syntax in JPEG | JPEG_2000:
        # What the codestream holds counts; and there are no other bits beside its values.
        scale = replace(scale, bits_stored=precision, lowest_bit=0)
    return grey_levels(pixels, scale)


def _require_length(header: DicomHeader, pixels: bytes) -> None:
    # Of YBR_FULL_422 two pixels share their colour.
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    wanted = header.rows * header.columns * samples * header.bits_allocated // 8
    if len(pixels) < wanted:
        raise UnreadableImageError(f"truncated: {len(pixels):,} of {wanted:,} bytes of pixels")


def _unpacked(header: DicomHeader, encoded: bytes) -> bytes:
    """RLE pixels (PS3.5 annex G) as they would be without: samples one after another, little-endian.

    Pillow unpacks as much as there is room for; pydicom's decoder makes room for whatever a file unpacks to.
    """
    from pydicom.encaps import get_frame

    frame = get_frame(encoded, 0, number_of_frames=1)
    count, *starts = struct.unpack_from("<16L", frame)
    size, width = header.rows * header.columns, header.bits_allocated // 8
    if count != header.samples * width:
        raise UnreadableImageError("damaged DICOM pixels: of another number of planes than the header says")
    ends = [*starts[1:count], len(frame)]
    planes = np.empty((header.samples, size, width), np.uint8)
    for number in range(count):
        packed = frame[starts[number] : ends[number]]
        plane = np.asarray(Image.frombytes("L", (size, 1), packed, "packbits", "L"))
        # The most significant byte comes first.
        planes[number // width, :, width - 1 - number % width] = plane[0]
    return planes.tobytes()


def _require_size(header: DicomHeader, encoded: bytes) -> int:
    """The bits of a JPEG's or JPEG 2000's values, once its size is that of the header and its end is there.

    Raises:
        UnreadableImageError: it is not, and a decoder might make room for whatever it says.
    """
    from pydicom.encaps import get_frame

    frame = get_frame(encoded, 0, number_of_frames=1)
    size = _jpeg_2000_size(frame) if header.syntax in JPEG_2000 else _jpeg_size(frame)
    if size is None:
        raise UnreadableImageError("damaged DICOM pixels: no JPEG header in them")
    *found, precision = size
    if tuple(found) != (header.rows, header.columns, header.samples) or not 1 <= precision <= 16:
        raise UnreadableImageError("damaged DICOM pixels: of another size than the header says")
    if END_OF_IMAGE not in frame[-64:]:
        raise UnreadableImageError("truncated: its JPEG has no end")
    return precision


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
    place = frame.find(JPEG_2000_START, 0, JPEG_2000_BOXES)
    if place < 0 or place + 42 > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, place + 8)
    samples, depth = struct.unpack_from(">H", frame, place + 40)[0], frame[place + 42 : place + 43]
    return bottom - top, right - left, samples, (depth[0] & 0x7F) + 1 if depth else 0
