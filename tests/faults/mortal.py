"""Extractions that may die. One process imports torch, which is what takes the time, and forks one for each.

It reads lines of JSON, each a list of plans that are carried out at once, and answers each with a list of endings.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import pydantic

from faults.plans import BACKBONE, PART_IMAGES, VIEWS, Ending, Plan
from faults.traps import set_trap
from faults.watched_network import NOTES, SECONDS


def _tell(listener: TextIO, line: str) -> None:
    listener.write(f"{line}\n")
    listener.flush()


def _carry_out(plan: Plan, tell: TextIO) -> int:
    """The extraction, in the process that is its own; returns its exit code."""
    from featcache import extraction
    from featcache.backbones import load_backbone
    from featcache.check import scan
    from featcache.engines import OnDevices
    from featcache.images import discover
    from featcache.progress import Clock
    from featcache.runtime import Compute

    tick = Clock.tick

    def told(clock: Clock, images: int, waited: float) -> None:
        tick(clock, images, waited)
        _tell(tell, str(clock.done))

    mock.patch.object(Clock, "tick", told).start()
    if plan.trap is not None:
        set_trap(plan.trap)
    if plan.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_bytes, plan.file_bytes))
    if plan.memory:
        # One arena: each thread's own would be reserved, and not used, in amounts that differ from run to run.
        ctypes.CDLL(None).mallopt(-8, 1)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + plan.memory, held + plan.memory))
    root, cache = Path(plan.root), Path(plan.cache)
    os.environ |= {NOTES: f"{cache}.computed", SECONDS: str(plan.slow)}
    if plan.arguments:
        import cli

        app = cli.app

        def begin() -> None:
            _tell(tell, "0")
            app()

        mock.patch.object(cli, "app", begin).start()
        mock.patch.dict(extraction.extract.__kwdefaults__, part_images=PART_IMAGES).start()
        mock.patch.object(sys, "argv", ["cxr", *plan.arguments]).start()
        cli.main()
    else:
        _tell(tell, "0")
        (summary,) = extraction.extract(
            scan(discover(root), root),
            root,
            cache,
            [load_backbone(BACKBONE)],
            views=VIEWS,
            compute=Compute(device="cpu", runtime="torch", precision="float32", batch_size=8, threads=2),
            part_images=PART_IMAGES,
            engine=OnDevices(["cpu"] * plan.devices) if plan.devices else None,
        )
        _tell(tell, json.dumps(summary.to_json()))
    return 0


def _start(plan: Plan) -> tuple[int, TextIO]:
    """Start an extraction; returns its process and what it tells."""
    # torch is imported, and nothing of it has run here, so that a fork is a fresh process.
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading)
    status: Any = 1
    with open(f"{plan.cache}.said", "w") as said, open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    # It heeds Ctrl-C, though the tests may have been started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(plan.seconds)
    try:
        status = _carry_out(plan, os.fdopen(writing, "w"))
    except SystemExit as leaving:
        status = leaving.code or 0
    except BaseException:  # noqa: BLE001 - it is printed, as Python would
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def _watch(plan: Plan, started: tuple[int, TextIO]) -> Ending:
    """Deal the blows, and wait for the end."""
    process, tells = started
    images, summary = -1, {}

    def hear(until: int) -> None:
        nonlocal images, summary
        while images < until and (line := tells.readline()):
            if line.startswith("{"):
                summary = json.loads(line)
            else:
                images = int(line)

    with tells:
        for blow in plan.blows:
            hear(blow.images)
            time.sleep(blow.wait)
            for struck in [process] if blow.worker is None else children(process)[blow.worker :][:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(struck, blow.signal)
        hear(sys.maxsize)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Ending(status=status, images=images, summary=summary, said=Path(f"{plan.cache}.said").read_text())


def children(process: int) -> list[int]:
    """Processes that a process has started, by age."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return sorted(int(pid) for file in lists for pid in file.read_text().split())


def main() -> None:
    """Carry out plans until there are no more."""
    import cli  # noqa: F401 - imported once for all
    import featcache.extraction  # noqa: F401 - the same
    import heads.experiments.experiment
    import heads.experiments.grid_file  # noqa: F401 - the same

    for line in sys.stdin:
        plans = pydantic.TypeAdapter(list[Plan]).validate_json(line)
        started = [_start(plan) for plan in plans]
        with ThreadPoolExecutor(len(plans)) as pool:
            endings = list(pool.map(_watch, plans, started))
        _tell(sys.stdout, pydantic.TypeAdapter(list[Ending]).dump_json(endings).decode())


if __name__ == "__main__":
    main()
