"""What is to be done, what goes wrong with it, and how it ended; told to ``mortal`` and by it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

BACKBONE = "faults.watched_network:Watched"
VIEWS = 2
PART_IMAGES = 8
IMAGES = 40
"""Of the data set that the tests share; its store has five parts."""


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A signal to an extraction.

    Attributes:
        images: it comes when so many are done; when the work begins where none.
        wait: and so many seconds later.
        signal: which.
        worker: to which of the processes that compute for it; to itself where None.
    """

    images: int = 0
    wait: float = 0.0
    signal: int = signal.SIGKILL
    worker: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trap:
    """Where an extraction kills itself, or meets with worse.

    Attributes:
        phase: one of those of ``traps``.
        file: of which file, by a piece of its name.
        call: the how-manieth time that it gets there.
        stall: instead of dying it stands still there.
        error: instead of dying it is told this error of the system's.
    """

    phase: str
    file: str = ""
    call: int = 1
    stall: bool = False
    error: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An extraction of the watched network, and what happens to it.

    Attributes:
        root: the data set.
        cache: where its stores lie; beside it what it says (``.said``), and a byte for each image and view that the
            network computes (``.computed``).
        arguments: of the command line, which is called where there are any; of ``extract`` otherwise.
        devices: processes that compute for it; it does so itself where none.
        trap: where it kills itself.
        blows: signals, one after the other.
        slow: seconds that the network takes for an image and view, to be met at work.
        file_bytes: no file may grow larger.
        memory: bytes of address space that it may take beyond what it has, before it loads an image.
        seconds: it may take; then it is killed by SIGALRM.
    """

    root: str
    cache: str
    arguments: tuple[str, ...] = ()
    devices: int = 0
    trap: Trap | None = None
    blows: tuple[Blow, ...] = ()
    slow: float = 0.0
    file_bytes: int = 0
    memory: int = 0
    seconds: int = 120


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How it ended.

    Attributes:
        status: the exit code, or the signal as a negative number.
        images: those done, as progress told it last.
        summary: what ``extract`` returned.
        said: on stdout and stderr.
    """

    status: int
    images: int
    summary: dict[str, Any]
    said: str
