"""The addresses of the server and what OpenAPI says of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from importlib import resources
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from cxr.serving.answers import RESEARCH_ONLY, Health, ModelAnswer, PredictionsAnswer
from cxr.serving.guard import LOOPBACK, Guard, log, where_and_what
from cxr.serving.metrics import WENT_AWAY
from cxr.serving.problems import Overloaded, Problem, ProblemAnswer, declared
from cxr.serving.service import Service
from cxr.serving.uploads import CLOSE, FORM, RAW, read_upload

T = TypeVar("T")

ASSETS = resources.files("cxr.serving") / "assets"

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

MOST_NEIGHBOURS = 20

BINARY = {"type": "string", "format": "binary"}

PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "description": "One film as the body itself (the fast way), or several as the files of a form.",
    "content": {
        **{kind: {"schema": BINARY} for kind in RAW},
        FORM: {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": BINARY, "minItems": 1}},
                "required": ["file"],
            }
        },
    },
}

PROTECTED: dict[str, Any] = {"security": [{"token": []}]}


def build_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
    public_name: str | None = None,
) -> ASGIApp:
    """The application, guarded; see ``Guard`` for the arguments. It closes the service at its end."""
    app = FastAPI(
        title="cxr",
        version=version("cxr"),
        description=f"A fitted head on new radiographs. {RESEARCH_ONLY}",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(service),
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
    )
    _answer_errors_as_problems(app)
    _add_prediction(app, service, token)
    _add_watching(app, service, token)
    _add_page(app)
    _complete_description(app, token)
    return Guard(app, token=token, hosts=hosts, public_name=public_name, on_prediction=service.metrics.answered)


def _lifespan(service: Service) -> Any:  # noqa: ANN401 - FastAPI's own type is not public
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # The server listens meanwhile, and /healthz says that it is not ready.
        warming = asyncio.create_task(_warm_up(service))
        try:
            yield
        finally:
            await warming
            await asyncio.to_thread(service.close)

    return lifespan


async def _warm_up(service: Service) -> None:
    try:
        await asyncio.to_thread(service.warm_up)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server stays, and says that it is not ready
        log.error("the network did not run: %s", where_and_what(error))


def _add_prediction(app: FastAPI, service: Service, token: str | None) -> None:
    refusals = (400, *([401] if token else []), 403, 408, 413, 415, 421, 422, 500, 503)
    body: dict[str, Any] = {"requestBody": PREDICT_BODY, **(PROTECTED if token else {})}

    @app.post(
        "/predict",
        summary="What the model says of one film or several",
        response_model=PredictionsAnswer,
        responses=declared(*refusals),
        openapi_extra=body,
    )
    async def predict(
        request: Request,
        explain: Annotated[bool, Query(description="add the film and the evidence on it, as pictures")] = False,
        neighbours: Annotated[
            int, Query(ge=0, le=MOST_NEIGHBOURS, description="add so many of the nearest known cases")
        ] = 0,
    ) -> Response:
        limits = service.limits
        deadline = asyncio.get_running_loop().time() + limits.timeout
        with service.admission.request() as room:
            try:
                async with asyncio.timeout_at(deadline):
                    files = await read_upload(request, limits, room)
            except TimeoutError as error:
                raise Problem(408, f"the film did not arrive within {limits.timeout:g} s", CLOSE) from error
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await _while_there(request, service.answer(files, explain=explain, neighbours=neighbours))
            except TimeoutError as error:
                raise Overloaded(f"no answer within {limits.timeout:g} s: ask again in a moment") from error
        return Response(answer.model_dump_json(), media_type="application/json")


async def _while_there(request: Request, answering: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer as long as there is somebody to hear it.

    Raises:
        Problem: 499, which nobody hears, where the client went away; what had not begun is left undone.
    """
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(request.receive())
    try:
        # All of the body has been read: what comes now is the end of the connection.
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Problem(WENT_AWAY, "the connection ended before the answer", CLOSE)
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


def _add_watching(app: FastAPI, service: Service, token: str | None) -> None:
    refusals = declared(401, 421) if token else declared(421)
    protected = PROTECTED if token else None
    exposition = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/healthz", summary="Whether films are answered", response_model=Health, responses=declared(421, 503))
    async def healthz() -> Response:
        if not service.ready.is_set():
            raise Overloaded("the network has not run yet")
        return Response(Health(status="ready").model_dump_json(), media_type="application/json")

    # What some proxies ask; the answer's body is the server's to leave out.
    app.add_api_route("/healthz", healthz, methods=["HEAD"], include_in_schema=False)

    @app.get(
        "/model",
        summary="Which model answers, and what is known of it",
        response_model=ModelAnswer,
        responses=refusals,
        openapi_extra=protected,
    )
    async def model() -> Response:
        return Response(service.about().model_dump_json(), media_type="application/json")

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: exposition, **refusals},
        openapi_extra=protected,
    )
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), headers={"Content-Type": service.metrics.content_type})


def _add_page(app: FastAPI) -> None:
    files = {
        path.name: (path.read_bytes(), MEDIA_TYPES[path.name.rpartition(".")[2]])
        for path in ASSETS.iterdir()
        if path.name.rpartition(".")[2] in MEDIA_TYPES
    }

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(files["page.html"][0], media_type="text/html")

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in files:
            raise Problem(404, "there is nothing here")
        content, media_type = files[name]
        return Response(content, media_type=media_type)


def _answer_errors_as_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def as_it_is(_request: Request, problem: Problem) -> Response:
        return problem.response

    @app.exception_handler(RequestValidationError)
    async def of_parameters(_request: Request, error: RequestValidationError) -> Response:
        # Where and why, but not what: the value may be anything.
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return Problem(422, said).response

    @app.exception_handler(HTTPException)
    async def of_routing(_request: Request, error: HTTPException) -> Response:
        detail = {404: "there is nothing here", 405: "not with this method"}.get(error.status_code, "refused")
        return Problem(error.status_code, detail, error.headers).response

    @app.exception_handler(Exception)
    async def of_ours(_request: Request, _error: Exception) -> Response:
        # Starlette raises it again behind this answer, and the guard notes it.
        return Problem(500, "the server failed; its log says where").response


def _complete_description(app: FastAPI, token: str | None) -> None:
    """Complete what FastAPI writes: the schema of problems, and the token where one is wanted."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})[ProblemAnswer.__name__] = ProblemAnswer.model_json_schema()
        if token:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
