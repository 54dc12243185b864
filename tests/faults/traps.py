"""The phases of an extraction in which it may kill itself."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from unittest import mock

from faults.plans import Trap


class _HalfWritten:
    """A file that takes half of what is written to it, and then dies."""

    def __init__(self, file: Any, die: Callable[[], None]) -> None:
        self.file, self.die = file, die

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: memoryview) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.die()


def set_trap(trap: Trap) -> None:
    """Make the trap's phase deadly in this process."""
    from tiny_network import Tiny

    from featcache import loading

    occasions = itertools.count(1)

    def die() -> None:
        if trap.error:
            raise OSError(trap.error, os.strerror(trap.error))
        while trap.stall:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(owner: Any, name: str, file_of: Callable[..., str], after: Callable[[Any], Any] | None = None) -> None:
        plain = getattr(owner, name)

        def deadly(*arguments: Any, **settings: Any) -> Any:
            met = trap.file in file_of(*arguments) and next(occasions) == trap.call
            if met and after is None:
                die()
            result = plain(*arguments, **settings)
            return after(result) if met and after is not None else result

        mock.patch.object(owner, name, deadly).start()

    phases: dict[str, Callable[[], None]] = {
        "decode": lambda: wrap(loading, "decode_for", lambda *_: ""),
        "compute": lambda: wrap(Tiny, "forward", lambda *_: ""),
        "half": lambda: wrap(
            Path,
            "open",
            lambda path, mode="r", *_: path.name if mode == "xb" else "",
            lambda file: _HalfWritten(file, die),
        ),
        "flush": lambda: wrap(os, "fsync", lambda file: Path(f"/proc/self/fd/{file}").readlink().name),
        "rename": lambda: wrap(Path, "replace", lambda _, target: target.name),
        "renamed": lambda: wrap(Path, "replace", lambda _, target: target.name, lambda _: die()),
    }
    phases[trap.phase]()
