"""Where parts are made: in this process, or in one a device.

Every engine drives ``making.PartMaker`` on the same chunks, so it changes no byte of a part. A cluster's is in
``ray_engine``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from featcache import errors
from featcache.atomic import WriteError
from featcache.backbones import Backbone
from featcache.errors import CxrError, EngineError
from featcache.making import PartMaker
from featcache.progress import Clock
from featcache.runtime import OutOfMemoryError
from featcache.work import Brief, Chunk, Made, from_json, to_json

ASSIGNED = 3
"""Chunks that a worker has in hand: one being written, one computed, one whose first images are being read."""

DEATHS = 3
"""How often processes may die at the same chunk before the command gives up."""

RAISED: dict[str, type[CxrError]] = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), WriteError, OutOfMemoryError)
    if isinstance(kind, type) and issubclass(kind, CxrError)
}
"""The errors that a worker may report, by name."""


class Engine(Protocol):
    """What makes parts of chunks, in any order.

    Attributes:
        workers: chunks that are computed at once.
    """

    workers: int

    def __call__(self, brief: Brief, chunks: Iterable[Chunk], clock: Clock) -> Generator[Made]:
        """Make the parts of each chunk and yield what came of it; ``clock`` is told of images and mishaps."""


class InProcess:
    """One after the other, in this process, with backbones that are loaded already."""

    workers = 1

    def __init__(self, backbones: Sequence[Backbone] | None = None) -> None:
        self.backbones = backbones

    def __call__(self, brief: Brief, chunks: Iterable[Chunk], clock: Clock) -> Generator[Made]:
        """See ``Engine``."""
        with contextlib.closing(PartMaker(brief, self.backbones)) as maker:
            yield from maker.make(chunks, clock.tick)


class OnDevices:
    """One process a device; each asks for its next chunk when it has finished one.

    A process that dies is replaced, and what it had in hand is made again.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = devices
        self.workers = len(devices)

    def __call__(self, brief: Brief, chunks: Iterable[Chunk], clock: Clock) -> Generator[Made]:
        """See ``Engine``.

        Raises:
            EngineError: processes die again and again at the same images.
            CxrError: what a process reported.
        """
        left = iter(chunks)
        again: deque[Chunk] = deque()
        inbox: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()
        deaths: Counter[int] = Counter()
        inherited: set[int] = set()
        threads = max(1, brief.threads // self.workers)

        def start(device: str) -> _Process:
            process = _Process(dataclasses.replace(brief, device=device, threads=threads), inbox.put)
            for _ in range(ASSIGNED):
                assign(process)
            return process

        def assign(process: _Process) -> None:
            chunk = again.popleft() if again else next(left, None)
            process.give(chunk)

        running: set[_Process] = set()
        try:
            for device in self.devices:
                running.add(start(device))
            while running:
                process, message = inbox.get()
                if message is None:
                    running.remove(process)
                    process.ended()
                    # What has nothing in hand may end as it likes: some libraries crash when they are unloaded.
                    if process.assigned:
                        clock.tick(-process.unfinished_images, 0.0)
                        clock.notes.append(_mourned(process, deaths))
                        again.extend(process.assigned)
                        inherited |= {chunk.number for chunk in process.assigned}
                        running.add(start(process.brief.device))
                elif "made" in message:
                    made = from_json(Made, message["made"])
                    process.finished(made)
                    assign(process)
                    if made.number in inherited:
                        # What is there already was made by the one that died, and so by this command.
                        made = dataclasses.replace(made, elsewhere=(0,) * len(made.elsewhere))
                    yield made
                elif "error" in message:
                    raise RAISED.get(message["error"], EngineError)(message["message"])
                else:
                    process.unfinished_images += message["images"]
                    clock.tick(message["images"], message["waited"])
        finally:
            for process in running:
                process.stop()


class _Process:
    """A worker process, what it has in hand, and the thread that listens to it."""

    def __init__(self, brief: Brief, put: Callable[[tuple[_Process, dict[str, Any] | None]], None]) -> None:
        self.brief = brief
        self.assigned: deque[Chunk] = deque()
        self.unfinished_images = 0
        try:
            self.process = subprocess.Popen(
                # -P: what lies in the working folder hides no library.
                [sys.executable, "-P", "-m", "featcache.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": import_path()},
                # A Ctrl-C reaches this process alone, which stops the others.
                start_new_session=True,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise EngineError(f"no process for {brief.device} could be started: {error.strerror or error}") from error
        self.listener = threading.Thread(target=self._listen, args=(put,), daemon=True)
        self.listener.start()
        self._tell(to_json(brief))

    def _listen(self, put: Callable[[tuple[_Process, dict[str, Any] | None]], None]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError), self.process.stdout as lines:  # Closed when the process is stopped.
            for line in lines:
                message = _message(line)
                if message:
                    put((self, message))
        put((self, None))

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It has died; listening tells.
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def give(self, chunk: Chunk | None) -> None:
        """Hand over a chunk, or say that there are no more."""
        assert self.process.stdin is not None
        if self.process.stdin.closed:
            return
        if chunk is None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        else:
            self.assigned.append(chunk)
            self._tell(to_json(chunk))

    def finished(self, made: Made) -> None:
        """Take note that a chunk is done."""
        self.assigned = deque(chunk for chunk in self.assigned if chunk.number != made.number)
        self.unfinished_images = max(0, self.unfinished_images - made.images)

    def ended(self) -> int:
        """Wait for its end; 0 when it ended well."""
        self.give(None)
        return self.process.wait()

    def stop(self) -> None:
        """End it now. Finished parts stay."""
        with contextlib.suppress(ProcessLookupError):
            # It leads a session: what the user's backbone may have started ends with it.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended()
        self.listener.join(timeout=5)


def import_path() -> str:
    """The folders that this process imports from, for one that is to import the same: the user's own backbones too."""
    return os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)


def _message(line: str) -> dict[str, Any]:
    """What a worker says; nothing where it is half a line of one that was killed, or another's print."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _mourned(process: _Process, deaths: Counter[int]) -> str:
    """What to tell of a process that died.

    Raises:
        EngineError: too many have died at the same images.
    """
    code = process.ended()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    where = f"the process on {process.brief.device}"
    first = process.assigned[0]
    deaths[first.number] += 1
    if deaths[first.number] >= DEATHS:
        raise EngineError(
            f"{where} {how}, as {DEATHS - 1} before it did at the images from {first.image_id[0]} on: too little "
            "memory? Finished parts are kept; try a smaller --extract-batch-size or fewer --devices"
        )
    return f"{where} {how}; another makes its part again"
