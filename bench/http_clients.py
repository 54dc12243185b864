"""Clients that ask a server as fast as it answers, in a process whose work is not counted as the server's.

HTTP by hand over kept connections: on a machine that client and server share, each cycle spent here is lost to the
server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Load:
    """What some clients saw.

    Attributes:
        statuses: answers by HTTP status, as text.
        unclean: answers of 503 without Retry-After, and connections that ended without an answer.
        seconds: from the first request to the last answer.
        cpu_seconds: of the clients' process.
        latency: seconds of the median and of the 95th and 99th percent of the answers of 200.
    """

    statuses: dict[str, int]
    unclean: int
    seconds: float
    cpu_seconds: float
    latency: tuple[float, float, float]

    @property
    def answered(self) -> int:
        """Answers of 200."""
        return self.statuses.get("200", 0)

    @property
    def rate(self) -> float:
        """Answers of 200 a second."""
        return self.answered / self.seconds


def load(url: str, files: Sequence[Path], *, clients: int, seconds: float) -> Load:
    """Have some clients send films, each its next when it has the answer to the last; all are waited for."""
    bodies = [path.read_bytes() for path in files]
    return asyncio.run(_load(url, bodies, clients, seconds))


async def _load(url: str, bodies: Sequence[bytes], clients: int, seconds: float) -> Load:
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    films, statuses, latencies, unclean = itertools.cycle(bodies), Counter[str](), list[float](), 0
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds

    async def client(host: str, port: int) -> None:
        nonlocal unclean
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < end:
            body = next(films)
            started = time.perf_counter()
            writer.write(_head(host, port, len(body)))
            writer.write(body)
            try:
                status, headers = await _answer(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                unclean += 1
                reader, writer = await asyncio.open_connection(host, port)
                continue
            statuses[status] += 1
            if status == "200":
                latencies.append(time.perf_counter() - started)
            elif status == "503" and "retry-after" not in headers:
                unclean += 1
            if headers.get("connection") == "close":
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
        writer.close()

    await asyncio.gather(*(client(place.hostname, place.port) for _ in range(clients)))
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return Load(
        statuses=dict(statuses),
        unclean=unclean,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        latency=(cuts[49], cuts[94], cuts[98]),
    )


def _head(host: str, port: int, length: int) -> bytes:
    return (
        f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    await reader.readexactly(int(headers.get("content-length", "0")))
    return first.split(" ")[1], headers


def films_below(folder: Path) -> Iterator[Path]:
    """JPEG and PNG files of a folder, sorted."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg", ".png"))


def main() -> None:
    """Load a server, and print what was seen as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    # Each client has a connection, and a few files are open besides.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found = load(given.url, list(films_below(given.folder)), clients=given.clients, seconds=given.seconds)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
