"""Errors in the form that LangGraph's clients read."""

from __future__ import annotations

import functools
import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..codes import RefusalCode
from ..errors import POD_FAULT, InternalError, RequestError
from . import problems
from .admission import Handler
from .request import AsgiResponse, json_answer
from .routing import JSON, ErrorForm

logger = logging.getLogger(__name__)


class LangGraphError(TypedDict):
    """An error: a sentence, and its code."""

    detail: str
    code: RefusalCode


def in_langgraph_form(handler: Handler) -> Handler:
    """Answer the errors of a handler in LangGraph's form."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except RequestError as error:
            problems.note(request, error)
            return _refusal(request, error)
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s %s", request.method, problems.path_of(request))
            return _refusal(request, InternalError(POD_FAULT))

    return endpoint


LANGGRAPH_ERROR = ErrorForm(JSON, LangGraphError, in_langgraph_form)


def _refusal(request: Request, error: RequestError) -> Response:
    if getattr(request.app.state, "pod", None) is None:
        raise error
    content: LangGraphError = {"detail": str(error), "code": error.code}
    return json_answer(request, content, status=error.status, headers=problems.error_headers(error))
