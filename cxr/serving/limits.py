"""How much a request may bring, and what is refused before a pixel of it is decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cxr.serving.problems import Problem
from featcache.decode import MAX_PIXELS, read_header
from featcache.dicom import is_dicom
from featcache.errors import UnreadableImageError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

LEAST_SIDE, MOST_SIDE = 32, 10_000
"""Pixels: no radiograph is smaller across, nor larger along."""

MOST_SCANS = 100
"""Passes over a progressive JPEG. Encoders make some ten; each costs as long as the whole image, for a few bytes."""

MOST_SCANNED = 15
"""All the passes together, in passes over the largest film there may be: some two seconds of a decoder."""

MPF_BYTES = 2**20
"""Where a phone's JPEG announces its further pictures: behind EXIF and its thumbnail."""

SEGMENT_OR_END = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""The next marker in a JPEG's entropy-coded data: there 0xFF is followed by 0 or stands for a restart."""

SCAN, START, END = 0xDA, 0xD8, 0xD9
"""Second bytes of the markers that matter here."""

DISGUISES = (b"MZ", b"\x7fELF", b"%PDF", b"PK\x03\x04", b"GIF8", b"<", b"#!")
"""How a DICOM file begins whose preamble makes something else of it; imaging software leaves zeros there."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is taken, and how long it may take.

    Attributes:
        max_bytes: of a request's body.
        max_pixels: of a film.
        max_files: films a request; ``files_at_once`` is what has room.
        queue: films that are under way, from the first byte of their request to its answer.
        timeout: seconds for a request, from its first byte to its answer.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 40_000_000
    max_files: int = 16
    queue: int = 128
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_files, self.queue) < 1 or not self.timeout > 0:
            raise ValueError(f"Limits: wanted positive numbers, got {self}")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"Limits: wanted max_pixels up to {MAX_PIXELS}, got {self.max_pixels}")

    @property
    def files_at_once(self) -> int:
        """Films a request: more than may be under way would be told to come again for ever."""
        return min(self.max_files, self.queue)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of all uploads that are held at once: a bound on memory that many small films never meet."""
        return 8 * self.max_bytes


def require_film(data: bytes, limits: Limits) -> None:
    """Refuse what is no film, or would take more room or time to decode than a film does.

    Raises:
        Problem: 415 for another kind of file, 422 for a film that is damaged, too small, too large, or more than that.
    """
    if not data:
        raise Problem(422, "the file is empty")
    if not data.startswith((JPEG, PNG)) and not is_dicom(data):
        raise Problem(415, "not a JPEG, PNG or DICOM file, whatever its name says")
    try:
        header = read_header(data)
    except UnreadableImageError as error:
        raise Problem(422, str(error)) from error
    width, height = header.width, header.height
    if min(width, height) < LEAST_SIDE:
        raise Problem(422, f"{width}×{height} pixels are too few for a radiograph: wanted {LEAST_SIDE} or more a side")
    if max(width, height) > MOST_SIDE or width * height > limits.max_pixels:
        most = f"{limits.max_pixels / 1e6:g} million pixels and {MOST_SIDE:,} a side"
        raise Problem(422, f"{width}×{height} pixels are too many: wanted up to {most}")
    if data.startswith(JPEG):
        _require_jpeg_alone(data, min(MOST_SCANS, MOST_SCANNED * limits.max_pixels // (width * height)))
    elif data.startswith(PNG):
        _require_png_alone(data)
    elif data.startswith(DISGUISES):
        raise Problem(422, "a DICOM file that begins as another kind of file")


def _require_jpeg_alone(data: bytes, most_scans: int) -> None:
    """Refuse a JPEG of too many scans, and one with something behind its end (ITU T.81, B.1)."""
    place, scans = 2, 0
    while True:
        found = SEGMENT_OR_END.search(data, place)
        if found is None:
            # It ends early: what is missing is for the decoder to say.
            return
        marker, place = data[found.start() + 1], found.end()
        if marker == END:
            break
        if marker == START:
            # No length follows it, as it does all others that are found.
            continue
        if marker == SCAN and (scans := scans + 1) > most_scans:
            raise Problem(422, f"a JPEG of more than {most_scans} scans, which is too many for its size")
        place += max(int.from_bytes(data[place : place + 2], "big"), 2)
    if not _is_of_a_phone(data, place):
        _require_nothing_behind(data, place)


def _is_of_a_phone(data: bytes, end: int) -> bool:
    """Whether what stands behind a JPEG's end is what phones put there; no decoder looks at it.

    That is a second picture, announced before the first (CIPA DC-007, multi-picture format), or Samsung's trailer.
    """
    rest = data[end:].lstrip(b"\0")
    return (b"MPF\0" in data[:MPF_BYTES] and rest.startswith(JPEG)) or (data.endswith(b"SEFT") and b"SEFH" in rest)


def _require_png_alone(data: bytes) -> None:
    """Refuse a PNG with something behind its end (ISO 15948, 5.3)."""
    place = len(PNG)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        place += length + 12
        if kind == b"IEND":
            _require_nothing_behind(data, place)
            return


def _require_nothing_behind(data: bytes, end: int) -> None:
    # Some devices fill the last block up.
    if data[end:].strip(b"\x00\xff\r\n\x1a"):
        raise Problem(
            422,
            "there is something behind the image's end, as in a file that is two things at once: save the image again",
        )
