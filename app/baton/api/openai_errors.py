"""Errors in the form that OpenAI's clients read."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..dialects.openai import ErrorContent, error_of
from ..errors import RequestError, Unauthenticated
from .error_forms import answered_by, headers_for_sdks
from .request import json_answer
from .routing import JSON, ErrorForm


class ErrorAnswer(TypedDict):
    """An error in OpenAI's form."""

    error: ErrorContent


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error."""
    headers = headers_for_sdks(error)
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        # The words by which OpenAI's own clients know a limit; the message says which limit it is.
        content: Any = {"error": error_of("rate_limit_exceeded", str(error), "requests")}
    else:
        code = "invalid_api_key" if isinstance(error, Unauthenticated) else error.code
        content = error_body(error.status, code, str(error))
    return json_answer(request, content, status=error.status, headers=headers)


def error_body(status: int, code: str, message: str) -> ErrorAnswer:
    """Return an error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": error_of(code, message, kind)}


OPENAI_ERROR: Final = ErrorForm(JSON, ErrorAnswer, answered_by(refusal))
