"""DICOM radiographs, where the extra ``dicom`` is installed: bytes → header, bytes → 8-bit pixels (ADR 7)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.dicom.elements import elements_of, quietly
from featcache.dicom.header import DicomHeader, Projection, parse_header
from featcache.dicom.pixels import decode_pixels
from featcache.errors import UnreadableImageError

__all__ = ["DicomHeader", "Projection", "begins_as_dicom", "decode_dicom", "dicom_decoder", "is_dicom", "read_dicom"]

RULES = 1
"""Raise it when the pixels of some DICOM file change: it is part of the spec."""

MISSING = "a DICOM file, which needs: pip install 'cxr[dicom]'"

PREAMBLE = 132
"""Bytes that tell whether a file is DICOM."""


def is_dicom(data: bytes) -> bool:
    """Whether a file, or its first ``PREAMBLE`` bytes, is DICOM by the mark that PS3.10 wants there.

    What begins as a JPEG or a PNG is one, whatever else it is.
    """
    return data[128:132] == b"DICM" and not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes; not so if it cannot be read, which reading all of it will explain."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(PREAMBLE))
    except OSError:
        return False


@functools.cache
def dicom_decoder() -> str:
    """What decodes DICOM here, with major versions, for the spec; empty where the extra is not installed."""
    try:
        import imagecodecs
        import pydicom
    except ImportError:
        return ""
    # imagecodecs counts by years: what decodes is the library in it, "libjpeg_turbo 3.1.3/8.0".
    libraries = (imagecodecs.jpeg8_version(), imagecodecs.jpegls_version(), imagecodecs.jpeg2k_version())
    versions = [f"pydicom {pydicom.__version__}", *libraries]
    return " ".join([f"dicom-{RULES}", *(one.partition(".")[0].replace(" ", "-") for one in versions)])


def read_dicom(data: bytes, max_pixels: int) -> DicomHeader:
    """Read the header of a DICOM file; nothing is decoded.

    Raises:
        UnreadableImageError: no single-frame radiograph of 8 to 16 bits and at most ``max_pixels`` pixels, damaged, or
            the extra is not installed.
    """
    _require_extra()
    return quietly("damaged DICOM header", lambda: parse_header(elements_of(data, pixels=False), max_pixels))


def decode_dicom(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a DICOM radiograph: [H, W] grey levels with 0 for black, or [H, W, 3] RGB.

    Raises:
        UnreadableImageError: as ``read_dicom``, and where the pixels are damaged, truncated, or in a form not read.
    """
    _require_extra()

    def decoded() -> NDArray[np.uint8]:
        elements = elements_of(data, pixels=True)
        return decode_pixels(parse_header(elements, max_pixels), elements)

    return quietly("damaged or truncated DICOM", decoded)


def _require_extra() -> None:
    if not dicom_decoder():
        raise UnreadableImageError(MISSING)
