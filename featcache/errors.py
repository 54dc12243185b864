"""What can go wrong that a user can put right.

Every message says what, where, wanted and got, and the way out, in one line. ``cli.main`` prints it in red
and exits 1; anything that is not a ``CxrError`` is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class CxrError(Exception):
    """Something the user can put right: the message says how."""


class SettingsError(CxrError):
    """A setting in ``cxr.toml``, the environment or a flag is unknown or of the wrong type."""


class UsageError(SettingsError):
    """A flag's value is wrong: wrong usage, as an unknown flag is."""


class DataError(CxrError):
    """The images, their folders or their table are not what the command needs."""


class UnreadableImageError(DataError):
    """An image that cannot be read; the message is the reason shown to the user."""


class BackboneError(CxrError):
    """A backbone is unknown, or its weights cannot be had or do not fit it."""


class StoreError(CxrError):
    """A feature store is missing, damaged, or holds something else than what was asked for."""


class EngineError(CxrError):
    """A process that computed features died again and again, or could not be started."""


class RunError(CxrError):
    """A run is missing, damaged, or cannot be made from the data given."""


class OutdatedRunError(RunError):
    """A run was written by another version of cxr, in a form that this one does not read."""


class BundleError(CxrError):
    """A bundle is damaged, was tampered with, or asks for more than it may."""


def nearest(wanted: str, known: Iterable[str], count: int = 3) -> str:
    """Offer the nearest valid names: ``"; did you mean a, b?"``, or nothing where none is near."""
    close = difflib.get_close_matches(wanted, sorted(set(known)), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def is_printable(text: str) -> bool:
    """Whether text can be shown on a terminal without moving its cursor, changing its colours or turning words round.

    Unlike ``str.isprintable``, spaces of any width may stand in it.
    """
    return all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text)


def printable(text: str) -> str:
    """Text with U+FFFD for each character that ``is_printable`` refuses."""
    return "".join(letter if is_printable(letter) else "\N{REPLACEMENT CHARACTER}" for letter in text)
