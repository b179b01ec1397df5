"""The headers of every answer, and errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
from typing import Any, Final, NotRequired

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from typing_extensions import TypedDict

from ..codes import ENDED_FROM_OUTSIDE, EndCode, RefusalCode
from ..errors import (
    POD_FAULT,
    InternalError,
    InvalidRequest,
    NotHere,
    PassingError,
    RequestError,
    RequestMemoryFull,
    RequestTooLarge,
    StreamClosed,
    Unauthenticated,
    Unavailable,
    WrongMethod,
)
from ..observability import request_ids
from ..pod.pod import Pod
from . import path_prefix

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
# The name of the route of the page that explains errors, and its path within the app.
PAGE: Final = "errors"
PAGE_PATH: Final = "/errors"

# No answer may be cached, sniffed, framed, or embedded by other sites. Pages add their own policies.
SECURITY_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    # CORS requests ignore this one, and follow the rules of CORS.
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Problem(TypedDict):
    """An error as clients get it. `type` is the path of a page that explains it."""

    type: str
    title: str
    status: int
    detail: str
    code: RefusalCode | EndCode
    request_id: str | None
    reason: NotRequired[str]  # how a closed stream ended


async def request_error(request: Request, error: Exception) -> Response:
    """Answer a request that Baton refuses."""
    assert isinstance(error, RequestError)
    note(request, error)
    return _problem(request, error, error_headers(error))


async def http_error(request: Request, error: Exception) -> Response:
    """Answer a request that the router refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(_methods_here(request))
        refused = WrongMethod(f"{path_of(request):.200} allows {allowed}, but not {request.method:.20}.")
        return _problem(request, refused, {"allow": allowed})
    if error.status_code == 404:
        return _problem(request, NotHere(f"No route for {path_of(request):.200}."), {})
    return _problem(request, InvalidRequest(error.detail), {})


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Answer an unexpected exception, which the server logs with its traceback."""
    del error
    return _problem(request, InternalError(POD_FAULT), {})


HANDLERS: Final[dict[Any, Any]] = {
    RequestError: request_error,
    HTTPException: http_error,
    Exception: unexpected_error,
}


def answer_headers(pod: Pod | None) -> dict[str, str]:
    """Return the headers of every answer. A leaving pod closes connections, so that clients go to another pod."""
    headers = dict(SECURITY_HEADERS)
    if request_id := request_ids.current():
        headers[request_ids.HEADER] = request_id
    if pod is not None:
        headers["x-baton-pod"] = pod.settings.pod_name
        if pod.draining:
            headers["connection"] = "close"
    return headers


def error_headers(error: RequestError) -> dict[str, str]:
    """Return the additional headers of the answer to a refused request."""
    # Otherwise the server would read and drop all that the client still sends.
    closing = {"connection": "close"} if isinstance(error, RequestTooLarge | RequestMemoryFull) else {}
    headers = {**error.headers, **closing}
    if isinstance(error, PassingError):
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


def note(request: Request, error: RequestError) -> None:
    """Log an error that is not the client's fault, and any error's message for the operator."""
    if isinstance(error, Unavailable):
        logger.warning("%s %.200s: %s (%r)", request.method, path_of(request), error.operator or error, error.__cause__)
    elif error.operator is not None:
        logger.warning("%s %.200s: %s: %s", request.method, path_of(request), error.code, error.operator)


def path_of(request: Request) -> str:
    """Return the path of a request. `request.url` would also depend on the header `Host`."""
    path: str = request.scope["path"]
    return path


def address(request: Request, name: str, **parameters: Any) -> str:
    """Return the path of a route as clients see it: with the prefix that proxies stripped, and the app's mount path.

    It has no scheme and no host: a pod behind a proxy does not know them. `request.url_for` would also depend on the
    names of the routes of an outer app.
    """
    path = str(request.app.url_path_for(name, **parameters))
    return path_prefix.before(request.scope, request.app.settings) + path


def _methods_here(request: Request) -> list[str]:
    """Return the methods of all routes with this path. The router names only those of the first."""
    here = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    return sorted({method for route in here for method in route.methods or ()})


def encoded(error: RequestError, page: str) -> bytes:
    """Return an error as JSON, with a link into the page of errors at that address."""
    code = code_of(error)
    content: Problem = {
        "type": f"{page}#{code}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": code,
        "request_id": request_ids.current(),
    }
    if isinstance(error, StreamClosed):
        content["reason"] = error.reason
    return orjson.dumps(content)


def code_of(error: RequestError) -> str:
    """Return the code of an error. For an append to a stream that was ended from outside, that is the end's code."""
    return error.reason if isinstance(error, StreamClosed) and error.reason in ENDED_FROM_OUTSIDE else error.code


def _problem(request: Request, error: RequestError, headers: dict[str, str]) -> Response:
    known = answer_headers(getattr(request.app.state, "pod", None))
    return Response(encoded(error, address(request, PAGE)), error.status, known | headers, MEDIA_TYPE)
