"""DICOM files to pixels: every transfer syntax, pydicom's samples, what is refused, and what never gets out."""

from __future__ import annotations

import io
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import ENCODERS, SAMPLES, SECRET, dicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

import featcache.dicom
import featcache.dicom.header
from featcache.decode import ImageHeader, UnreadableImageError, decode, read_header
from featcache.dicom import begins_as_dicom, dicom_decoder, is_dicom
from featcache.phantom import phantom

FILM = phantom(5, size=96, lesion=True)[0][:90]
"""[90, 96] uint8"""

NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
EXACT = [*NATIVE, RLELossless, *(uid for uid in ENCODERS if uid not in (JPEGBaseline8Bit, JPEGExtended12Bit))]


def name_of(uid: UID) -> str:
    return uid.name.replace(" ", "-")


def why_not(data: bytes) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode(data)
    return str(caught.value)


@pytest.fixture
def of_any_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are mostly of other modalities; their pixels are coded alike."""
    monkeypatch.setattr(featcache.dicom.header, "_require_radiograph", lambda *_: None)


# --- transfer syntaxes


@pytest.mark.parametrize("syntax", EXACT, ids=name_of)
def test_a_phantom_is_the_same_pixels_as_its_png(syntax: UID) -> None:
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "PNG")
    data = dicom(FILM, syntax)
    assert is_dicom(data)
    assert np.array_equal(decode(data), decode(file.getvalue()))
    assert read_header(data) == ImageHeader(width=96, height=90, mode="L", rotated=False, projection="PA")


@pytest.mark.parametrize("syntax", EXACT, ids=name_of)
@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_sixteen_bits_come_back_exactly_signed_or_not(syntax: UID, kind: str) -> None:
    # 256 values, so that grey levels tell them all apart.
    stored = (FILM.astype(np.int64) * 257 - (32768 if kind == "i2" else 0)).astype(kind)
    centre = 32768 if kind == "u2" else 0
    data = dicom(stored, syntax, WindowCenter=centre, WindowWidth=65536)
    assert np.array_equal(decode(data), FILM)


@pytest.mark.parametrize("syntax", EXACT, ids=name_of)
def test_signed_values_of_few_bits_keep_their_sign(syntax: UID) -> None:
    stored = (FILM.astype(np.int16) - 128) * 16
    data = dicom(stored, syntax, BitsStored=12, WindowCenter=0, WindowWidth=4096)
    assert np.abs(decode(data).astype(int) - FILM).max() <= 1


def test_a_lossy_jpeg_is_the_one_that_the_file_holds() -> None:
    encoded = ENCODERS[JPEGBaseline8Bit](FILM)
    assert np.array_equal(decode(dicom(FILM, JPEGBaseline8Bit)), decode(encoded))
    wide = dicom(FILM.astype(np.uint16) * 16, JPEGExtended12Bit, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    assert np.abs(decode(wide).astype(int) - FILM).max() <= 1


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLosslessSV1], ids=name_of
)
def test_a_colour_capture_is_rgb_and_a_grey_one_of_three_channels_is_grey(syntax: UID) -> None:
    colours = np.stack([FILM, 255 - FILM, FILM // 2], axis=-1)
    assert np.array_equal(decode(dicom(colours, syntax)), colours)
    assert read_header(dicom(colours, syntax)).mode == "RGB"
    assert np.array_equal(decode(dicom(np.stack([FILM] * 3, axis=-1), syntax)), FILM)


# --- pydicom's samples

GREY = [
    *("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm"),
    *("CT_small.dcm", "dicomdirtests/77654033/CR1/6154", "dicomdirtests/98892001/CT5N/2062", "image_dfl.dcm"),
    *("examples_overlay.dcm",),
]
COLOUR = [
    *("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_jpeg.dcm"),
    *("SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm"),
    *("SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_rle.dcm", "SC_rgb_small_odd.dcm"),
    *("SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm"),
]


def displayed(sample: pydicom.Dataset) -> NDArray[np.float64]:
    """Grey levels by pydicom's transformations, of the ends that a display would have."""
    stored = sample.pixel_array
    shown = apply_voi_lut(apply_modality_lut(stored, sample), sample).astype(np.float64)
    if "WindowWidth" in sample:
        every = np.array([0, 2**sample.BitsStored - 1]) - sample.PixelRepresentation * 2 ** (sample.BitsStored - 1)
        ends = apply_modality_lut(every, sample)
    else:
        ends = np.array([0, 255]) if sample.BitsStored == 8 else np.array([shown.min(), shown.max()])
    levels: NDArray[np.float64] = 255 * (shown - ends[0]) / (ends[1] - ends[0])
    levels = 255 - levels if sample.PhotometricInterpretation == "MONOCHROME1" else levels
    if "PixelPaddingValue" in sample:
        levels[stored == sample.PixelPaddingValue] = 0
    return levels


@pytest.mark.usefixtures("of_any_modality")
@pytest.mark.parametrize("name", GREY)
def test_grey_samples_are_shown_as_pydicom_shows_them(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        levels = displayed(pydicom.dcmread(SAMPLES / name))
    assert np.abs(decode((SAMPLES / name).read_bytes()) - levels).max() <= 0.5 + 1e-6


@pytest.mark.usefixtures("of_any_modality")
@pytest.mark.parametrize("name", COLOUR)
def test_colour_samples_are_pydicoms(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sample = pydicom.dcmread(SAMPLES / name)
        expected = sample.pixel_array
    found = decode((SAMPLES / name).read_bytes())
    assert found.shape == expected.shape
    # libjpeg here and in Pillow smooth halved colours alike, and round them otherwise.
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.usefixtures("of_any_modality")
@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
def test_lossless_samples_are_the_uncompressed_one(name: str) -> None:
    plain = decode((SAMPLES / "MR_small.dcm").read_bytes())
    assert np.array_equal(decode((SAMPLES / name).read_bytes()), plain)


@pytest.mark.usefixtures("of_any_modality")
def test_a_lossless_jpeg_sample_is_the_image_it_was_made_of() -> None:
    lossless, plain = (decode((SAMPLES / f"SC_rgb_{name}.dcm").read_bytes()) for name in ("jpeg_gdcm", "rle"))
    assert np.array_equal(lossless, plain)


@pytest.mark.usefixtures("of_any_modality")
@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm", "JPEGLSNearLossless_16.dcm", "693_J2KI.dcm"])
def test_further_samples_are_read_whole(name: str) -> None:
    sample = pydicom.dcmread(SAMPLES / name)
    pixels = decode((SAMPLES / name).read_bytes())
    assert pixels.shape == (sample.Rows, sample.Columns)
    assert len(np.unique(pixels)) > 5


# --- what a header says


@pytest.mark.parametrize(
    ("attributes", "projection"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "RLO"}, "oblique"),
        ({"ViewPosition": ""}, "not said"),
        ({"ViewPosition": None}, "not said"),
        ({"ViewPosition": SECRET}, "not said"),
        ({"ViewPosition": "", "code": "272479007"}, "PA"),
        ({"ViewPosition": "", "code": "R-10206"}, "AP"),
        ({"ViewPosition": "", "code": SECRET}, "not said"),
    ],
)
def test_the_projection_is_the_headers(attributes: dict[str, Any], projection: str) -> None:
    code = attributes.pop("code", None)
    if code:
        item = pydicom.Dataset()
        item.CodeValue, item.CodeMeaning = code, SECRET
        attributes["ViewCodeSequence"] = pydicom.Sequence([item])
    found = read_header(dicom(FILM, **attributes))
    assert found.projection == projection
    assert ("a lateral film" in found.notes) == (projection == "lateral")


def test_what_is_unusual_is_noted_in_words_of_ours() -> None:
    data = dicom(FILM, BodyPartExamined=SECRET, PresentationIntentType="FOR PROCESSING", WindowCenter=1, WindowWidth=0)
    notes = ("not of the chest, by its header", "raw, not for presentation", "its window cannot be used")
    assert read_header(data).notes == notes
    assert np.array_equal(decode(data), FILM)


def test_a_window_of_the_header_is_applied_and_the_first_of_several() -> None:
    stored = FILM.astype(np.uint16) * 16
    data = dicom(stored, BitsStored=12, WindowCenter=["1024", "9"], WindowWidth=["1024", "9"])
    expected = (255 * ((stored - 1023.5) / 1023 + 0.5)).clip(0, 255)
    assert np.abs(decode(data) - expected).max() <= 0.5 + 1e-6
    window: dict[str, Any] = {"WindowCenter": "1024", "WindowWidth": "1024"}
    inverted = decode(dicom(stored, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **window))
    assert np.abs(255 - inverted - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=name_of)
def test_look_up_tables_of_the_header_are_applied_and_come_before_its_window(syntax: UID) -> None:
    stored = FILM.astype(np.uint16) * 16
    item = pydicom.Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 12])
    item.add_new(0x00283006, "US", list(range(4095, -1, -1)))
    data = dicom(
        stored, syntax, BitsStored=12, VOILUTSequence=pydicom.Sequence([item]), WindowCenter="9", WindowWidth="9"
    )
    assert np.abs(decode(data) - 255 * (1 - stored / 4095)).max() <= 0.5 + 1e-6


def test_padding_of_the_header_is_black() -> None:
    stored = np.pad(FILM.astype(np.int16) * 8, 4, constant_values=-2000)
    levels = decode(dicom(stored, PixelPaddingValue=-2000))
    assert levels[:4].max() == 0
    assert np.array_equal(levels[4:-4, 4:-4], decode(dicom(FILM.astype(np.int16) * 8)))


# --- what is refused


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"NumberOfFrames": 2}, "a DICOM file of several frames: wanted a single radiograph"),
        ({"Modality": "CT"}, "no radiograph: modality CT; wanted CR, DX, DR, RG"),
        ({"Modality": SECRET}, "no radiograph: none of these modalities in its header; wanted CR, DX, DR, RG"),
        (
            {"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            "no radiograph: none of these modalities in its header; wanted CR, DX, DR, RG",
        ),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            "a DICOM image that is neither MONOCHROME1, MONOCHROME2, RGB nor YBR",
        ),
        ({"BitsAllocated": 32, "BitsStored": 32}, "DICOM values of 32 bits in 32: wanted up to 16 in 8 or 16"),
        ({"BitsStored": 12}, "DICOM values of 12 bits in 8: wanted up to 16 in 8 or 16"),
        ({"Rows": 20_000, "Columns": 20_000}, "20000×20000 is more than 89,478,485 pixels"),
        ({"Rows": 91}, "truncated: 8,640 of 8,736 bytes of pixels"),
        ({"Rows": 0}, "truncated: its DICOM header ends before the image"),
    ],
)
def test_what_is_no_single_radiograph_is_refused_with_a_reason(attributes: dict[str, Any], reason: str) -> None:
    assert why_not(dicom(FILM, **attributes)) == reason


def test_a_radiograph_whose_modality_was_taken_is_known_by_its_class() -> None:
    for attributes in ({"Modality": ""}, {"Modality": None, "SOPClassUID": DigitalXRayImageStorageForPresentation}):
        assert np.array_equal(decode(dicom(FILM, **attributes)), FILM)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reportsi.dcm", "a DICOM file without an image (Basic Text SR)"),
        ("rtplan.dcm", "a DICOM file without an image (RT Plan)"),
        ("waveform_ecg.dcm", "a DICOM file without an image (12-lead ECG Waveform)"),
        ("dicomdirtests/DICOMDIR", "a DICOM file without an image (Media Storage Directory)"),
        ("CT_small.dcm", "no radiograph: modality CT; wanted CR, DX, DR, RG"),
        ("rtdose.dcm", "no radiograph: modality RTDOSE; wanted CR, DX, DR, RG"),
        ("meta_missing_tsyntax.dcm", "its DICOM transfer syntax is not read: none that the standard names"),
        ("no_meta.dcm", "not a JPEG, PNG or DICOM image"),
    ],
)
def test_samples_that_are_no_radiographs_are_refused_by_what_they_are(name: str, reason: str) -> None:
    assert why_not((SAMPLES / name).read_bytes()) == reason


def test_video_and_other_syntaxes_are_refused_by_name() -> None:
    data = dicom(FILM, encoded=bytes(8))
    mpeg = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100\0")
    assert why_not(mpeg).startswith("its DICOM transfer syntax is not read: ")


# --- without the extra


def test_without_the_extra_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(FILM)
    dicom_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    try:
        assert why_not(data) == "a DICOM file, which needs: pip install 'cxr[dicom]'"
        assert dicom_decoder() == ""
        assert decode(ENCODERS[JPEGBaseline8Bit](FILM)).shape == FILM.shape
    finally:
        dicom_decoder.cache_clear()


def test_the_decoder_says_the_major_versions_of_all_that_decodes() -> None:
    names = [part.rpartition("-")[0] for part in dicom_decoder().split()]
    assert names == ["dicom", "pydicom", "libjpeg_turbo", "charls", "openjpeg"]
    assert all(part.rpartition("-")[2].isdigit() for part in dicom_decoder().split())


def test_a_file_that_cannot_be_opened_does_not_begin_as_dicom(tmp_path: Any) -> None:
    (tmp_path / "film").write_bytes(dicom(FILM))
    assert begins_as_dicom(tmp_path / "film")
    assert not begins_as_dicom(tmp_path / "none")
    assert not begins_as_dicom(tmp_path)


# --- no word of a patient gets out


def said_of(read: Callable[[bytes], object], data: bytes) -> str:
    """What is read, or the error with all that led to it, as a traceback would have it."""
    try:
        return repr(read(data))
    except UnreadableImageError as error:
        return "".join(traceback.format_exception_only(error)) + repr(error.__context__)


@pytest.mark.parametrize("name", ["charset", "modality", "rows", "window", "cut", "pixels", "class"])
def test_nothing_that_the_file_says_is_in_an_error_a_warning_or_a_log(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = {
        "charset": lambda: dicom(FILM).replace(b"CHEST ", b"SECRET").replace(b"\x08\x00\x16\x00", b"\x08\x00\x05\x00"),
        "modality": lambda: dicom(FILM, Modality=SECRET),
        "rows": lambda: dicom(FILM).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00PN"),
        "window": lambda: dicom(FILM, VOILUTFunction=SECRET, WindowCenter="1", WindowWidth="2"),
        "cut": lambda: dicom(FILM)[:-8670],
        "pixels": lambda: dicom(FILM, JPEGLosslessSV1, encoded=encapsulate([b"SECRET" * 30])),
        "class": lambda: dicom(FILM, Rows=0, SOPClassUID="1.2.3.4"),
    }[name]()
    assert SECRET.encode() in data or name == "class"
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for read in (read_header, decode):
            said = said_of(read, data)
            assert SECRET not in said
    written = capfd.readouterr()
    assert (caplog.text, warned, written.out, written.err) == ("", [], "", "")


def test_pydicom_may_still_log_and_warn_for_others(caplog: pytest.LogCaptureFixture) -> None:
    decode(dicom(FILM))
    with pytest.warns(UserWarning, match="said by another"):
        pydicom.misc.warn_and_log("said by another")
    assert caplog.messages == ["said by another"]
