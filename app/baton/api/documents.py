"""What a pod says of itself: its API as an OpenAPI document, and a page that explains its errors. Anybody may read."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import errors_page, problems
from .openapi_document import document
from .request import AsgiResponse, answered, common_headers, json_answer


async def openapi(request: Request) -> AsgiResponse:
    """Give the OpenAPI document."""
    servers = [{"url": problems.address(request, "openapi").removesuffix("/openapi.json") or "/"}]
    return json_answer(request, {**await _document(request), "servers": servers})


async def errors(request: Request) -> AsgiResponse:
    """Give the page of errors."""
    headers = common_headers(request) | {"content-security-policy": errors_page.content_security_policy()}
    return Response(_page(), headers=headers, media_type="text/html")


ROUTES = [
    Route("/openapi.json", answered(openapi, None), methods=["GET"], name="openapi"),
    Route(problems.PAGE_PATH, answered(errors, None), methods=["GET"], name=problems.PAGE),
]


async def _document(request: Request) -> dict[str, Any]:
    """The document of the app, made when it is first asked for: that takes long enough to be noticed by others."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = await asyncio.to_thread(document, request.app.routes)
    made: dict[str, Any] = state.openapi
    return made


@functools.cache
def _page() -> str:
    return errors_page.page()
