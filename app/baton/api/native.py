"""The native routes: streams, and their events."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..auth import credentials
from ..auth.tokens import granted
from ..db import stream_lists
from ..db.postgres import translated
from ..db.stream_lists import StreamFilter
from ..db.streams import Stream
from ..dialects import native, sse, text
from ..dialects.dialect import Header, Reader
from ..errors import NotHere, PassingError, Unavailable
from ..events import parse_cursor
from ..principal import View
from ..snapshot import Snapshot
from . import actions, problems
from .following import (
    count_resume,
    event_stream,
    follow_frames,
    require_followable,
    require_staying,
    subscribe,
    wait_for_end,
)
from .models import (
    CreatedStream,
    CreateStream,
    FindStreams,
    FollowEvents,
    GetStream,
    StreamContent,
    StreamPage,
    TokenContent,
    TokenOptions,
    describe,
    describe_with_answer,
    metadata_alternatives,
    seen,
    take_filters,
    validated,
)
from .request import (
    AsgiResponse,
    Handler,
    accepted_of,
    answered,
    charge_rows,
    common_headers,
    found,
    header_of,
    json_answer,
    parse_json,
    parse_stream_id,
    pod_of,
    principal_of,
    query_of,
    read_body,
    stream_headers,
)

# Where the token of a stream is that was created and followed in one request.
TOKEN_HEADER: Final = "x-baton-token"  # noqa: S105
# How a query names the last event that a client has: as a page writes it, and as polyfills of EventSource add it.
_CURSORS: Final = ("last_event_id", "lastEventId")


class Retry:
    """An answer of 200 that only says when to come back. Any other status would stop an EventSource for ever."""

    def __init__(self, reconnect_milliseconds: int, headers: Sequence[Header] = ()) -> None:
        self._body = sse.retry_block(random.randint(reconnect_milliseconds, 3 * reconnect_milliseconds))
        self._headers = [*sse.HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


async def create_stream(request: Request) -> AsgiResponse:
    """Queue a stream; with `Accept: text/event-stream` or `text/plain`, follow it in the same round trip.

    A client that repeats such a request, as some do to reconnect, continues after its last event id, if its
    `Idempotency-Key` says that it is the same stream.
    """
    pod = pod_of(request)
    body = await read_body(request)
    wanted = validated(CreateStream, parse_json(body))
    events = validated(FollowEvents, _asked(request))
    plain, followed = _wants_text(request), "text/event-stream" in accepted_of(request)
    if plain:
        require_followable(request)
    elif followed:
        try:
            # Nothing is created that this pod cannot tell of.
            require_staying(request)
        except PassingError as error:
            return _later(request, error)
    # Plain text cannot say that it begins again.
    new = actions.new_stream(request, wanted, on_worker_lost="fail" if plain else pod.settings.on_worker_lost)
    cursor = _cursor(request)
    # Before anything is created for somebody who wants more than there is to be had.
    granted(principal_of(request), wanted.token.wish())
    stream, created = await actions.create(request, new, body)
    headers = {"location": problems.address(request, "stream", id=stream.id)}
    token, _ = actions.token(request, stream, wanted.token.wish())
    if token is not None:
        headers[TOKEN_HEADER] = token
    if plain:
        return await follow_frames(request, stream.id, text.TEXT, text.START, headers=headers)
    if followed:
        return await _follow(request, stream.id, events, cursor=0 if created else cursor, headers=headers)
    content: CreatedStream = {**_described(request, stream), "token": token}
    return json_answer(request, content, status=201 if created else 200, headers=headers)


async def find_streams(request: Request) -> AsgiResponse:
    """List streams, newest first. Follow `next` until it is null: a page before may be short, or empty."""
    query = query_of(request)
    metadata = take_filters(query)
    wanted = validated(FindStreams, query)
    principal = principal_of(request)
    principal.require_tenant()
    selection = StreamFilter(
        principal.tenant,
        last=stream_lists.LAST if wanted.before is None else stream_lists.below(wanted.before),
        statuses=None if wanted.status is None else [wanted.status],
        metadata=metadata_alternatives(metadata),
    )
    async with translated(pod_of(request).pool), pod_of(request).pool.acquire() as connection:
        page = await stream_lists.find(connection, selection, wanted.limit)
    charge_rows(request, page.scanned)
    following = None
    if page.before is not None:
        left_out = {"before", credentials.QUERY}
        onward = [(name, value) for name, value in request.query_params.multi_items() if name not in left_out]
        following = f"{problems.address(request, 'streams')}?{urlencode([*onward, ('before', str(page.before))])}"
    content: StreamPage = {"data": [_described(request, stream) for stream in page.streams], "next": following}
    return json_answer(request, content)


async def get_stream(request: Request) -> AsgiResponse:
    """Tell a stream's state and its answer so far; with `?wait=20`, wait for its end at most so many seconds."""
    wanted = validated(GetStream, query_of(request))
    stream_id = _stream_id(request)
    if wanted.wait > 0:
        await wait_for_end(request, stream_id, wanted.wait)
    content = await actions.read(request, stream_id)
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines, content.last_seq)
    described = describe_with_answer(_described(request, content.stream), snapshot)
    return json_answer(request, seen(described, principal_of(request).view))


async def follow_events(request: Request) -> AsgiResponse:
    """Send the events after the cursor: first those in the log, then those to come."""
    stream_id = _stream_id(request)
    cursor = _cursor(request)
    wanted = validated(FollowEvents, _asked(request))
    if _wants_text(request):
        return await follow_frames(request, stream_id, text.TEXT, text.START)
    principal_of(request).require_view(_view(request, wanted))
    if wanted.snapshot and not cursor:
        return await _follow_from_snapshot(request, stream_id, wanted)
    return await _follow(request, stream_id, wanted, cursor=cursor)


async def cancel_stream(request: Request) -> AsgiResponse:
    """Ask the generator to stop. Doing it again, or after the end, changes nothing."""
    stream, stopping = await actions.cancel(request, _stream_id(request))
    described = seen(_described(request, stream), principal_of(request).view)
    return json_answer(request, described, status=202 if stopping else 200)


async def delete_stream(request: Request) -> AsgiResponse:
    """Erase a stream and its events; if it is running, its generator is stopped."""
    await actions.erase(request, _stream_id(request))
    return Response(status_code=204, headers=common_headers(request))


async def make_token(request: Request) -> AsgiResponse:
    """Sign another token of a stream, which allows no more than the caller may do."""
    body = await read_body(request)
    wish = validated(TokenOptions, parse_json(body) if body else {}).wish()
    stream_id = _stream_id(request)
    async with translated(pod_of(request).pool):
        stream = await found(request, stream_id)
    token, expires_at = actions.token(request, stream, wish)
    if token is None:
        raise NotHere(
            "No token can be issued for this stream: tokens are not in use here, or it ended too long ago.",
            operator="access is anonymous, BATON_TOKEN_KEYS is not set, or the stream ended more than "
            "BATON_TOKEN_GRACE_SECONDS ago",
        )
    content: TokenContent = {"token": token, "expires_at": expires_at}
    return json_answer(request, content, status=201)


def coming_back(handler: Handler) -> Handler:
    """Answer a passing trouble with 200 and a time to come back, since any other status stops an EventSource for ever.

    A client that asks for problem+json, or for plain text, gets the truth.
    """

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except PassingError as error:
            if _wants_text(request):
                raise
            return _later(request, error)

    return endpoint


ROUTES = [
    Route("/v1/streams", answered(create_stream, "create"), methods=["POST"]),
    Route("/v1/streams", answered(find_streams, "read"), methods=["GET"], name="streams"),
    Route("/v1/streams/{id}", answered(get_stream, "read", narrow=True), methods=["GET"], name="stream"),
    Route("/v1/streams/{id}", answered(delete_stream, "admin"), methods=["DELETE"]),
    Route(
        "/v1/streams/{id}/events",
        coming_back(answered(follow_events, "read", narrow=True)),
        methods=["GET"],
        name="events",
    ),
    Route("/v1/streams/{id}/cancel", answered(cancel_stream, "cancel", narrow=True), methods=["POST"]),
    Route("/v1/streams/{id}/token", answered(make_token, "read", narrow=True), methods=["POST"]),
]


async def _follow_from_snapshot(request: Request, stream_id: UUID, wanted: FollowEvents) -> AsgiResponse:
    """Begin with one event that holds the answer so far. The end of a stream comes as itself, behind it."""
    if pod_of(request).draining or request.method == "HEAD":
        return await _follow(request, stream_id, wanted)
    content = await actions.read(request, stream_id)
    cursor = content.last_seq - content.whole
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines[:cursor], cursor)
    opening = native.snapshot_frame(snapshot, _view(request, wanted)) if cursor else b""
    return await _follow(request, stream_id, wanted, cursor=cursor, opening=opening)


async def _follow(
    request: Request,
    stream_id: UUID,
    wanted: FollowEvents,
    *,
    cursor: int = 0,
    opening: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> AsgiResponse:
    """Subscribe, and answer with events; 204 when the client has all of them.

    A passing trouble is answered with 200 and a time to come back, since any other status stops an EventSource for
    ever; a client that asks for problem+json gets the truth.
    """
    pod = pod_of(request)
    try:
        subscriber = await subscribe(request, stream_id, cursor)
    except asyncio.CancelledError:
        # The server gives up what is still waiting when the pod leaves, and would answer 500.
        if not pod.draining:
            raise
        return _retry(request, headers)
    except PassingError as error:
        return _later(request, error, headers)
    if subscriber.finished:
        pod.relays.unsubscribe(subscriber)
        return Response(status_code=204, headers=common_headers(request))
    if request.method == "HEAD":
        pod.relays.unsubscribe(subscriber)
        return _retry(request, headers)
    if cursor and not opening:
        count_resume(request, subscriber)
    return event_stream(
        request,
        subscriber,
        Reader(native.VIEWS[_view(request, wanted)], native.START, cursor),
        opening=opening,
        headers=headers,
        window_seconds=wanted.batch_window_ms / 1000,
    )


def _later(request: Request, error: PassingError, headers: Mapping[str, str] | None = None) -> Retry:
    """Ask to come back, or raise the error for a client that asks for it."""
    if problems.MEDIA_TYPE in accepted_of(request):
        raise error
    # A client that waits to be let in need not ask as often as one whose pod has gone.
    return _retry(request, headers, least_seconds=0 if isinstance(error, Unavailable) else error.retry_after_seconds)


def _retry(request: Request, headers: Mapping[str, str] | None = None, *, least_seconds: int = 0) -> Retry:
    milliseconds = max(pod_of(request).settings.reconnect_milliseconds, 1000 * least_seconds)
    return Retry(milliseconds, stream_headers(request, sse.HEADERS, headers))


def _cursor(request: Request) -> int:
    """Return the number of the last event that the client has: the greatest of those that it names.

    A page names one in its own address. A polyfill of EventSource that reconnects leaves that in place, and adds the
    id of the last event that it has received. Numbers of events only rise, across attempts too, so the greatest is the
    newest.

    Raises:
        MalformedCursor: one of them is not a number.
    """
    query = query_of(request, _CURSORS)
    named = (header_of(request, "Last-Event-ID"), *(query.get(name) for name in _CURSORS))
    return max(map(parse_cursor, named))


def _asked(request: Request) -> dict[str, str]:
    """What the query says of how events are to be told; the rest is for others."""
    known = FollowEvents.model_fields
    return {name: value for name, value in query_of(request, known).items() if name in known}


def _wants_text(request: Request) -> bool:
    # Some clients name it among others, behind JSON.
    first = accepted_of(request).partition(",")[0].partition(";")[0]
    return first.strip().lower() == "text/plain"


def _stream_id(request: Request) -> UUID:
    return parse_stream_id(request.path_params["id"])


def _view(request: Request, wanted: FollowEvents) -> View:
    return wanted.view or principal_of(request).view


def _described(request: Request, stream: Stream) -> StreamContent:
    return describe(stream, problems.address(request, "events", id=stream.id))
