"""What a person or a program sees of ``cxr``: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from featcache.check import Quarantined
    from heads.reporting.terminal_curves import TerminalCurves


def console(*, stderr: bool) -> Console:
    """A console on stdout or stderr; a file or a pipe, which has no width, gives tables room."""
    made = Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 180
    return made


out, err = console(stderr=False), console(stderr=True)

IN_ASCII = str.maketrans("▸·…–−×±≥≤→←┊│─", ">*.--x~><><:|-")
"""What stands for the characters of our own words where a terminal knows ASCII alone; each as wide as it was."""

CURVE_STYLES = {"train": "#d75f00", "val": "#0087ff", "kept": "dim", "axis": ""}
"""Seen on a dark and on a light terminal."""


class Tell(Protocol):
    """What a progress bar is told: pieces done, pieces in all, and how it goes."""

    def __call__(self, done: int, total: int, remark: str = "") -> None:
        """Move the bar."""


def spell(error: UnicodeError) -> tuple[str, int]:
    """An error handler of ``codecs``: write what cannot be encoded as the nearest of ASCII, or as a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end].translate(IN_ASCII)
    return "".join(letter if letter.isascii() else "?" for letter in lost), error.end


@contextlib.contextmanager
def bar(what: str) -> Iterator[Tell]:
    """A progress bar on stderr, told (done, total, remark)."""
    remarks = TextColumn("{task.fields[remark]}", "dim", markup=False)
    columns = (TextColumn(what), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), remarks)
    with Progress(*columns, console=err) as progress:
        # A log file gets the bar once, at its end, and only if there was anything to do.
        task = progress.add_task(what, total=None, remark="", visible=err.is_terminal)

        def tell(done: int, total: int, remark: str = "") -> None:
            progress.update(task, completed=done, total=total, remark=remark, visible=True)

        yield tell


def note(line: str) -> None:
    """A line on stderr, so that a pipe gets the result alone."""
    err.print(line, style="yellow", markup=False)


def note_quarantined(rows: Sequence[Quarantined], what: str = "left out") -> None:
    """The first ten images that could not be used, each with its reason."""
    from featcache.quarantine import in_lines

    for line in in_lines(rows, 10):
        note(f"{what}: {line}")


def show(as_json: bool, value: object, lines: Sequence[str]) -> None:
    """Print a command's result: as JSON, or in words."""
    if as_json:
        print_json(value)
    else:
        out.print("\n".join(lines), markup=False, emoji=False)


def print_json(value: object) -> None:
    """The result for a program; a figure that is no number has no place in JSON and is a bug."""
    print(json.dumps(value, indent=2, default=str, allow_nan=False))


def print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], text: Sequence[str]) -> None:
    """A table on stdout; ``text`` names the columns that are not numbers."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        worded = name in text
        table.add_column(name, justify="left" if worded else "right", overflow="fold", no_wrap=not worded)
    for line in lines:
        table.add_row(*map(escape, line))
    out.print(table, soft_wrap=False)


def print_curves(curves: TerminalCurves) -> None:
    """Learning curves on stdout, in the terminal's colours; the title wrapped, the lines not."""
    out.print()
    out.print(curves.title, style="bold", markup=False, soft_wrap=False)
    for line in curves.lines:
        # A terminal too narrow to draw in folds nothing: what is cut off are the last epochs.
        drawn = Text.assemble(*((one.text, CURVE_STYLES[one.of]) for one in line))
        out.print(drawn, no_wrap=True, overflow="crop", soft_wrap=False)


def one_of(flag: str, value: str, known: Sequence[str]) -> None:
    """Check a word that a flag was given.

    Raises:
        UsageError: it is none of those known.
    """
    if value not in known:
        raise UsageError(f"{flag} is {value!r}, wanted {', '.join(known)}{nearest(value, known, 1)}")
