"""``cxr serve`` under load beside ``cxr predict`` on the same films: ``make bench-serve DATA=chest_xray``.

Both run the same head of a run that lies in the cache, in turn within one run, each in a process of its own. So do the
clients, whose processor time is told: on loopback they live on the server's cores. Beside images a second stands what
a second of the processor's time gives, which other work on the machine moves less.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.http_clients import films_below
from bench.machine import describe, show, write_section

TICKS = os.sysconf("SC_CLK_TCK")
HEADER = ("round", "img/s", "cores", "img per processor second", "median s", "99 % s", "answers", "MiB")
CLI = (sys.executable, "-c", "import cli; cli.main()")


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round saw.

    Attributes:
        alone: of predict: images, seconds, processor seconds.
        load: of the clients; see ``http_clients.Load``.
        server_seconds: processor seconds of the server under that load.
        memory: MiB that it holds at its end.
    """

    alone: dict[str, Any]
    load: dict[str, Any]
    server_seconds: float
    memory: float

    @property
    def served(self) -> float:
        """Films answered."""
        return float(self.load["statuses"].get("200", 0))

    @property
    def ratio(self) -> float:
        """Films a second, served against predicted."""
        return self.served / float(self.load["seconds"]) * float(self.alone["seconds"]) / float(self.alone["images"])

    @property
    def ratio_of_work(self) -> float:
        """The same by processor time, the clients' left out."""
        return self.served / self.server_seconds * float(self.alone["cpu_seconds"]) / float(self.alone["images"])

    def rows(self, number: int) -> list[tuple[str, ...]]:
        """As text, in the columns of ``HEADER``."""
        alone, load = self.alone, self.load
        rate, work = alone["images"] / alone["seconds"], alone["images"] / alone["cpu_seconds"]
        cores = alone["cpu_seconds"] / alone["seconds"]
        counts = ", ".join(f"{count} × {status}" for status, count in sorted(load["statuses"].items()))
        served = f"{self.served / load['seconds']:.1f}", f"{self.served / self.server_seconds:.1f}"
        shared = f"{self.server_seconds / load['seconds']:.2f} + {load['cpu_seconds'] / load['seconds']:.2f}"
        times = f"{load['latency'][0]:.2f}", f"{load['latency'][2]:.2f}"
        return [
            (f"{number} predict", f"{rate:.1f}", f"{cores:.2f}", f"{work:.1f}", "", "", "", ""),
            (f"{number} serve", served[0], shared, served[1], *times, counts, f"{self.memory:.0f}"),
        ]


def cpu_seconds(process: int) -> float:
    """Processor seconds that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(process: int) -> float:
    """MiB that a process holds in memory."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def serving(flags: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, its process and its address; stopped by Ctrl-C, which it must obey."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen([*CLI, "serve", "--json", "--port", "0", *flags], stdout=said, text=True) as process,
    ):
        try:
            while True:
                # At a place of its own: to seek would move where the child writes.
                text = os.pread(said.fileno(), 2**16, 0).decode()
                if text.endswith("}\n"):
                    break
                if process.poll() is not None:
                    raise RuntimeError("the server did not start: see above")
                time.sleep(0.1)
            yield process, json.loads(text)["url"]
            process.send_signal(signal.SIGINT)
            if process.wait(60) != 0:
                raise RuntimeError(f"the server left with {process.returncode}")
        finally:
            process.kill()


def predict_for(seconds: float, films: Sequence[Path], flags: argparse.Namespace) -> None:
    """Predict films over and over for a while; print images, seconds and processor seconds as JSON."""
    from featcache.settings import load_settings
    from featcache.workspace import compute_of
    from heads.prediction.asked import Asked, asked_predictor

    settings = load_settings({"data": flags.data, "cache": flags.cache})
    asked = Asked(run=flags.run, head=flags.head)
    predictor = asked_predictor(settings, asked, compute_of(settings), lambda _: None)
    with contextlib.closing(predictor.stream(itertools.cycle(films))) as stream:
        # What is under way when the clock starts, and what is left under way when it stops, are alike.
        for _ in itertools.islice(stream, 128):
            pass
        began, cpu, images = time.perf_counter(), time.process_time(), 0
        for _ in stream:
            images += 1
            if time.perf_counter() - began > seconds:
                break
        spent = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"images": images, "seconds": spent[0], "cpu_seconds": spent[1]}))


def measured(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a benchmark's process prints as JSON."""
    result = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def main() -> None:
    """Measure, print, and write the section where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--films", type=Path, help="what is sent (default: the data set's test folder)")
    parser.add_argument("--run")
    parser.add_argument("--head", type=int)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--predict", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    folder = given.films or given.data / "test"
    if given.predict is not None:
        predict_for(given.predict, list(films_below(folder)), given)
        return
    named = {"--data": given.data, "--cache": given.cache, "--run": given.run, "--head": given.head}
    flags = [str(part) for flag, value in named.items() if value is not None for part in (flag, value)]
    rounds: list[Round] = []
    with serving(flags) as (process, url):
        asking = [url, str(folder), "--clients", str(given.clients)]
        # The first seconds fill what is kept once: allocators' arenas, connections' buffers.
        measured("bench.http_clients", [*asking, "--seconds", "5"])
        memory = resident(process.pid)
        for _ in range(given.rounds):
            alone = measured("bench.serve", [*flags, "--films", str(folder), "--predict", str(given.seconds / 2)])
            before = cpu_seconds(process.pid)
            load = measured("bench.http_clients", [*asking, "--seconds", str(given.seconds)])
            spent = cpu_seconds(process.pid) - before
            rounds.append(Round(alone=alone, load=load, server_seconds=spent, memory=resident(process.pid)))
    rows = [row for number, one in enumerate(rounds, 1) for row in one.rows(number)]
    table = show(HEADER, rows, f"{given.clients} clients for {given.seconds:g} s")
    said = (
        f"Median of the ratios serve / predict: {statistics.median(one.ratio for one in rounds):.2f} in images a "
        f"second, {statistics.median(one.ratio_of_work for one in rounds):.2f} in images per second of processor time. "
        f"Answers that were neither 200 nor a 503 with Retry-After: {sum(one.load['unclean'] for one in rounds)}. "
        f"Resident memory {memory:.0f} MiB after five seconds of load, {rounds[-1].memory:.0f} MiB at the end."
    )
    print(said)
    if given.write:
        how = (
            f"`cxr serve` with {given.clients} clients on loopback, each sending its next film when the last is "
            f"answered (those of `{folder.name}` over and over, raw bodies, connections kept), for {given.seconds:g} s "
            f"a round; before it `cxr predict`'s stream on the same films and head for {given.seconds / 2:g} s. The "
            "second number of *cores* is the clients'."
        )
        write_section("serve", "Serving", [*describe(), "", how, "", *table, "", said])
    if sum(one.load["unclean"] for one in rounds):
        sys.exit("not every request was answered cleanly: see above")


if __name__ == "__main__":
    main()
