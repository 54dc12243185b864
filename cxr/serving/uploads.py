"""What a request brings: films as its raw body or as parts of a form, read into memory under a limit, never to disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from cxr.serving.limits import Limits
from cxr.serving.metrics import WENT_AWAY
from cxr.serving.problems import Overloaded, Problem

RAW = ("image/jpeg", "image/png", "application/dicom", "application/octet-stream")
"""Media types of a body that is a film itself. Which kind it is, its bytes say."""

UNSAID = "application/x-www-form-urlencoded"
"""What curl says of ``--data-binary`` where it is told nothing: the bytes say better what they are."""

FORM = "multipart/form-data"

SPARE = 16 * 1024
"""Bytes of a form beside its files: boundaries, headers, fields without a file."""

LINGER = 2.0
"""Seconds in which what is too large is read and dropped: a client that is cut off while it sends hears no answer."""

CLOSE = {"Connection": "close"}


@dataclass(kw_only=True)
class Room:
    """The room that one request has taken; see ``Admission``."""

    admission: Admission
    films: int = 0
    taken_bytes: int = 0

    def take_film(self) -> None:
        """Make room for one more film.

        Raises:
            Overloaded: there is none.
        """
        if self.admission.films >= self.admission.limits.queue:
            raise Overloaded("too many films are waiting: ask again in a moment")
        self.admission.films += 1
        self.films += 1

    def take_bytes(self, count: int) -> None:
        """Make room for some more bytes.

        Raises:
            Overloaded: there is none.
        """
        if self.admission.bytes + self.admission.given_up() + count > self.admission.limits.waiting_bytes:
            raise Overloaded("too much is being sent at once: ask again in a moment")
        self.admission.bytes += count
        self.taken_bytes += count


class Admission:
    """Counts what is under way, films and bytes. For the event loop's thread alone.

    Args:
        limits: how much there may be.
        given_up: bytes of films whose requests have ended while decoders still hold them.

    Attributes:
        films: that are under way.
        bytes: that uploads hold.
    """

    def __init__(self, limits: Limits, given_up: Callable[[], int] = lambda: 0) -> None:
        self.limits, self.given_up = limits, given_up
        self.films = self.bytes = 0

    @contextlib.contextmanager
    def request(self) -> Iterator[Room]:
        """Room for one request with one film, given back at its end.

        Raises:
            Overloaded: there is none.
        """
        room = Room(admission=self)
        try:
            room.take_film()
            yield room
        finally:
            self.films -= room.films
            self.bytes -= room.taken_bytes


async def read_upload(request: Request, limits: Limits, room: Room) -> list[bytes]:
    """The files of a request, one or more.

    Raises:
        Problem: 400 for a form that cannot be parsed, 413 for too many bytes or files, 415 for another media type, 422
            for a form without a file, 499 where who sends went away, 503 for want of room.
    """
    kind, options = parse_options_header(request.headers.get("content-type") or RAW[-1])
    media_type = kind.decode("latin-1").lower()
    if media_type not in (*RAW, UNSAID, FORM):
        raise Problem(415, f"a body of {', '.join(RAW)} or {FORM} is wanted", CLOSE)
    announced = request.headers.get("content-length", "")
    body = request.stream()
    if announced.isdigit() and int(announced) > limits.max_bytes + SPARE:
        await _refuse_size(body, limits)
    try:
        if media_type == FORM:
            return await _read_form(body, options.get(b"boundary", b""), limits, room)
        return [await _read_raw(body, limits, room)]
    except ClientDisconnect as error:
        raise Problem(WENT_AWAY, "the connection ended before the film") from error


async def _read_raw(body: AsyncIterator[bytes], limits: Limits, room: Room) -> bytes:
    file = bytearray()
    async for chunk in body:
        if len(file) + len(chunk) > limits.max_bytes:
            await _refuse_size(body, limits)
        room.take_bytes(len(chunk))
        file += chunk
    return bytes(file)


async def _read_form(body: AsyncIterator[bytes], boundary: bytes, limits: Limits, room: Room) -> list[bytes]:
    form = _Form(limits, room)
    sent = 0
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.field,
                "on_header_value": form.value,
                "on_header_end": form.header,
                "on_headers_finished": form.headers_finished,
                "on_part_data": form.data,
                "on_end": form.end,
            },
        )
        async for chunk in body:
            sent += len(chunk)
            if form.size > limits.max_bytes:
                await _refuse_size(body, limits)
            parser.write(chunk)
            # What is no file costs the event loop the parser's time, a piece of a byte as much as one of thousands.
            if sent - form.size > SPARE:
                await _refuse_size(body, limits)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Problem(400, f"the body is no {FORM} as RFC 7578 has it", CLOSE) from error
    if not form.ended:
        raise Problem(400, "the form ends before its last boundary", CLOSE)
    if form.size > limits.max_bytes:
        await _refuse_size(body, limits)
    if not form.files:
        raise Problem(422, "the form has no file: a part with a filename is wanted")
    return [bytes(file) for file in form.files]


class _Form:
    """Gathers the files of a form as its parser comes upon them; names of files are not kept."""

    def __init__(self, limits: Limits, room: Room) -> None:
        self.limits, self.room = limits, room
        self.files: list[bytearray] = []
        self.name, self.content = b"", b""
        self.is_file = self.ended = False
        self.size = 0

    def begin(self) -> None:
        self.is_file = False

    def field(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self.content += data[start:end]

    def header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.is_file = b"filename" in parse_options_header(self.content)[1]
        self.name = self.content = b""

    def headers_finished(self) -> None:
        if not self.is_file:
            return
        most = self.limits.files_at_once
        if len(self.files) == most:
            raise Problem(413, f"more than {most} files at once", CLOSE)
        if self.files:
            self.room.take_film()
        self.files.append(bytearray())

    def data(self, data: bytes, start: int, end: int) -> None:
        if not self.is_file:
            return
        self.size += end - start
        if self.size <= self.limits.max_bytes:
            self.room.take_bytes(end - start)
            self.files[-1] += data[start:end]

    def end(self) -> None:
        self.ended = True


async def _refuse_size(body: AsyncIterator[bytes], limits: Limits) -> None:
    """Read on for a moment, so that the answer is heard; then refuse.

    Raises:
        Problem: 413.
    """
    dropped = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGER):
            async for chunk in body:
                dropped += len(chunk)
                if dropped > limits.max_bytes:
                    break
    raise Problem(413, f"more than {limits.max_bytes:,} bytes", CLOSE)
