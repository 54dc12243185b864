"""Limits on what comes before a request and behind its answer: bytes, seconds, and how many connections there are.

The application sees a request when its headers are complete, and is done with it when its answer is written; a client
that never completes them, never reads, or sends on for ever is nobody's but the protocol's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 10.0
CONNECTIONS = 1024

BODY_SECONDS = 5.0
"""From an answer to the end of a body that was not wanted. It is read and dropped meanwhile: a client that is cut off
while it sends hears no answer."""

READING_SECONDS = 30.0
"""From an answer until the client has read it."""

REFUSING_SECONDS = 1.0
REFUSING_BYTES = 2**20
"""What is read and dropped behind headers that are refused."""

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n"
    b"X-Content-Type-Options: nosniff\r\n\r\n"
)
LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n"
    b"X-Content-Type-Options: nosniff\r\n\r\n"
)


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, which itself bounds neither headers nor trailers, nor the wait for anything."""

    def __init__(self, *args: Any, most_connections: int = CONNECTIONS, **words: Any) -> None:  # noqa: ANN401 - theirs
        super().__init__(*args, **words)
        self.most_connections = most_connections
        # Of headers that have ended, and of all since; the parser keeps one that does not end to itself.
        self.header_bytes = self.unended_bytes = 0
        # Of the body, and since there was any of it: extensions of chunks, and the trailer's one long field.
        self.body_bytes = self.idle_bytes = 0
        self.in_headers, self.body_ended, self.refused = True, True, False
        self.header_timer: asyncio.TimerHandle | None = None
        self.answer_timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or turn the client away where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self.refused = True
            transport.write(FULL)
            transport.close()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        self._forget_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is a header, or what stands beside a body, without end."""
        if self.refused:
            self.unended_bytes += len(data)
            if self.unended_bytes > REFUSING_BYTES:
                self.transport.abort()
            return
        in_headers, body_bytes = self.in_headers, self.body_bytes
        super().data_received(data)
        # What was refused meanwhile counts on, until it is enough.
        if in_headers and self.in_headers:
            self.unended_bytes += len(data)
            if self.unended_bytes > HEADER_BYTES:
                self._refuse_headers()
        elif not in_headers and not self.in_headers:
            self.idle_bytes = self.idle_bytes + len(data) if self.body_bytes == body_bytes else 0
            if self.idle_bytes > HEADER_BYTES:
                self.refused = True
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        self.in_headers, self.header_bytes, self.unended_bytes = True, 0, 0
        if self.header_timer is None:
            self._await_headers()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of its address."""
        self._count(len(url))
        if not self.refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; not one that comes behind the body, where nobody wants any and uvicorn keeps them all."""
        if not self.in_headers:
            self.refused = True
            self._await_reading()
            self.transport.close()
            return
        # A colon, a space, the line's end.
        self._count(len(name) + len(value) + 4)
        if not self.refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        if self.refused:
            return
        self.in_headers, self.body_ended, self.idle_bytes = False, False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of its body."""
        if not self.refused:
            self.body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """It has ended."""
        if not self.refused:
            self.body_ended = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Its answer has been given to the connection: now the client is to read it, and to have sent its request."""
        self._await_reading()
        super().on_response_complete()

    def _count(self, count: int) -> None:
        self.header_bytes += count
        if self.header_bytes > HEADER_BYTES and not self.refused:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        if self.refused:
            return
        self.refused = True
        self._stop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            # An answer to what came before is being written, and must not have ours within it.
            self.transport.abort()
            return
        self.transport.write(LARGE)
        # What still comes is dropped, so that the client hears why.
        self.answer_timers.append(self.loop.call_later(REFUSING_SECONDS, self.transport.abort))

    def _await_headers(self) -> None:
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _give_up(self) -> None:
        self.header_timer = None
        if self.in_headers:
            self.refused = True
            # Not close(), which would wait for a client that reads nothing.
            self.transport.abort()

    def _await_reading(self) -> None:
        self._forget_answer()
        self.answer_timers = [
            self.loop.call_later(BODY_SECONDS, self._abort_unless_sent),
            self.loop.call_later(READING_SECONDS, self._abort_unless_read),
        ]

    def _forget_answer(self) -> None:
        for timer in self.answer_timers:
            timer.cancel()
        self.answer_timers = []

    def _abort_unless_sent(self) -> None:
        if not self.body_ended and self.cycle.response_complete:
            self.transport.abort()

    def _abort_unless_read(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
