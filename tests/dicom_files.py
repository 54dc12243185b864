"""DICOM radiographs that tests write, each full of a patient's fields that nothing may repeat."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import pydicom.data
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

SAMPLES = Path(pydicom.data.__file__).parent / "test_files"
"""pydicom's own files, those that its package holds."""

SECRET = "SECRET"  # noqa: S105 - no password
"""It stands in every field of a patient; where it is found, a patient's name would have been."""


def _lossless(stored: NDArray[Any]) -> bytes:
    bits = 8 * stored.itemsize
    codes = stored.view(f"u{stored.itemsize}")
    return bytes(imagecodecs.jpeg8_encode(codes, lossless=True, predictor=1, bitspersample=bits))


ENCODERS: dict[UID, Callable[[NDArray[Any]], bytes]] = {
    JPEGBaseline8Bit: lambda stored: bytes(imagecodecs.jpeg8_encode(stored, level=95)),
    JPEGExtended12Bit: lambda stored: bytes(imagecodecs.jpeg8_encode(stored, level=100, bitspersample=12)),
    JPEGLosslessSV1: _lossless,
    JPEGLSLossless: lambda stored: bytes(imagecodecs.jpegls_encode(stored.view(f"u{stored.itemsize}"))),
    JPEG2000Lossless: lambda stored: bytes(imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="j2k")),
    HTJ2KLossless: lambda stored: bytes(imagecodecs.htj2k_encode(stored, reversible=True)),
}


def header(stored: NDArray[Any], **attributes: Any) -> Dataset:
    """A header for stored values, [H, W] or [H, W, 3]; attributes replace its own, None removes."""
    film = Dataset()
    film.PatientName, film.PatientID, film.PatientComments = f"{SECRET}^NAME", f"{SECRET}-1", SECRET
    film.ReferringPhysicianName, film.InstitutionName, film.AccessionNumber = SECRET, SECRET, SECRET
    film.PatientBirthDate, film.StudyDescription, film.BodyPartExamined = "19700101", SECRET, "CHEST"
    film.SOPClassUID, film.Modality, film.ViewPosition = ComputedRadiographyImageStorage, "CR", "PA"
    film.SOPInstanceUID = "1.2.3"
    film.Rows, film.Columns = stored.shape[:2]
    film.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    film.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        film.PlanarConfiguration = 0
    film.BitsAllocated = film.BitsStored = 8 * stored.itemsize
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in attributes.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    if "BitsStored" in attributes and "HighBit" not in attributes:
        film.HighBit = film.BitsStored - 1
    return film


def dicom(
    stored: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, encoded: bytes | None = None, **attributes: Any
) -> bytes:
    """A DICOM file of stored values, [H, W] or [H, W, 3].

    Args:
        stored: of 8 or 16 bits, unsigned or signed.
        syntax: the transfer syntax they are encoded in.
        encoded: the pixel data, where they are to be others.
        attributes: of the header, see ``header``.
    """
    film = header(stored, **attributes)
    film.file_meta = FileMetaDataset()
    film.file_meta.MediaStorageSOPClassUID = film.get("SOPClassUID", ComputedRadiographyImageStorage)
    film.file_meta.TransferSyntaxUID = syntax
    if encoded is not None:
        film.PixelData = encoded
    elif syntax in ENCODERS:
        film.PixelData = encapsulate([ENCODERS[syntax](stored)])
    elif syntax == RLELossless:
        film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        film.PixelData = stored.tobytes()
        film.compress(RLELossless, generate_instance_uid=False)
    else:
        film.PixelData = stored.astype(stored.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
    film["PixelData"].VR = "OW" if film.BitsAllocated > 8 and not syntax.is_compressed else "OB"
    if syntax.is_compressed and syntax != "1.2.840.10008.1.2.1.99":
        film["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dcmwrite(file, film, enforce_file_format=True)
    return file.getvalue()
