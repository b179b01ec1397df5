"""The console: a page for operators, and the data that it polls every second or two.

The page is public, since it holds no data. The data needs the scope `admin`, which cannot read conversations: it shows
the state of streams, and only those of the caller's tenant. However many consoles are open, a pod queries the database
once a second for each kind of data, and each query has a bounded cost.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from starlette.requests import Request

from ..db import stream_lists, streams
from ..db.stream_lists import StreamFilter
from ..errors import InternalError, InvalidRequest, NotHere
from ..principal import Principal
from ..version import __version__
from . import console_reading, pages, problems
from .console_content import (
    ConsolePage,
    OverviewContent,
    point_content,
)
from .models import ListStreams, ShowSince
from .refusals import READING
from .request import AsgiResponse, json_answer, pod_of, principal_of, query_of
from .routing import HTML, JSON, Returns, Routes
from .validation import validated

FILES: Final = frozenset(
    (
        *("answer.js", "baton.css", "baton-stream.js", "chart.js", "console.js", "dom.js", "follow.js", "icon.svg"),
        *("markdown.js", "markdown_nodes.js", "marked.js", "marked.LICENSE.md"),
        *("process.js", "scrolling.js", "stream.js", "waiting.js"),
    )
)

_HEX_DIGITS: Final = 32

ROUTES: Final = Routes("console", path={"name": {"type": "string", "minLength": 1, "pattern": r"^[^/]+$"}})


@ROUTES.route(
    "GET", "/console", None, {200: Returns("The page.", {HTML: "A page."})}, refusals=(InternalError,), name="console"
)
async def console(request: Request) -> AsgiResponse:
    """Return the console's page."""
    return pages.answer(request, "console.html", {"console.html"})


@ROUTES.route(
    "GET",
    "/assets/{name}",
    None,
    {
        200: Returns(
            "The file.", {"text/css": "A style.", "text/javascript": "A module.", "image/svg+xml": "A picture."}
        )
    },
    refusals=(InternalError, NotHere),
)
async def asset(request: Request) -> AsgiResponse:
    """Return a file of the console's page."""
    return pages.answer(request, request.path_params["name"], FILES)


@ROUTES.route(
    "GET",
    "/console/overview",
    "admin",
    {200: Returns("Pods, workers, and the last minutes.", {JSON: OverviewContent})},
    refusals=(*READING, InvalidRequest),
    query=(ShowSince,),
)
async def overview(request: Request) -> AsgiResponse:
    """Return the live pods and workers, and the numbers of the last minutes."""
    since = validated(ShowSince, query_of(request)).since
    pod, principal = pod_of(request), principal_of(request)
    known = await pod.recent_answers.get(
        ("overview", principal.tenant), lambda: console_reading.read_overview(pod, principal.tenant)
    )
    content: OverviewContent = {
        "pod": pod.settings.pod_name,
        "version": __version__,
        "tenant": principal.tenant,
        "anonymous": pod.gate.anonymous,
        "scopes": sorted(principal.scopes),
        **known,
        "points": [point_content(point) for point in console_reading.points(pod) if point.at > since],
    }
    return json_answer(request, content)


@ROUTES.route(
    "GET",
    "/console/streams",
    "admin",
    {200: Returns("The newest streams, or those before one.", {JSON: ConsolePage})},
    refusals=(*READING, InvalidRequest),
    query=(ListStreams,),
)
async def list_streams(request: Request) -> AsgiResponse:
    """Return the state of the newest streams of the caller's tenant."""
    wanted = validated(ListStreams, query_of(request))
    pod, principal = pod_of(request), principal_of(request)
    page = problems.address(request, problems.PAGE)
    content = await pod.recent_answers.get(
        ("streams", principal.tenant, wanted.model_dump_json(), page),
        lambda: console_reading.read_streams(pod, principal, _selection(principal, wanted), page),
    )
    return json_answer(request, content)


def _selection(caller: Principal, wanted: ListStreams) -> StreamFilter:
    first, last = _between(wanted)
    statuses = None if wanted.status is None else sorted(streams.LIVE) if wanted.status == "live" else [wanted.status]
    return StreamFilter(caller.tenant, first, last, statuses)


def _between(wanted: ListStreams) -> tuple[UUID, UUID]:
    """Return the lowest and the highest id to list."""
    digits = wanted.id.replace("-", "")[:_HEX_DIGITS]
    first, last = (UUID(digits.ljust(_HEX_DIGITS, filler)) for filler in "0f")
    return first, last if wanted.before is None else min(last, stream_lists.below(wanted.before))
