"""Who may ask, from where, and what a browser may do with the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import ROOT, make_service
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from cxr.serving.app import build_app

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
    "path", ["/assets/../app.py", "/assets/%2e%2e/app.py", "/assets/..%2fapp.py", "/assets/none.js", "/assets/"]
)
def test_no_path_leads_to_other_files(client: TestClient, path: str) -> None:
    response = client.get(f"/assets/{path}")
    assert response.status_code == 404
    assert response.json()["detail"] == "there is nothing here"


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
