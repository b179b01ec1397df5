"""Errors in the form that OpenAI's clients read."""

from __future__ import annotations

import functools
import logging
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..dialects.openai import ErrorContent, error_of
from ..errors import POD_FAULT, InternalError, PassingError, RequestError, Unauthenticated
from . import problems
from .admission import Handler
from .request import AsgiResponse, json_answer
from .routing import JSON, ErrorForm

logger = logging.getLogger(__name__)


class ErrorAnswer(TypedDict):
    """An error in OpenAI's form."""

    error: ErrorContent


def in_openai_form(handler: Handler) -> Handler:
    """Answer the errors of a handler in OpenAI's form."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except RequestError as error:
            problems.note(request, error)
            return refusal(request, error)
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s %s", request.method, problems.path_of(request))
            return refusal(request, InternalError(POD_FAULT))

    return endpoint


OPENAI_ERROR: Final = ErrorForm(JSON, ErrorAnswer, in_openai_form)


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error. OpenAI's clients retry by status: a header stops them if the same error would repeat."""
    headers = problems.error_headers(error)
    if not isinstance(error, PassingError):
        headers["x-should-retry"] = "false"
    if getattr(request.app.state, "pod", None) is None:
        raise error
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
