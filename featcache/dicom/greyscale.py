"""Stored values of a DICOM radiograph to the grey levels of a display, as DICOM's grayscale pipeline has them.

Stored value → modality transformation → VOI transformation (a look-up table or a window) → black to white; in a
MONOCHROME1 image the least value is white. All of it is done on the few stored values that there can be, not on the
pixels: so it takes no memory to speak of, whatever the image's size. PS3.3 is that part of the DICOM standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LookUp:
    """A look-up table of a DICOM header, PS3.3 C.11.1.1.

    Attributes:
        first: the value that the first entry stands for; those below it get the first entry, those beyond the last one.
        entries: [n], at least one.
        bits: of an entry: 2**bits - 1 is the largest there may be.
    """

    first: int
    entries: Values
    bits: int

    def __call__(self, values: Values) -> Values:
        """Look values up, [n] to [n]."""
        found: Values = self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)]
        return found


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window of values that is shown from black to white, PS3.3 C.11.2.1.

    Attributes:
        centre: its middle.
        width: its width, 1 or more if LINEAR, else more than 0.
        function: LINEAR, whose width counts both ends; LINEAR_EXACT, whose width is a length; or SIGMOID.
    """

    centre: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

    def __call__(self, values: Values) -> Values:
        """Place values between black, 0, and white, 1."""
        with np.errstate(over="ignore"):
            match self.function:
                case "LINEAR" if self.width == 1:
                    return (values > self.centre - 0.5).astype(np.float64)
                case "LINEAR":
                    return ((values - (self.centre - 0.5)) / (self.width - 1) + 0.5).clip(0, 1)
                case "LINEAR_EXACT":
                    return ((values - self.centre) / self.width + 0.5).clip(0, 1)
                case "SIGMOID":
                    sigmoid: Values = expit(4 * (values - self.centre) / self.width)
                    return sigmoid


@dataclass(frozen=True, kw_only=True, eq=False)
class GreyScale:
    """What a header says of the grey levels.

    Attributes:
        bits_stored: bits of a value, 1 to 16.
        lowest_bit: where they begin in the bits of a pixel; what stands in the others (overlays) is no part of a value.
        slope: of the modality transformation, where it is no look-up table.
        intercept: the same.
        modality: that look-up table.
        voi: how the values are shown; None where the header does not say.
        padding: least and greatest of the stored values that fill the frame where there is no film.
        inverted: the least value is white (MONOCHROME1).
    """

    bits_stored: int
    lowest_bit: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    modality: LookUp | None = None
    voi: LookUp | Window | None = None
    padding: tuple[int, int] | None = None
    inverted: bool = False


def grey_levels(pixels: NDArray[np.integer], scale: GreyScale) -> NDArray[np.uint8]:
    """Grey levels of pixels as they are stored, [H, W] to [H, W]; 0 is black, padding too.

    Where the header says nothing of how to show them, values of 8 bits and fewer are shown as they are, as those of a
    PNG; of wider ones the least in the image is black and the greatest white, since detectors fill an unknown part of
    their 16 bits.

    Args:
        pixels: [H, W] of 8 or 16 bits, unsigned or signed as the values are.
        scale: what the header says.
    """
    bits = 8 * pixels.dtype.itemsize
    codes = np.arange(2**bits, dtype=f"u{pixels.dtype.itemsize}")
    values = _stored(codes, pixels.dtype, scale)
    padding = np.zeros(len(codes), bool)
    if scale.padding is not None:
        padding = (scale.padding[0] <= values) & (values <= scale.padding[1])
    image = np.ascontiguousarray(pixels).view(codes.dtype)
    physical = _physical(values.astype(np.float64), scale)
    if isinstance(scale.voi, LookUp):
        shown = scale.voi(physical) / (2**scale.voi.bits - 1)
    elif scale.voi is not None:
        shown = scale.voi(physical)
    elif scale.bits_stored <= 8:
        shown = _between(physical, physical)
    else:
        there = np.zeros(len(codes), bool)
        there[image.ravel()] = True
        shown = _between(physical, physical[there & ~padding])
    shown = 1 - shown if scale.inverted else shown
    levels = np.where(padding, 0, np.rint(255 * shown.clip(0, 1))).astype(np.uint8)
    return levels[image]


def _stored(codes: NDArray[np.unsignedinteger], dtype: np.dtype[np.integer], scale: GreyScale) -> NDArray[np.int64]:
    """The stored value that every code of a pixel means, [n]; bits outside of it are dropped, its sign extended."""
    unused = 8 * dtype.itemsize - scale.bits_stored
    if unused <= 0:
        return codes.view(dtype).astype(np.int64)
    # To the top, which drops what stands above, and down again, which drops what stands below and extends the sign.
    moved = np.left_shift(codes, unused - scale.lowest_bit, dtype=codes.dtype)
    values: NDArray[np.int64] = np.right_shift(moved.view(dtype), unused).astype(np.int64)
    return values


def _physical(values: Values, scale: GreyScale) -> Values:
    """What the modality measured, of stored values; PS3.3 C.11.1."""
    return scale.slope * values + scale.intercept if scale.modality is None else scale.modality(values)


def _between(values: Values, ends: Values) -> Values:
    """Values from the least of ``ends``, 0, to the greatest, 1; all 0 where there is nothing between."""
    if not len(ends) or ends.min() == ends.max():
        return np.zeros_like(values)
    placed: Values = (values - ends.min()) / (ends.max() - ends.min())
    return placed
