"""From a bound address to a clean end: listening, draining on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from cxr.serving.protocol import CONNECTIONS, LimitedProtocol
from featcache.errors import UsageError

STOPPING = (signal.SIGINT, signal.SIGTERM)

OTHER_FILES = 128
"""Files that the process may have open beside connections: stores, the data set's, those of a runtime."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How it ended.

    Attributes:
        at_once: by a second signal, without waiting for what was under way.
        cut_off: connections that were, for want of time, with an answer under way or unread.
    """

    at_once: bool
    cut_off: int

    @property
    def whole(self) -> bool:
        """Whether all that was under way was answered."""
        return not self.at_once and not self.cut_off


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, that no other reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Take an address and a port; 0 takes a free one.

    Raises:
        UsageError: it is in use, not allowed, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            # Listening at once, so that of two servers the second hears of it before it loads its model.
            bound.listen(socket.SOMAXCONN)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        # A name with a part that is empty or too long is not even asked for.
        reason = getattr(error, "strerror", None) or ("not a host's name" if isinstance(error, UnicodeError) else error)
        raise UsageError(
            f"cannot listen on {host} port {port} ({reason}): choose another with --port, or --port 0 for a free one"
        ) from error
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of what listens there; of all of this machine's, one that others can open."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - it is compared, not bound
        host = _address_for_others(bound.family) or {"0.0.0.0": "127.0.0.1"}.get(host, "::1")  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _address_for_others(family: int) -> str | None:
    """The address by which other machines reach this one; None where there is no way out."""
    # No packet is sent: the kernel looks up which address it would send from. These are kept for documentation.
    place = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((place, 9))
        except OSError:
            return None
        return str(asking.getsockname()[0])


def most_connections() -> int:
    """How many connections there is room for among open files, whose limit is raised for it as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft - OTHER_FILES))


def run(app: ASGIApp, bound: socket.socket, *, drain: float, on_start: Callable[[], None]) -> Ended:
    """Answer until Ctrl-C or SIGTERM; then finish what is under way.

    Args:
        app: what answers.
        bound: where.
        drain: seconds that what is under way may take at the end; then it is cut off.
        on_start: called once requests are answered.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(LimitedProtocol, most_connections=most_connections()),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    server = _Server(config, on_start, drain)
    server.run(sockets=[bound])
    return Ended(at_once=server.force_exit, cut_off=server.cut_off)


class _Server(uvicorn.Server):
    """uvicorn, but that a signal which it has obeyed ends there: a server that was stopped has done its work."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], drain: float) -> None:
        super().__init__(config)
        self.on_start, self.drain, self.cut_off = on_start, drain, 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            await asyncio.to_thread(self.on_start)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, in its time."""
        cutting = asyncio.get_running_loop().call_later(self.drain, self._cut_off)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut_off(self) -> None:
        # uvicorn's own limit leaves the connections open, whose clients may never read.
        self.cut_off = len(self.server_state.connections)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the first signal, at once on the second."""
        before = {one: signal.signal(one, self.handle_exit) for one in STOPPING}
        try:
            yield
        finally:
            for one, earlier in before.items():
                signal.signal(one, earlier)
