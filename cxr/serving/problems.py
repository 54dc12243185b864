"""Errors as answers: problem details (RFC 9457) say what was wrong, and nothing of what was sent or of our code."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from http.client import responses
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

RETRY_AFTER = {"Retry-After": "1"}
"""Seconds: a queue of films is worked off in about that."""


class ProblemAnswer(BaseModel):
    """What went wrong, after RFC 9457."""

    type: str = Field(
        default="about:blank", description="always about:blank: the status says what kind of problem it is"
    )
    title: str = Field(description="the status in words")
    status: int = Field(description="the HTTP status", ge=400, le=599)
    detail: str = Field(description="what was wrong with this request, in a sentence")


class Problem(Exception):  # noqa: N818 - it is RFC 9457's word
    """A request that is not answered as asked; it becomes a ``ProblemAnswer``.

    Attributes:
        status: HTTP's.
        detail: for the one who asked; never of what a file holds.
        headers: to send along.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    @property
    def answer(self) -> ProblemAnswer:
        """What is sent."""
        # 499 is no standard's, and nobody hears it.
        return ProblemAnswer(title=responses.get(self.status, ""), status=self.status, detail=self.detail)

    @property
    def response(self) -> Response:
        """The same, with its headers."""
        content = self.answer.model_dump_json().encode()
        return Response(content, self.status, headers=self.headers, media_type=MEDIA_TYPE)


class Overloaded(Problem):
    """No room at the moment: ask again a little later."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, detail, RETRY_AFTER)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI is told of these errors."""
    schema = {"$ref": f"#/components/schemas/{ProblemAnswer.__name__}"}
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        if status == 503:
            seconds = {"description": "seconds until it is worth asking again", "schema": {"type": "integer"}}
            found[status]["headers"] = {"Retry-After": seconds}
    return found
