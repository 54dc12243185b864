"""DICOM files made to do harm: what they cost is bounded by what they are, and a reason is all they give."""

from __future__ import annotations

import random
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from dicom_files import ENCODERS, dicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from featcache.decode import UnreadableImageError, decode, read_header
from featcache.dicom import elements
from featcache.phantom import phantom

FILM = phantom(5, size=64, lesion=True)[0]
COMPRESSED = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless]
SYNTAXES = [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, *COMPRESSED]

OPENED = struct.pack("<HH2sHLHHL", 0x0009, 0x1000, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
"""A sequence without a length, and an item in it."""


def name_of(uid: UID) -> str:
    return uid.name.replace(" ", "-")


def why_not(data: bytes) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode(data)
    return str(caught.value)


def peak_of(data: bytes) -> float:
    """MiB that Python and numpy made room for while this was decoded or refused."""
    tracemalloc.start()
    try:
        decode(data)
    except UnreadableImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / 2**20


@pytest.mark.parametrize("syntax", SYNTAXES, ids=name_of)
def test_any_damage_gives_pixels_or_a_reason_and_nothing_is_written(
    syntax: UID, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = dicom(FILM, syntax)
    pixels = whole.rfind(b"\xe0\x7f\x10\x00") if syntax != DeflatedExplicitVRLittleEndian else 400
    rng = random.Random(0)  # noqa: S311 - no secret is made here
    reasons, texts = 0, set[str]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for number in range(150):
            data = bytearray(whole)
            if number % 3 == 0:
                del data[rng.randrange(132, len(data)) :]
            else:
                for _ in range(rng.randrange(1, 10)):
                    data[rng.randrange(pixels if number % 3 == 1 else 0, len(data))] = rng.randrange(256)
            try:
                assert decode(bytes(data)).dtype == np.uint8
            except UnreadableImageError as error:
                reasons += 1
                texts.add(str(error))
    assert reasons >= 40
    assert all(texts)
    assert (warned, *capfd.readouterr()) == ([], "", "")


@pytest.mark.parametrize("syntax", COMPRESSED, ids=name_of)
@pytest.mark.parametrize("side", [20, 6000])
def test_a_codestream_of_another_size_than_the_header_is_refused_undecoded(syntax: UID, side: int) -> None:
    film = np.zeros((side, side), np.uint8)
    data = dicom(FILM, syntax, encoded=encapsulate([ENCODERS[syntax](film)]))
    assert why_not(data) == "damaged DICOM pixels: of another size than the header says"
    assert peak_of(data) < 8 + 3 * len(data) / 2**20


@pytest.mark.parametrize("syntax", COMPRESSED, ids=name_of)
def test_a_codestream_without_its_end_is_refused(syntax: UID) -> None:
    encoded = ENCODERS[syntax](FILM)
    assert why_not(dicom(FILM, syntax, encoded=encapsulate([encoded[: len(encoded) * 2 // 3]]))).startswith("truncated")


def test_what_packs_more_than_the_header_says_is_refused_without_making_room_for_it() -> None:
    packed = b"\x81\x00" * 2**20  # 128 zeros each
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + packed
    data = dicom(FILM, RLELossless, encoded=encapsulate([frame]))
    assert peak_of(data) < 16 + len(data) / 2**20
    assert np.array_equal(decode(data), np.zeros_like(FILM))


def test_a_file_that_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "MAX_INFLATED", 2**22)
    whole = dicom(FILM, DeflatedExplicitVRLittleEndian)
    start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(20)) + deflater.flush()
    assert len(bomb) < 2**16
    assert why_not(whole[:start] + bomb) == "deflated from more than 4 MiB"
    assert peak_of(whole[:start] + bomb) < 10


def test_20000_pixels_across_are_refused_by_the_header_alone() -> None:
    data = dicom(FILM, JPEG2000Lossless, Rows=20_000, Columns=20_000)
    for read in (read_header, decode):
        with pytest.raises(UnreadableImageError, match="20000×20000 is more than 89,478,485 pixels"):
            read(data)


def test_a_header_of_a_million_elements_is_refused() -> None:
    whole = dicom(FILM)
    start = whole.index(b"\x28\x00\x02\x00US")
    element = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0)
    # In a sequence without a length they would all be kept, wanted or not.
    for data in (whole[:start] + element * 110_000, whole[:start] + OPENED + element * 110_000):
        assert why_not(data) == "a DICOM header of more than 50,000 elements"


def test_sequences_in_sequences_without_end_are_refused() -> None:
    whole = dicom(FILM)
    start = whole.index(b"\x28\x00\x02\x00US")
    assert why_not(whole[:start] + OPENED * 5000) == "damaged or truncated DICOM"


def test_a_file_that_begins_as_a_jpeg_is_one_whatever_stands_behind() -> None:
    jpeg = bytearray(ENCODERS[JPEGBaseline8Bit](FILM))
    comment = b"\xff\xfe" + struct.pack(">H", 202) + bytes(200)
    polyglot = bytearray(jpeg[:2] + comment + jpeg[2:])
    polyglot[128:132] = b"DICM"
    assert np.array_equal(decode(bytes(polyglot)), decode(bytes(jpeg)))


def test_one_pixel_is_an_image() -> None:
    assert decode(dicom(FILM[:1, :1])).shape == (1, 1)
