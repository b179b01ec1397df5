"""Errors in the form that LangGraph's clients read."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from ..codes import RefusalCode
from ..errors import RequestError
from . import problems
from .error_forms import answered_by
from .request import json_answer
from .routing import JSON, ErrorForm


class LangGraphError(TypedDict):
    """An error: a sentence, and its code."""

    detail: str
    code: RefusalCode


def refusal(request: Request, error: RequestError) -> Response:
    """Answer an error."""
    content: LangGraphError = {"detail": str(error), "code": error.code}
    return json_answer(request, content, status=error.status, headers=problems.error_headers(error))


LANGGRAPH_ERROR: Final = ErrorForm(JSON, LangGraphError, answered_by(refusal))
