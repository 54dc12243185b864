"""Grey levels against pydicom's own transformations, and against the formulas of the standard by hand."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from dicom_files import header
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, Sequence
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from featcache.dicom.greyscale import GreyScale, LookUp, Window, grey_levels

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (40, 50), np.uint16)
SIGNED = RNG.integers(-2048, 2048, (40, 50)).astype(np.int16)


def look_up(first: int, entries: NDArray[Any], bits: int) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries.tolist())
    return item


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.0, -1024.0), (-1.0, 4095.0)])
@pytest.mark.parametrize("stored", [TWELVE, SIGNED], ids=["unsigned", "signed"])
def test_windows_and_rescaling_are_pydicoms(
    stored: NDArray[Any], slope: float, intercept: float, function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
) -> None:
    film = header(
        stored,
        BitsStored=12,
        WindowCenter=700.5,
        WindowWidth=1500,
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    shown = apply_voi_lut(apply_modality_lut(stored, film), film)
    ends = apply_modality_lut(np.array([0, 4095] if stored is TWELVE else [-2048, 2047], stored.dtype), film)
    # pydicom shows from the least to the greatest value there may be; where the slope is negative, the other way round.
    expected = 255 * (shown - ends[0]) / (ends[1] - ends[0])
    scale = GreyScale(
        bits_stored=12,
        slope=slope,
        intercept=intercept,
        voi=Window(centre=700.5, width=1500, function=function),
    )
    assert np.abs(grey_levels(stored, scale) - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("first", "bits"), [(0, 8), (300, 12), (1000, 16)])
def test_voi_look_up_tables_are_a_plain_loops(first: int, bits: int) -> None:
    entries = np.sort(RNG.integers(0, 2**bits, 2000))
    # A loop, since pydicom's tables of 8 bits look their indices up in 8 bits too.
    looked_up = [int(entries[min(max(value - first, 0), len(entries) - 1)]) for value in TWELVE.ravel().tolist()]
    expected = 255 * np.reshape(looked_up, TWELVE.shape) / (2**bits - 1)
    scale = GreyScale(bits_stored=12, voi=LookUp(first=first, entries=entries.astype(np.float64), bits=bits))
    assert np.abs(grey_levels(TWELVE, scale) - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("first", [0, 500, -100])
def test_modality_look_up_tables_are_pydicoms(first: int) -> None:
    stored = SIGNED if first < 0 else TWELVE
    entries = RNG.permutation(3000).astype(np.uint16)
    film = header(
        stored,
        BitsStored=12,
        ModalityLUTSequence=Sequence([look_up(first, entries, 16)]),
        WindowCenter=1500,
        WindowWidth=2000,
    )
    film.ModalityLUTSequence[0].ModalityLUTType = "US"
    expected = 255 * apply_voi_lut(apply_modality_lut(stored, film), film) / 65535
    scale = GreyScale(
        bits_stored=12,
        modality=LookUp(first=first, entries=entries.astype(np.float64), bits=16),
        voi=Window(centre=1500, width=2000, function="LINEAR"),
    )
    assert np.abs(grey_levels(stored, scale) - expected).max() <= 0.5 + 1e-6


@given(centre=st.floats(-5000, 5000), width=st.floats(1, 10_000), value=st.integers(-2048, 2047))
def test_a_linear_window_is_the_standards_pseudo_code(centre: float, width: float, value: int) -> None:
    # PS3.3 C.11.2.1.2.1, its lines in order, from 0 to 1.
    if value <= centre - 0.5 - (width - 1) / 2:
        expected = 0.0
    elif value > centre - 0.5 + (width - 1) / 2:
        expected = 1.0
    else:
        expected = (value - (centre - 0.5)) / (width - 1) + 0.5
    assert Window(centre=centre, width=width, function="LINEAR")(np.array([float(value)])) == pytest.approx(expected)


@given(centre=st.floats(-5000, 5000), width=st.floats(1, 10_000), value=st.integers(-2048, 2047))
def test_a_sigmoid_window_is_the_standards_formula(centre: float, width: float, value: int) -> None:
    # PS3.3 C.11.2.1.3.1
    exponent = -4 * (value - centre) / width
    expected = 1 / (1 + math.exp(exponent)) if exponent < 700 else 0.0
    assert Window(centre=centre, width=width, function="SIGMOID")(np.array([float(value)])) == pytest.approx(expected)


def test_monochrome1_is_monochrome2_inverted() -> None:
    voi = Window(centre=2048, width=4096, function="LINEAR")
    plain, inverted = (grey_levels(TWELVE, GreyScale(bits_stored=12, voi=voi, inverted=one)) for one in (False, True))
    assert np.abs(255 - plain.astype(int) - inverted).max() <= 1


def test_without_a_window_eight_bits_are_shown_as_they_are() -> None:
    stored = RNG.integers(60, 200, (30, 40), np.uint8)
    assert np.array_equal(grey_levels(stored, GreyScale(bits_stored=8)), stored)
    assert np.array_equal(grey_levels(stored, GreyScale(bits_stored=8, inverted=True)), 255 - stored)
    assert np.array_equal(grey_levels(stored.astype(np.uint16), GreyScale(bits_stored=8)), stored)
    assert np.array_equal(grey_levels(stored, GreyScale(bits_stored=8, slope=-1, intercept=255)), 255 - stored)


def test_without_a_window_wider_values_reach_from_the_least_to_the_greatest() -> None:
    stored = RNG.integers(300, 1500, (30, 40), np.uint16)
    stored[0, :2] = 300, 1500
    expected = np.rint(255 * (stored - 300.0) / 1200)
    assert np.array_equal(grey_levels(stored, GreyScale(bits_stored=16)), expected)


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_does_not_count(inverted: bool) -> None:
    stored = RNG.integers(300, 1500, (30, 40), np.uint16)
    stored[0, :2] = 300, 1500
    framed = np.pad(stored, 5, constant_values=65535)
    framed[0, 0] = 65530
    scale = GreyScale(bits_stored=16, padding=(65530, 65535), inverted=inverted)
    levels = grey_levels(framed, scale)
    assert np.array_equal(levels[5:-5, 5:-5], grey_levels(stored, GreyScale(bits_stored=16, inverted=inverted)))
    assert levels[:5].max() == levels[:, -5:].max() == 0


@pytest.mark.parametrize("lowest", [0, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_bits_beside_a_value_are_no_part_of_it(lowest: int, dtype: type[np.integer]) -> None:
    values = (TWELVE if dtype is np.uint16 else SIGNED).astype(np.int64)
    other = RNG.integers(0, 2**16, values.shape) & ~(0xFFF << lowest)
    pixels = (((values & 0xFFF) << lowest) | other).astype(np.uint16).view(dtype)
    scale = GreyScale(bits_stored=12, lowest_bit=lowest)
    assert np.array_equal(grey_levels(pixels, scale), grey_levels(values.astype(dtype), GreyScale(bits_stored=12)))


def test_an_image_of_one_value_and_one_of_padding_alone_are_black() -> None:
    flat = np.full((4, 5), 700, np.uint16)
    assert grey_levels(flat, GreyScale(bits_stored=16)).max() == 0
    assert grey_levels(flat, GreyScale(bits_stored=16, padding=(700, 700))).max() == 0
