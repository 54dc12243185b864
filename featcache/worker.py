"""A process that makes parts for another: ``python -m featcache.worker``.

It reads JSON lines: the brief, then chunks until its input ends. It writes JSON lines: each piece of progress, each
chunk made, or the error that ended it. When the process that started it is gone, its input ends, and so does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from featcache.errors import CxrError
from featcache.work import Brief, Chunk, from_json, to_json

TELL_EVERY = 0.2
"""Seconds between two messages of progress."""


LISTEN = 0.02
"""Seconds to wait for the next chunk before going on with what is under way."""


class _Progress:
    """Adds up images and seconds waited, and tells of them now and then."""

    def __init__(self, line: TextIO) -> None:
        self.line, self.images, self.waited, self.told = line, 0, 0.0, time.perf_counter()

    def on_images(self, images: int, waited: float) -> None:
        self.images, self.waited = self.images + images, self.waited + waited
        if time.perf_counter() - self.told > TELL_EVERY:
            self.tell()

    def tell(self) -> None:
        _send(self.line, images=self.images, waited=self.waited)
        self.images, self.waited, self.told = 0, 0.0, time.perf_counter()


def _listen(inbox: queue.SimpleQueue[bytes]) -> None:
    """Put each line of the input into ``inbox``, and nothing when it has ended."""
    while line := sys.stdin.buffer.readline():
        inbox.put(line)
    inbox.put(b"")


def _chunks(inbox: queue.SimpleQueue[bytes]) -> Iterator[Chunk | None]:
    """The chunks of the input as they come; None while there is none, so that what is under way goes on."""
    while True:
        try:
            line = inbox.get(timeout=LISTEN)
        except queue.Empty:
            yield None
            continue
        if not line:
            return
        yield from_json(Chunk, line)


def main() -> None:
    """Make parts until the input ends, or something does that the user can put right."""
    # Whatever a library prints must not get between the messages, and some print when they are imported.
    line = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # From now on the process that started this one need not wait for its pipe to be read.
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    from featcache.making import PartMaker

    progress = _Progress(line)
    try:
        with contextlib.closing(PartMaker(from_json(Brief, inbox.get()))) as maker:
            for made in maker.make(_chunks(inbox), progress.on_images):
                progress.tell()
                _send(line, made=to_json(made))
    except BrokenPipeError:
        _close(line)
    except CxrError as error:
        with contextlib.suppress(BrokenPipeError):
            _send(line, error=type(error).__name__, message=str(error))


def _send(line: TextIO, **message: object) -> None:
    line.write(f"{json.dumps(message)}\n")
    line.flush()


def _close(line: TextIO) -> None:
    """Close the line to a process that is gone, without Python's complaint about what could not be sent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), line.fileno())
    line.close()


if __name__ == "__main__":
    main()
