"""What a DICOM header says of a radiograph, and what is refused by it (ADR 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from featcache.dicom.elements import Elements
from featcache.dicom.greyscale import GreyScale, LookUp, Window
from featcache.errors import UnreadableImageError

Projection = Literal["PA", "AP", "lateral", "oblique", "not said"]

MODALITIES = ("CR", "DX", "DR", "RG")
"""Radiographs: computed, digital (by its defined term and by what some write), and a digitised film."""

OTHER_MODALITIES = (
    *("CT", "MR", "US", "NM", "PT", "MG", "XA", "RF", "OT", "SC", "ES", "XC", "GM", "SM", "OP", "OPT", "IO", "PX"),
    *("RTIMAGE", "RTDOSE", "RTSTRUCT", "RTPLAN", "SEG", "SR", "DOC", "PR", "KO", "ECG", "BMD", "IVUS", "REG"),
)
"""Terms that may be repeated to a user; any other text in that field might be anything."""

RADIOGRAPH_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1"))
"""Computed and digital radiography: what stands for the modality where anonymisation has taken that."""

PROJECTIONS: dict[str, Projection] = {
    "PA": "PA",
    "AP": "AP",
    "LL": "lateral",
    "RL": "lateral",
    "LAT": "lateral",
    "LATERAL": "lateral",
    "LLO": "oblique",
    "RLO": "oblique",
    "LLD": "not said",
    "RLD": "not said",
    "272479007": "PA",
    "399348003": "AP",
    "399067008": "lateral",
    "399173006": "lateral",
    "399198007": "lateral",
    "R-10214": "PA",
    "R-10206": "AP",
    "R-10236": "lateral",
    "R-10232": "lateral",
}
"""View Position (0018,5101), and the codes of PS3.16 CID 4010 in SNOMED CT and its predecessor."""

CHEST = ("", "CHEST", "THORAX", "LUNG", "CHESTABDOMEN", "PORT CHEST")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, kw_only=True, eq=False)
class DicomHeader:
    """What a DICOM radiograph says of itself, as far as its pixels need it.

    Attributes:
        rows: pixels down.
        columns: pixels across.
        syntax: UID of the transfer syntax.
        photometric: MONOCHROME1, MONOCHROME2, RGB or YBR_…
        planar: whether colours follow one another plane by plane.
        bits_allocated: 8 or 16, bits of a pixel.
        signed: whether values are.
        scale: the grey levels.
        projection: which way the rays went, as far as the header says.
        notes: what is unusual of it.
    """

    rows: int
    columns: int
    syntax: str
    photometric: str
    planar: bool
    bits_allocated: int
    signed: bool
    scale: GreyScale
    projection: Projection
    notes: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Values a pixel: 1 of a grey image, 3 of a colour one."""
        return 3 if self.photometric in COLOURS else 1


def parse_header(elements: Elements, max_pixels: int) -> DicomHeader:
    """Parse the header of a radiograph.

    Raises:
        UnreadableImageError: no single radiograph of 8 to 16 bits, or more than ``max_pixels``.
    """
    rows, columns = elements.integer("rows"), elements.integer("columns")
    if not rows * columns:
        kind = _kind(elements.sop_class)
        if "Image" in kind:
            raise UnreadableImageError("truncated: its DICOM header ends before the image")
        raise UnreadableImageError(f"a DICOM file without an image ({kind})")
    _require_radiograph(elements.text("modality"), elements.sop_class)
    if elements.decimal("frames", 1) > 1:
        raise UnreadableImageError("a DICOM file of several frames: wanted a single radiograph")
    if rows * columns > max_pixels:
        raise UnreadableImageError(f"{columns}×{rows} is more than {max_pixels:,} pixels")
    photometric, samples = elements.text("photometric"), elements.integer("samples", 1)
    wanted = {1: ("MONOCHROME1", "MONOCHROME2"), 3: COLOURS}
    if photometric not in wanted.get(samples, ()):
        raise UnreadableImageError("a DICOM image that is neither MONOCHROME1, MONOCHROME2, RGB nor YBR")
    allocated, stored = elements.integer("allocated"), elements.integer("stored")
    lowest = elements.integer("high_bit", stored - 1) + 1 - stored
    if allocated not in (8, 16) or not 1 <= stored <= allocated or not 0 <= lowest <= allocated - stored:
        raise UnreadableImageError(f"DICOM values of {stored} bits in {allocated}: wanted up to 16 in 8 or 16")
    if samples == 3 and stored != 8:
        raise UnreadableImageError(f"a DICOM colour image of {stored} bits: wanted 8")
    signed = elements.integer("signed") == 1
    voi = _look_up(elements, "voi_lut", signed=_measures_negatives(elements, signed=signed)) or _window(elements)
    scale = GreyScale(
        bits_stored=stored,
        lowest_bit=lowest,
        **_rescale(elements),
        modality=_look_up(elements, "modality_lut", signed=signed),
        voi=voi,
        padding=_padding(elements, signed=signed),
        inverted=photometric == "MONOCHROME1",
    )
    return DicomHeader(
        rows=rows,
        columns=columns,
        syntax=elements.syntax,
        photometric=photometric,
        planar=elements.integer("planar") == 1,
        bits_allocated=allocated,
        signed=signed,
        scale=scale,
        projection=_projection(elements),
        notes=tuple(_notes(elements, scale)),
    )


def _kind(sop_class: str) -> str:
    """What an object without pixels is: by the name of its class in the standard, never by words of the file."""
    from pydicom.uid import UID

    uid = UID(sop_class)
    return uid.name.removesuffix(" Storage") if uid.is_valid and uid.name != uid else "of a kind unknown"


def _require_radiograph(modality: str, sop_class: str) -> None:
    if modality in MODALITIES or (not modality and sop_class in RADIOGRAPH_CLASSES):
        return
    other = f"modality {modality}" if modality in OTHER_MODALITIES else "none of these modalities in its header"
    raise UnreadableImageError(f"no radiograph: {other}; wanted {', '.join(MODALITIES)}")


def _projection(elements: Elements) -> Projection:
    item = elements.first_item("view_code")
    said = elements.text("view_position")
    return PROJECTIONS.get(said, PROJECTIONS.get(item.text("code"), "not said") if item else "not said")


def _notes(elements: Elements, scale: GreyScale) -> list[str]:
    """What is unusual of a radiograph that is used nevertheless."""
    notes = ["a lateral film"] if _projection(elements) == "lateral" else []
    notes += ["not of the chest, by its header"] if elements.text("body_part") not in CHEST else []
    notes += ["raw, not for presentation"] if elements.text("intent") == "FOR PROCESSING" else []
    notes += ["its window cannot be used"] if scale.voi is None and "width" in elements else []
    return notes


def _rescale(elements: Elements) -> dict[str, float]:
    """Slope and intercept, where both are there and do not make all values one."""
    slope, intercept = elements.decimal("slope", 0.0), elements.decimal("intercept", math.nan)
    return {} if slope == 0 or math.isnan(intercept) else {"slope": slope, "intercept": intercept}


def _measures_negatives(elements: Elements, *, signed: bool) -> bool:
    """Whether what goes into the VOI look-up table may be negative, so that its first input is signed too."""
    return "modality_lut" not in elements and (signed or _rescale(elements).get("intercept", 0) < 0)


def _padding(elements: Elements, *, signed: bool) -> tuple[int, int] | None:
    if "padding" not in elements:
        return None
    one = elements.integer("padding", signed=signed)
    other = elements.integer("padding_limit", one, signed=signed)
    return min(one, other), max(one, other)


def _window(elements: Elements) -> Window | None:
    """The first window; None where there is none, or one that shows nothing."""
    centre, width = elements.decimal("centre", math.nan), elements.decimal("width", math.nan)
    function = elements.text("function") or "LINEAR"
    if math.isnan(centre) or math.isnan(width) or function not in WINDOWS:
        return None
    if width < 1 if function == "LINEAR" else width <= 0:
        return None
    return Window(centre=centre, width=width, function=cast("Literal['LINEAR', 'LINEAR_EXACT', 'SIGMOID']", function))


def _look_up(elements: Elements, name: str, *, signed: bool) -> LookUp | None:
    """The first look-up table of a sequence; None where there is none.

    Raises:
        UnreadableImageError: it has fewer entries than it says.
    """
    item = elements.first_item(name)
    if item is None:
        return None
    descriptor, entries = item.words("descriptor").tolist(), item.words("entries")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise UnreadableImageError("a DICOM look-up table without a sound descriptor")
    length, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    first -= 2**16 if signed and first >= 2**15 else 0
    raw = item.raw("entries")
    if bits == 8 and len(raw) < 2 * length:
        # Entries of 8 bits have a word each, or half of one.
        entries = np.frombuffer(raw, np.uint8)
    if len(entries) < length:
        raise UnreadableImageError("a DICOM look-up table with fewer entries than it says")
    return LookUp(first=first, entries=entries[:length].astype(np.float64), bits=bits)
