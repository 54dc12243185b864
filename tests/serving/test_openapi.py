"""What OpenAPI says is so: schemathesis makes requests of it, sound and unsound ones, and looks at the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import films_of, make_service
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from cxr.serving.app import build_app
from cxr.serving.guard import LOOPBACK

TOKEN = "a-secret-of-the-test"  # noqa: S105 - it opens nothing
HOST = {"Host": "localhost"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [("POST", "/predict"), ("GET", "/healthz"), ("GET", "/model"), ("GET", "/metrics")]
QUIET: dict[str, Any] = {
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "derandomize": True,
}


def outliving(app: ASGIApp) -> ASGIApp:
    """The application without its end, which schemathesis would bring about after each request."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})

    return answer


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "with a token"])
def api(place: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, dict[str, str]]]:
    """The description of a server and a way to it, and what a request must bring."""
    service = make_service(place)
    service.warm_up()
    films = st.sampled_from([path.read_bytes() for path in films_of(place)[:4]])
    bodies = st.one_of(films, films.map(lambda film: film[:500]), st.binary(max_size=300))
    for kind in ("image/jpeg", "image/png", "application/dicom", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, bodies)
    # As in life: other machines may call a server with a token by any name.
    app = build_app(service, token=request.param, hosts=None if request.param else LOOPBACK)
    yield (
        schemathesis.openapi.from_asgi("/openapi.json", outliving(app), headers=HOST),
        {**HOST, **(BEARER if request.param else {})},
    )
    service.close()


def test_all_addresses_are_described(api: tuple[Any, dict[str, str]]) -> None:
    schema, _ = api
    described = {(one.ok().method.upper(), one.ok().path) for one in schema.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    # The others take nothing that could be unsound.
    [(*one, GenerationMode.POSITIVE) for one in OPERATIONS] + [("POST", "/predict", GenerationMode.NEGATIVE)],
)
def test_each_answer_is_one_that_is_described_and_none_is_a_failure_of_ours(
    api: tuple[Any, dict[str, str]], method: str, path: str, mode: GenerationMode
) -> None:
    schema, headers = api
    operation = schema[path][method]
    statuses: set[int] = set()

    @settings(max_examples=40 if path == "/predict" else 3, deadline=None, **QUIET)
    @given(case=operation.as_strategy(generation_mode=mode))
    def look(case: Any) -> None:
        response = case.call(headers=headers)
        statuses.add(response.status_code)
        # Bytes that are no film are sound by a description that knows bytes alone, and rightly refused.
        case.validate_response(response, excluded_checks=[positive_data_acceptance], headers=headers)

    look()
    assert statuses
    assert max(statuses) < 500
    if mode is GenerationMode.POSITIVE:
        # Not refusals alone: else nothing of the answer's form would have been looked at.
        assert 200 in statuses


def test_a_refusal_is_described_like_an_answer(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    responses = schema["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "403", "408", "413", "415", "421", "422", "500", "503"}
    for status, described in responses.items():
        kind = "application/json" if status == "200" else "application/problem+json"
        assert set(described["content"]) == {kind}
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert set(responses["503"]["headers"]) == {"Retry-After"}
