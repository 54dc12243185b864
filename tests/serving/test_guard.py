"""Who may ask, from where, and what a browser may do with the answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from served import ROOT, make_service
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocketDisconnect

from cxr.serving.app import build_app
from cxr.serving.service import Service

DECLARED = re.compile(r"(--[\w-]+): ([^;]+);")
TOKEN = "a-secret-of-the-test"  # noqa: S105 - it opens nothing


@pytest.fixture(scope="module")
def guarded(place: Path) -> Iterator[TestClient]:
    """A server that other machines reach, by any name, and that wants a token."""
    with TestClient(build_app(make_service(place), token=TOKEN, hosts=None), base_url="http://films.example") as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/assets/page.js", "/healthz", "/model", "/metrics", "/openapi.json", "/nothing"]
)
def test_every_answer_has_the_security_headers_and_no_cross_origin_ones(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"Origin": "https://elsewhere.example"})
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in response.headers if name.startswith("access-control-")]
    assert "server" not in response.headers


def test_errors_have_them_too(client: TestClient) -> None:
    for response in (client.post("/predict", content=b"x"), client.get("/predict"), client.get("/model", headers=EVIL)):
        assert response.status_code >= 400
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert response.headers["content-type"] == "application/problem+json"


EVIL = {"Host": "films.evil.example"}


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8000", "LOCALHOST", "[::1]:8000", "[::1]"])
def test_this_machines_own_names_are_answered_whatever_the_port(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "evil.example:127.0.0.1", "", "[::2]"],
)
def test_a_name_that_was_made_to_lead_here_is_refused(client: TestClient, films: list[bytes], host: str) -> None:
    for response in (
        client.get("/", headers={"Host": host}),
        client.post("/predict", content=films[0], headers={"Host": host}),
    ):
        assert response.status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://localhost:9999"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
    ],
)
def test_films_from_pages_of_other_sites_are_refused(
    client: TestClient, films: list[bytes], headers: dict[str, str], status: int
) -> None:
    assert client.post("/predict", content=films[0], headers=headers).status_code == status


@pytest.mark.parametrize("host", ["films.example", "127.0.0.1:8000"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://films.example", 200),
        ("https://FILMS.example", 200),
        ("https://films.example:8443", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_behind_a_proxy_its_name_is_ours_whether_or_not_it_is_passed_on(
    service: Service, client: TestClient, films: list[bytes], host: str, origin: str, status: int
) -> None:
    assert client.get("/healthz").status_code == 200
    # Without a lifespan: the service is the other client's.
    behind = TestClient(build_app(service, public_name="films.example"), base_url="http://localhost")
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert behind.post("/predict", content=films[0], headers=headers).status_code == status
    assert behind.get("/healthz", headers={"Host": "evil.example"}).status_code == 421


def test_no_other_site_is_allowed_what_browsers_ask_leave_for(client: TestClient) -> None:
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = client.options("/predict", headers=asking)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xe9"],
)
def test_without_the_token_nothing_is_told_but_that_it_is_wanted(
    guarded: TestClient, films: list[bytes], given: str | None
) -> None:
    headers = {} if given is None else {b"Authorization": given.encode("latin-1")}
    for response in (
        guarded.post("/predict", content=films[0], headers=headers),
        guarded.get("/model", headers=headers),
        guarded.get("/metrics", headers=headers),
        guarded.get("/nothing", headers=headers),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in response.text
        assert "efficientnet" not in response.text


def test_with_the_token_all_is_answered_and_the_page_needs_none(guarded: TestClient, films: list[bytes]) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert guarded.post("/predict", content=films[0], headers=headers).status_code == 200
        assert guarded.get("/model", headers=headers).status_code == 200
    for path in ("/", "/assets/page.css", "/healthz", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    # A page of another site does not know it, and is refused if it does.
    stolen = {**headers, "Origin": "https://evil.example"}
    assert guarded.post("/predict", content=films[0], headers=stolen).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py",
        "/assets/../../serving/assets/page.js",
        "/assets/%2e%2e/app.py",
        "/assets/..%2fapp.py",
        "/assets//page.js",
        "/assets/none.js",
        "/assets/",
    ],
)
def test_no_path_leads_to_other_files(service: Service, client: TestClient, path: str) -> None:
    assert client.get("/assets/page.js").status_code == 200
    # By hand: a client makes one of "..", and the server gets what it has made.
    status, detail = asyncio.run(_answer_of_path(build_app(service), path))
    assert (status, detail) == (404, "there is nothing here")


async def _answer_of_path(app: ASGIApp, path: str) -> tuple[int, str]:
    status, body = 0, b""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status, json.loads(body)["detail"]


def test_there_are_no_websockets(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/predict"):
        pass


def test_the_page_has_the_colours_and_the_type_of_the_reports_page() -> None:
    report, page = (
        (ROOT / folder / "assets" / "page.css").read_text(encoding="utf-8") for folder in ("heads/page", "cxr/serving")
    )
    for scheme in (":root {", "(prefers-color-scheme: dark) {"):
        ours, theirs = (dict(DECLARED.findall(text.partition(scheme)[2].partition("}")[0])) for text in (page, report))
        assert {"--paper", "--ink", "--soft", "--accent", "--warn"} <= ours.keys()
        assert ours.items() <= theirs.items()
