"""The server's life by the command line: where it listens, whom it refuses to listen to, and how it ends."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from served import QUICK, films_of, running
from starlette.types import Receive, Scope, Send
from test_cli import cxr, done

from bench.http_clients import load
from cxr.serving import lifecycle, protocol

TOKEN = "a-secret-of-the-test"  # noqa: S105 - it opens nothing


def ask(url: str, film: bytes, token: str | None = None) -> tuple[int, dict[str, object]]:
    """Status and answer of one film."""
    place = urlsplit(url)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)) as connection:
        connection.request("POST", "/predict", film, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_a_server_says_where_it_listens_answers_and_ends_with_ctrl_c(place: Path, films: list[bytes]) -> None:
    with running(place, "--head", "1") as (process, said):
        assert said["url"].startswith("http://127.0.0.1:")
        assert said["model"]["dataset"] == "films"
        assert said["limits"]["max_bytes"] == 32 * 2**20
        assert ask(said["url"], films[0])[0] == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    # Distances are measured once, by whichever test asks first.
    *measured, first, second, last = err.splitlines()
    assert all(line.startswith("measuring how far films lie") for line in measured)
    run = first.partition("(run ")[2].partition(")")[0]
    assert first == f"{said['model']['name']} (run {run}): {said['url']} (Ctrl-C stops)"
    assert second == "Research use only. Not a medical device."
    assert last == "stopped: 1 film was answered"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_what_is_under_way_when_it_is_stopped_is_answered(
    place: Path, films: list[bytes], stop: signal.Signals
) -> None:
    with running(place, "--head", "1") as (process, said):
        where = urlsplit(said["url"])
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(films[0])}\r\n\r\n".encode()
            connection.sendall(head + films[0][:100])
            # Its headers and some of the film have arrived when the signal does.
            while ask(said["url"], films[1])[0] != 200:
                pass
            process.send_signal(stop)
            time.sleep(0.5)
            assert process.poll() is None
            connection.sendall(films[0][100:])
            answer = connection.makefile("rb").read()
        process.communicate(timeout=30)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"predictions":[{"sha256"' in answer
    assert process.returncode == 0


def test_a_client_that_holds_the_end_up_is_cut_off_and_told_of(place: Path, films: list[bytes]) -> None:
    with running(place, "--head", "1", "--timeout", "2") as (process, said):
        where = urlsplit(said["url"])
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as connection:
            # An answer without end, of which nothing is read: requests one behind the other, each for a picture.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = f"POST /predict?explain=true HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(films[0])}\r\n\r\n"
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(1000):
                    connection.sendall(head.encode() + films[0])
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "cut off after 2 s, unanswered or unread: 1 connections" in err
    assert "Cancel" not in err


def test_as_many_connections_are_taken_as_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.__setitem__(slice(None), wanted))
    assert lifecycle.most_connections() == 1024
    assert limits == [1024 + lifecycle.OTHER_FILES, 4096]
    limits[:] = [256, 512]
    assert lifecycle.most_connections() == 512 - lifecycle.OTHER_FILES
    limits[:] = [resource.RLIM_INFINITY] * 2
    assert lifecycle.most_connections() == 1024


def test_a_port_in_use_is_told_in_a_line_before_anything_is_loaded(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = cxr("serve", "--data", "films", "--port", port, cwd=place, **QUICK)
    assert refused.line_of_exit(2).startswith(f"cannot listen on 127.0.0.1 port {port} (Address already in use)")


def test_other_machines_are_not_listened_to_without_a_token(place: Path, films: list[bytes]) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):  # noqa: S104 - it is refused
        refused = cxr("serve", "--data", "films", "--host", host, cwd=place, **QUICK)
        assert refused.line_of_exit(2).startswith(f"--host {host} is open to other machines")
    with running(place, "--head", "1", "--host", "0.0.0.0", CXR_TOKEN=TOKEN) as (_, said):  # noqa: S104
        assert ask(said["url"], films[0])[0] == 401
        assert ask(said["url"], films[0], "other")[0] == 401
        assert ask(said["url"], films[0], TOKEN)[0] == 200
        assert TOKEN not in json.dumps(said)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--max-bytes", "many"), "--max-bytes is 'many', wanted a size as 32MiB or 10MB"),
        (("--max-pixels", "1000000000"), "--max-bytes 32MiB, --max-pixels 1000000000, --timeout 30: "),
        (("--host", "a" * 70, "--token", TOKEN), f"cannot listen on {'a' * 70} port 0 (not a host's name)"),
        (("--host", "x..y", "--token", TOKEN), "cannot listen on x..y port 0 (not a host's name)"),
        (("--token", "x" * 15), "the token is not 16 or more visible characters"),
        (("--token", " a-secret-of-the-test"), "the token is not 16 or more visible characters"),
        (("--token", "ein-Schlüssel-des-Tests"), "the token is not 16 or more visible characters"),
        (("--operating-point", "luck"), "--operating-point: "),
        (("--head", "1", "--row", "x"), "--head and --row each name"),
    ],
)
def test_wrong_flags_are_told_in_a_line(place: Path, flags: tuple[str, ...], line: str) -> None:
    refused = cxr("serve", "--data", "films", "--port", "0", *flags, cwd=place, **QUICK)
    assert refused.line_of_exit(2).startswith(line)


def test_a_bundle_is_served_without_store_or_data_set_with_the_figures_of_its_run(
    place: Path, films: list[bytes], tmp_path: Path
) -> None:
    done("bundle", "--data", "films", "--head", "1", "--out", tmp_path / "model", cwd=place, **QUICK)
    with running(place, "--head", "1") as (_, said):
        _, of_run = ask(said["url"], films[0])
        figures = about(said["url"])["figures"]
    code = ("--backbone", "tiny_network:tiny")
    with running(tmp_path, "--bundle", "model", *code) as (_, said):
        status, of_bundle = ask(said["url"], films[0])
        told = about(said["url"])
    assert status == 200
    assert of_bundle == of_run
    assert not told["knows_cases"]
    assert {str(one["name"]).partition(" at ")[2] for one in figures} == {
        "",
        "threshold 0.5",
        "the threshold for youden",
    }
    assert told["figures"] == figures


def about(url: str) -> dict[str, list[dict[str, float]]]:
    """What is told of the model."""
    place = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)) as connection:
        connection.request("GET", "/model")
        found = json.loads(connection.getresponse().read())
    assert isinstance(found, dict)
    return found


def test_many_clients_are_all_answered_by_films_or_a_clean_refusal(place: Path) -> None:
    with running(place, "--head", "1", "--queue", "8") as (process, said):
        seen = load(said["url"], films_of(place), clients=16, seconds=5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    # Twice as many ask as there is room for: some are refused, and nobody is left without an answer.
    assert seen.statuses.keys() == {"200", "503"}
    assert seen.unclean == 0
    assert f"stopped: {seen.answered} films were answered" in err


# ---- before a request is one


def test_headers_without_end_and_headers_that_never_come_are_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    with echo() as port:
        silent = socket.create_connection(("127.0.0.1", port), timeout=10)
        began = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - began < 5
        endless = socket.create_connection(("127.0.0.1", port), timeout=10)
        endless.sendall(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100 * 2**16:
                sent += endless.send(b"x" * 2**16)
        # What the socket's buffers held, and no more.
        assert sent < 100 * 2**16
        slow = socket.create_connection(("127.0.0.1", port), timeout=10)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 204")
        for one in (silent, endless, slow):
            one.close()


def header_of(length: int) -> bytes:
    """A request whose address and headers, as lines, take so many bytes behind its first line."""
    fixed = b"Host: x\r\nX: "
    return b"GET / HTTP/1.1\r\n" + fixed + b"a" * (length - len(fixed) - 3) + b"\r\n\r\n"


@pytest.mark.parametrize("slowly", [False, True])
def test_headers_of_64_kib_are_taken_and_a_byte_more_is_answered_431(slowly: bool) -> None:
    with echo() as port:
        for length, status in ((protocol.HEADER_BYTES, b"204"), (protocol.HEADER_BYTES + 1, b"431")):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                sent = header_of(length)
                for start in range(0, len(sent), 5000 if slowly else len(sent)):
                    connection.sendall(sent[start : start + (5000 if slowly else len(sent))])
                    time.sleep(0.01 if slowly else 0)
                assert connection.recv(100).startswith(b"HTTP/1.1 " + status)


POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("trailer", [b"a: b\r\n" * 1000, b"x" * 6000, b"2;" + b"x" * 6000])
def test_what_stands_beside_a_body_is_cut_off_and_not_gathered(trailer: bytes) -> None:
    with echo() as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        begun = b"" if trailer.startswith(b"2;") else b"0\r\nA: " if trailer.startswith(b"x") else b"0\r\n"
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + begun)
        assert connection.recv(100).startswith(b"HTTP/1.1 204")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 2**24:
                connection.sendall(trailer)
                sent += len(trailer)
        assert sent < 2**24


def test_a_body_that_does_not_end_after_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.3)
    with echo() as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(POST + b"Content-Length: 1000000000000\r\n\r\nx")
            assert connection.recv(1000).startswith(b"HTTP/1.1 204")
            assert ends(connection)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            # One that ends in time keeps its connection.
            connection.sendall(POST + b"Content-Length: 2\r\n\r\nx")
            assert connection.recv(1000).startswith(b"HTTP/1.1 204")
            connection.sendall(b"x")
            time.sleep(0.6)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
def test_a_client_that_does_not_read_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch, closing: bytes) -> None:
    monkeypatch.setattr(protocol, "READING_SECONDS", 0.5)
    with echo(b"x" * 2**25) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + closing + b"\r\n")
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(2**20):
                received += len(piece)
        assert received < 2**25


def ends(connection: socket.socket) -> bool:
    """Whether the server ends the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_past_so_many_connections_a_client_is_told_to_come_again() -> None:
    with echo(most_connections=2) as port:
        held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as third:
            answer = third.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: ")
        for one in held:
            one.close()


@contextlib.contextmanager
def echo(body: bytes = b"", **words: int) -> Iterator[int]:
    """A server of our protocol that answers 204, or with this body; its port."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(len(body)).encode())] if body else []
        await send({"type": "http.response.start", "status": 200 if body else 204, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    bound = socket.create_server(("127.0.0.1", 0))
    answering: Any = functools.partial(protocol.LimitedProtocol, **words)
    server = uvicorn.Server(uvicorn.Config(app, http=answering, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
