"""The native route of a stream's events, as server-sent events or as plain text.

The number of an event is the cursor that a client returns with. `EventSource` stops for ever at any status but 200, so
an error that may pass is answered with 200 and a time to come back. Clients that accept `application/problem+json` or
`text/plain` get the error.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ..dialects import native, sse, text
from ..dialects.protocol import Header
from ..errors import MalformedCursor, PassingError, Unavailable
from ..events import STREAM_ID, parse_cursor
from ..principal import View
from ..snapshot import Snapshot
from . import actions, opening, problems
from .admission import Handler
from .event_types import Event
from .models import FollowEvents
from .opening import Opening
from .refusals import FOLLOWING
from .request import (
    AsgiResponse,
    accepted_of,
    header_of,
    parse_stream_id,
    pod_of,
    principal_of,
    query_of,
    stream_headers,
)
from .routing import EVENTS, TEXT, Parameter, Returns, Routes
from .validation import validated

PATH: Final = {"id": {"type": "string", "pattern": f"^{STREAM_ID}$"}}

ACCEPT_EVENTS: Final = "Accept: text/event-stream"
ACCEPT_TEXT: Final = "Accept: text/plain"
DATA: Final = "The `data` of each event is one `Event`, its `id` the event's number."
PLAIN: Final = "The text of the answer as it comes. If the connection is cut, the answer is incomplete."

# How a query names the last event that a client has: as a page writes it, and as polyfills of EventSource add it.
_QUERY_CURSORS: Final = ("last_event_id", "lastEventId")
_CURSOR: Final = {"type": "string", "pattern": "^[0-9]{0,18}$"}
LAST_EVENT_ID: Final = Parameter(
    "Last-Event-ID",
    "header",
    "The number of the last event that the client has. The query may name one, too: the greatest counts.",
    _CURSOR,
)
QUERY_CURSOR: Final = Parameter(
    _QUERY_CURSORS[0],
    "query",
    "Like `Last-Event-ID`, for clients that cannot set headers. `lastEventId` means the same: polyfills of "
    "EventSource add it when they reconnect. If there are several, the greatest counts.",
    _CURSOR,
)

ROUTES: Final = Routes("streams", path=PATH)


class Retry:
    """An answer of 200 that only says when to come back. Any other status would stop an EventSource for ever."""

    def __init__(self, reconnect_milliseconds: int, headers: Sequence[Header] = ()) -> None:
        self._body = sse.retry_block(random.randint(reconnect_milliseconds, 3 * reconnect_milliseconds))
        self._headers = [*sse.HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def coming_back(handler: Handler) -> Handler:
    """Answer an error that may pass with a time to come back, wherever in the handler it is raised."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except PassingError as error:
            if wants_text(request):
                raise
            return later(request, error)

    return endpoint


@ROUTES.route(
    "GET",
    "/v1/streams/{id}/events",
    "read",
    {
        200: Returns(
            f"The events after the cursor, those in the log first, then those to come. {DATA} An error that may pass "
            "is answered with an empty stream and a time to come back (`retry:`), except to clients that accept "
            "`application/problem+json`.",
            {EVENTS: Event},
        ),
        204: Returns("The client has all events."),
    },
    refusals=(*FOLLOWING, MalformedCursor),
    query=(FollowEvents,),
    parameters=(LAST_EVENT_ID, QUERY_CURSOR),
    others={ACCEPT_TEXT: {200: Returns("The stream's text from its beginning.", {TEXT: PLAIN})}},
    narrow=True,
    around=coming_back,
    name="events",
)
async def follow_events(request: Request) -> AsgiResponse:
    """Send the events after the cursor: first those in the log, then those to come."""
    stream_id = parse_stream_id(request.path_params["id"])
    cursor = cursor_of(request)
    wanted = wanted_of(request)
    if wants_text(request):
        return await follow_text(request, stream_id)
    principal_of(request).require_view(_view(request, wanted))
    if wanted.snapshot and not cursor:
        return await _follow_from_snapshot(request, stream_id, wanted)
    return await follow(request, stream_id, wanted, cursor=cursor)


async def follow(
    request: Request,
    stream_id: UUID,
    wanted: FollowEvents,
    *,
    cursor: int = 0,
    lead: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> AsgiResponse:
    """Follow a stream's events after the cursor; `lead` is sent in place of those up to it."""
    begun = Opening(
        dialect=native.VIEWS[_view(request, wanted)],
        begun=native.begin(cursor),
        after=cursor,
        cursor=cursor,
        lead=lead,
        window_seconds=wanted.batch_window_ms / 1000,
        headers=headers or {},
        on_passing=lambda error: later(request, error, headers),
    )
    return await opening.follow(request, stream_id, begun)


async def follow_text(request: Request, stream_id: UUID, headers: Mapping[str, str] | None = None) -> AsgiResponse:
    """Follow a stream's text from its beginning."""
    return await opening.follow(request, stream_id, Opening(dialect=text.TEXT, begun=text.START, headers=headers or {}))


def later(request: Request, error: PassingError, headers: Mapping[str, str] | None = None) -> Retry:
    """Ask the client to come back, or raise the error for a client that accepts it."""
    if problems.MEDIA_TYPE in accepted_of(request):
        raise error
    # A client that waits for room need not ask as often as one whose pod has left.
    least_seconds = 0 if isinstance(error, Unavailable) else error.retry_after_seconds
    milliseconds = max(pod_of(request).settings.reconnect_milliseconds, 1000 * least_seconds)
    return Retry(milliseconds, stream_headers(request, sse.HEADERS, headers))


def cursor_of(request: Request) -> int:
    """Return the number of the last event that the client has: the greatest of those that it names.

    A page names one in its own address. A polyfill of EventSource that reconnects leaves that in place, and adds the
    id of the last event that it has received. Numbers of events only rise, across attempts too, so the greatest is the
    newest.

    Raises:
        MalformedCursor: one of them is not a number.
    """
    query = query_of(request, _QUERY_CURSORS)
    named = (header_of(request, LAST_EVENT_ID.name), *(query.get(name) for name in _QUERY_CURSORS))
    return max(map(parse_cursor, named))


def wanted_of(request: Request) -> FollowEvents:
    """Read how the client wants its events from the query, which may have parameters for others.

    Raises:
        InvalidRequest: a value is wrong.
    """
    known = FollowEvents.model_fields
    return validated(FollowEvents, {name: value for name, value in query_of(request, known).items() if name in known})


def wants_text(request: Request) -> bool:
    """Whether a client prefers plain text."""
    # Some clients name it among others, behind JSON.
    first = accepted_of(request).partition(",")[0].partition(";")[0]
    return first.strip().lower() == TEXT


async def _follow_from_snapshot(request: Request, stream_id: UUID, wanted: FollowEvents) -> AsgiResponse:
    """Begin with one event that holds the answer so far. The end of a stream follows as an event of its own."""
    if pod_of(request).draining or request.method == "HEAD":
        return await follow(request, stream_id, wanted)
    content = await actions.read(request, stream_id)
    cursor = content.last_seq - content.whole
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines[:cursor], cursor)
    lead = native.snapshot_frame(snapshot, _view(request, wanted)) if cursor else b""
    return await follow(request, stream_id, wanted, cursor=cursor, lead=lead)


def _view(request: Request, wanted: FollowEvents) -> View:
    return wanted.view or principal_of(request).view
