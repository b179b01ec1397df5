"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .errors import PassingError, RequestError, RequestTooLarge, Unauthenticated, Unavailable
from .pod import Pod

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"


async def request_error(request: Request, error: Exception) -> Response:
    """Answer what Baton refuses."""
    assert isinstance(error, RequestError)
    if isinstance(error, Unavailable):
        logger.warning("%s %s: %s (%r)", request.method, request.url.path, error, error.__cause__)
    return _problem(
        request,
        status=error.status,
        code=error.code,
        title=error.title,
        detail=str(error),
        headers=headers_of(error),
    )


def headers_of(error: RequestError) -> dict[str, str]:
    """What a refusal tells in its headers, whatever its form."""
    if isinstance(error, PassingError):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, RequestTooLarge):
        # The server would go on reading, and throwing away, what a client goes on sending.
        return {"connection": "close"}
    return {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}


async def http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    return _problem(
        request,
        status=error.status_code,
        code=code,
        title=phrase,
        detail=error.detail,
        headers=dict(error.headers or {}),
    )


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Answer a fault of ours, which the server logs with its traceback."""
    del error
    detail = "The pod failed to answer; its log says why."
    return _problem(request, status=500, code="internal_error", title="Internal error", detail=detail, headers={})


HANDLERS: Final[dict[Any, Any]] = {
    RequestError: request_error,
    HTTPException: http_error,
    Exception: unexpected_error,
}


def pod_headers(pod: Pod) -> dict[str, str]:
    """What tells which pod answers. A leaving one has its clients connect anew, or they would stay where they are."""
    headers = {"x-baton-pod": pod.settings.pod_name}
    return headers | {"connection": "close"} if pod.draining else headers


def _problem(request: Request, *, status: int, code: str, title: str, detail: str, headers: dict[str, str]) -> Response:
    pod = getattr(request.app.state, "pod", None)
    if pod is not None:
        headers |= pod_headers(pod)
    content = document(status=status, code=code, title=title, detail=detail)
    return Response(content, status, headers, MEDIA_TYPE)


def document(*, status: int, code: str, title: str, detail: str) -> bytes:
    """A problem as JSON."""
    return orjson.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code})
