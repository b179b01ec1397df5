"""Errors in the form that Anthropic's clients read."""

from __future__ import annotations

from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..dialects.anthropic import ErrorContent, error_of
from ..errors import RequestError
from ..observability import request_ids
from .error_forms import answered_by, headers_for_sdks
from .request import json_answer
from .routing import JSON, ErrorForm


class AnthropicErrorAnswer(TypedDict):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: ErrorContent
    request_id: str | None


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error."""
    headers = headers_for_sdks(error) | request_id_header()
    return json_answer(request, error_body(error.status, error.code, str(error)), status=error.status, headers=headers)


def error_body(status: int, code: str, message: str) -> AnthropicErrorAnswer:
    """Return an error in Anthropic's form."""
    return {"type": "error", "error": error_of(status, code, message), "request_id": request_ids.current()}


def request_id_header() -> dict[str, str]:
    """Return the header in which Anthropic's clients look for the id of a request."""
    request_id = request_ids.current()
    return {} if request_id is None else {"request-id": request_id}


ANTHROPIC_ERROR: Final = ErrorForm(JSON, AnthropicErrorAnswer, answered_by(refusal))
