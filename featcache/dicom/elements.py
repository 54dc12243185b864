"""The elements of a DICOM file that are wanted, and no others; what pydicom says of them stays in here.

Of a header nothing is parsed but what pixels need and which way the rays went: no patient, no date, no name of a place.
No text of a file is ever repeated. pydicom's messages do repeat it, so they end here.
"""

from __future__ import annotations

import io
import logging
import threading
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.errors import UnreadableImageError
from featcache.warning_filters import decoders_warnings

if TYPE_CHECKING:
    from pydicom import Dataset

JPEG = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in ("50", "51", "57", "70"))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in ("80", "81"))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in ("90", "91", "201", "202", "203"))
RLE = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED})
"""Transfer syntaxes that are read; JPEG with its lossless form, JPEG 2000 with its high-throughput one."""

MAX_READS = 100_000
"""Twice the elements that a header may have: a radiograph has some hundred, and each costs memory."""

MAX_INFLATED = 288 * 2**20
"""Bytes that a deflated file may become: room for the largest image there may be, in three colours or 16 bits."""

TAGS = {
    "modality": 0x00080060,
    "intent": 0x00080068,
    "body_part": 0x00180015,
    "view_position": 0x00185101,
    "view_code": 0x00540220,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "planar": 0x00280006,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "allocated": 0x00280100,
    "stored": 0x00280101,
    "high_bit": 0x00280102,
    "signed": 0x00280103,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "centre": 0x00281050,
    "width": 0x00281051,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "function": 0x00281056,
    "modality_lut": 0x00283000,
    "voi_lut": 0x00283010,
    "pixels": 0x7FE00010,
}
"""All of a file that is read."""

PARTS = {
    "class_of_file": 0x00020002,
    "syntax": 0x00020010,
    "code": 0x00080100,
    "descriptor": 0x00283002,
    "entries": 0x00283006,
}
"""What is read of the file's preface, and of the items of sequences."""

FIRST_PIXELS = 0x7FE00008

T = TypeVar("T")

_reading = threading.local()


def quietly(otherwise: str, call: Callable[[], T]) -> T:
    """Let nothing that pydicom and its decoders say of a file get out: no exception, no warning, no line of a log.

    The log is filtered for this thread alone, since pydicom may have other users in this process.

    Raises:
        UnreadableImageError: with ``otherwise``, in place of whatever they raise.
    """
    logging.getLogger("pydicom").addFilter(_not_while_reading)
    _reading.now = True
    reason = otherwise
    try:
        with decoders_warnings():
            return call()
    except UnreadableImageError:
        raise
    except MemoryError:
        reason = "not enough memory to decode it"
    except Exception:  # noqa: BLE001, S110 - hostile bytes make pydicom raise anything, and its text may be a patient's
        pass
    finally:
        _reading.now = False
    # Out here, so that no chain of exceptions holds that text either.
    raise UnreadableImageError(reason)


def _not_while_reading(_record: logging.LogRecord) -> bool:
    return not getattr(_reading, "now", False)


class _Bounded(io.BytesIO):
    """Bytes that are read at most so many times: elements of a few bytes would become objects of hundreds."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise UnreadableImageError(f"a DICOM header of more than {MAX_READS // 2:,} elements")
        return super().read(size)


class Elements:
    """The wanted elements of a file, or of an item in it, by the names in ``TAGS``; parsed when they are asked for.

    Attributes:
        syntax: UID of the transfer syntax.
        sop_class: UID of what kind of object the file says to be.
        order: ``little`` or ``big``, of the bytes of a number.
    """

    def __init__(self, found: Dataset, syntax: str, sop_class: str = "") -> None:
        """``found`` is what pydicom found, in this transfer syntax, in a file of this class."""
        self._found = found
        self.sop_class = sop_class
        self.syntax = syntax
        self.order = "big" if syntax == BIG_ENDIAN else "little"

    def __contains__(self, name: str) -> bool:
        """Whether the element is there and not empty."""
        return TAGS[name] in self._found and bool(self._found.get_item(TAGS[name]).value)

    def raw(self, name: str) -> bytes:
        """The value as the file has it; nothing where it has none."""
        return _raw(self._found, TAGS[name] if name in TAGS else PARTS[name])

    def text(self, name: str) -> str:
        """The first text of the value, in capitals."""
        return self.raw(name).split(b"\\")[0].decode("ascii", "ignore").strip(" \0").upper()

    def are_words(self, name: str) -> bool:
        """Whether bytes of the value stand two by two in the file's byte order, by its type (OW)."""
        return str(self._found.get_item(TAGS[name]).VR) == "OW"

    def integer(self, name: str, default: int = 0, *, signed: bool = False) -> int:
        """The first number of two bytes."""
        value = self.raw(name)[:2]
        little = self.order == "little"
        return int.from_bytes(value, "little" if little else "big", signed=signed) if len(value) == 2 else default

    def decimal(self, name: str, default: float) -> float:
        """The first number that is written as text; the default where there is none, or one that no radiograph has."""
        try:
            value = float(self.text(name))
        except ValueError:
            return default
        return value if abs(value) < 1e12 else default

    def words(self, name: str) -> NDArray[np.uint16]:
        """Numbers of two bytes, [n]."""
        value = self.raw(name)
        return np.frombuffer(value[: len(value) // 2 * 2], "<u2" if self.order == "little" else ">u2")

    def first_item(self, name: str) -> Elements | None:
        """The first item of a sequence."""
        items = self._found[TAGS[name]].value if name in self else None
        return Elements(items[0], self.syntax) if items else None


def elements_of(data: bytes, *, pixels: bool) -> Elements:
    """The wanted elements of a DICOM file, with the pixel data or without; to be called ``quietly``.

    Raises:
        UnreadableImageError: another transfer syntax, or more elements or bytes than a radiograph has.
    """
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    file = _Bounded(data)
    file.seek(132)
    preface = Elements(read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2), "")
    uid = UID(preface.text("syntax"))
    if uid not in NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}:
        # Names come from the standard's own list, never from the file.
        name = uid.name if uid.is_valid and not uid.is_private and uid.name != uid else "none that the standard names"
        raise UnreadableImageError(f"its DICOM transfer syntax is not read: {name}")
    if uid == DEFLATED:
        file = _Bounded(_inflated(data[file.tell() :]))
    found = read_dataset(
        file,
        uid.is_implicit_VR,
        uid.is_little_endian,
        stop_when=None if pixels else lambda tag, *_: tag >= FIRST_PIXELS,
        specific_tags=list(TAGS.values()),
    )
    return Elements(found, str(uid), preface.text("class_of_file"))


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = inflater.decompress(data, MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise UnreadableImageError(f"deflated from more than {MAX_INFLATED // 2**20} MiB")
    return whole


def _raw(found: Dataset, tag: int) -> bytes:
    value = found.get_item(tag).value if tag in found else None
    return value if isinstance(value, bytes) else b""
