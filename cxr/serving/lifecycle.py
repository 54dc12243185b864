"""From a bound address to a clean end: listening, draining on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from cxr.serving.protocol import LimitedProtocol
from featcache.errors import UsageError

STOPPING = (signal.SIGINT, signal.SIGTERM)


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
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another with --port, or --port 0 "
            "for a free one"
        ) from error
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of what listens there."""
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is compared, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def run(app: ASGIApp, bound: socket.socket, *, drain: float, on_start: Callable[[], None]) -> bool:
    """Answer until Ctrl-C or SIGTERM; then finish what is under way.

    Args:
        app: what answers.
        bound: where.
        drain: seconds that what is under way may take at the end.
        on_start: called once requests are answered.

    Returns:
        Whether all that was under way was answered; not so after a second Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(drain)),
    )
    server = _Server(config, on_start)
    server.run(sockets=[bound])
    return not server.force_exit


class _Server(uvicorn.Server):
    """uvicorn, but that a signal which it has obeyed ends there: a server that was stopped has done its work."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            await asyncio.to_thread(self.on_start)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the first signal, at once on the second."""
        before = {one: signal.signal(one, self.handle_exit) for one in STOPPING}
        try:
            yield
        finally:
            for one, earlier in before.items():
                signal.signal(one, earlier)
