"""What one check of ``cxr doctor`` found, and how a check that breaks becomes a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from featcache.errors import CxrError

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of what ``cxr doctor`` prints.

    Attributes:
        checked: what was looked at, in a word.
        state: ``ok``; ``warning`` where the commands work, but not as they might; ``failed`` where one would stop.
        found: how it is.
        remedy: the way out; empty where all is well, and only there.
    """

    checked: str
    state: State = "ok"
    found: str
    remedy: str = ""

    def in_words(self) -> str:
        """State, what was looked at and what was found, in a line; the way out below it."""
        way_out = f"\n{'':9}→ {self.remedy}" if self.remedy else ""
        return f"{self.state:8} {self.checked:8} {self.found}{way_out}"


def guarded(checked: str, remedy: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check; whatever it raises is its last finding, so that one broken part does not hide the others.

    Args:
        checked: what is looked at.
        remedy: the way out where an error names none; a ``CxrError`` names it behind its last semicolon.
        check: gives the findings.
    """
    try:
        yield from check()
    except CxrError as error:
        found, _, way_out = str(error).rpartition("; ")
        yield Finding(checked=checked, state="failed", found=found or way_out, remedy=way_out if found else remedy)
    except ImportError as error:
        again = remedy if "pip install" in remedy else f"install {error.name} anew, or cxr with all that it needs"
        yield Finding(checked=checked, state="failed", found=first_line(error), remedy=again)
    except Exception as error:  # noqa: BLE001 - a damaged installation raises whatever it likes
        yield Finding(checked=checked, state="failed", found=first_line(error), remedy=remedy)


def first_line(error: BaseException) -> str:
    """An error's type and the first line of what it says, for those that are not ours."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
