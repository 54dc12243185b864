"""What stands before every request: who may ask, from where, and what a browser may do with the answer."""

from __future__ import annotations

import hmac
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr.serving.problems import Problem

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Films and what is said of them are nobody else's.
    "Cache-Control": "no-store",
}
ENCODED = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine for itself, as a Host header has them."""

SAFE = ("GET", "HEAD", "OPTIONS")

OPEN = ("/", "/healthz", "/openapi.json")
ASSETS = "/assets/"
"""Paths that need no token: they tell nothing but what the program is."""

UNAUTHORISED = {"WWW-Authenticate": "Bearer"}

log = logging.getLogger("cxr.serving")


class Guard:
    """Lets in who may ask; adds the security headers; makes of an error in our code a plain 500.

    A page of another site that a user has open may send requests to this machine. It is known by three things: its
    Host header, where it had its own name lead here (DNS rebinding); its Origin and Sec-Fetch-Site; and that it does
    not know the token.

    Args:
        app: what answers.
        token: what a request must bring as ``Authorization: Bearer``, but for ``OPEN``; None: nothing.
        hosts: names that a Host header may have, whatever the port; None: any, which a token makes safe.
        public_name: by which a proxy is reached that stands in front, with its port where it is not the usual one;
            pages of that name are ours, whichever Host the proxy passes on.
        on_prediction: told status and seconds of each request to ``/predict``.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        hosts: tuple[str, ...] | None = LOOPBACK,
        public_name: str | None = None,
        on_prediction: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self.app, self.on_prediction = app, on_prediction
        self.public = None if public_name is None else public_name.lower().encode("latin-1")
        named = () if public_name is None else (_name_of(public_name),)
        self.hosts = None if hosts is None else (*hosts, *named)
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the life cycle's events on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *ENCODED]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - the last boundary: a bug must not tell the client of itself
            log.error("a request failed: %s", where_and_what(error))
            if not status:
                await Problem(500, "the server failed; its log says where").response(scope, receive, send_with_headers)
        finally:
            if scope["path"] == "/predict" and scope["method"] == "POST":
                self.on_prediction(status, time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["method"], scope["path"], dict(scope["headers"]))
        await (self.app if refusal is None else refusal.response)(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Problem | None:
        host = headers.get(b"host", b"")
        if self.hosts is not None and _name_of(host.decode("latin-1")) not in self.hosts:
            return Problem(421, f"this server answers to {', '.join(self.hosts)} alone")
        site = headers.get(b"sec-fetch-site", b"same-origin")
        origin = headers.get(b"origin")
        elsewhere = origin is not None and origin.partition(b"://")[2].lower() not in (host.lower(), self.public)
        if method not in SAFE and (site not in (b"same-origin", b"none") or elsewhere):
            return Problem(403, "a request from a page of another site")
        if self.token is None or path in OPEN or path.startswith(ASSETS):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # In constant time, so that no guess is told how near it came.
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token):
            return None
        return Problem(401, "this server wants its token: Authorization: Bearer TOKEN", UNAUTHORISED)


def where_and_what(error: BaseException) -> str:
    """The type of an error and the line it came from: its message may quote what was sent."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _name_of(host: str) -> str:
    """A Host header's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
