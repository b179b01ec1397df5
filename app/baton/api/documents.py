"""The documents of a pod: its API as an OpenAPI document, and a page that explains its errors. Both are public."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from ..errors import InternalError
from . import errors_page, problems
from .openapi_document import document
from .request import AsgiResponse, common_headers, json_answer
from .routing import HTML, JSON, Returns, Routes

ROUTES: Final = Routes("platform")


@ROUTES.route(
    "GET",
    "/openapi.json",
    None,
    {200: Returns("This document.", {JSON: dict[str, Any]})},
    refusals=(InternalError,),
    name="openapi",
)
async def openapi(request: Request) -> AsgiResponse:
    """Return the OpenAPI document."""
    servers = [{"url": problems.address(request, "openapi").removesuffix("/openapi.json") or "/"}]
    return json_answer(request, {**await _document(request), "servers": servers})


@ROUTES.route(
    "GET",
    problems.PAGE_PATH,
    None,
    {200: Returns("What the errors mean.", {HTML: "A page."})},
    refusals=(InternalError,),
    name=problems.PAGE,
)
async def errors(request: Request) -> AsgiResponse:
    """Return the page of errors."""
    headers = common_headers(request) | {"content-security-policy": errors_page.content_security_policy()}
    return Response(_page(), headers=headers, media_type="text/html")


async def _document(request: Request) -> dict[str, Any]:
    """Return the document of the app. It is made once, in a thread, because making it would delay other requests."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = await asyncio.to_thread(document, request.app.routes)
    made: dict[str, Any] = state.openapi
    return made


@functools.cache
def _page() -> str:
    return errors_page.page()
