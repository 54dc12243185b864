"""Limits on what comes before a request: its headers' bytes and time, and how many connections there are.

The application sees a request when its headers are complete; a client that never completes them is nobody's but the
protocol's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 10.0
CONNECTIONS = 1024

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n"
    b"X-Content-Type-Options: nosniff\r\n\r\n"
)


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, which itself bounds neither headers nor the wait for them."""

    def __init__(self, *args: Any, **words: Any) -> None:  # noqa: ANN401 - the server's to say
        super().__init__(*args, **words)
        self.header_bytes = 0
        self.in_headers = True
        self.header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or turn the client away where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.write(FULL)
            transport.close()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is headers without end."""
        if self.in_headers:
            self.header_bytes += len(data)
            # What comes with the last header may be a piece of the body.
            if self.header_bytes > HEADER_BYTES + 2**18:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self.in_headers = True
        if self.header_timer is None:
            self._await_headers()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        self.in_headers, self.header_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _give_up(self) -> None:
        self.header_timer = None
        if self.in_headers and not self.transport.is_closing():
            self.transport.close()
