"""The native routes: streams, and their events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import problems, streams
from ..database import translated
from ..dialects import native, sse, text
from ..dialects.dialect import Header, Reader
from ..errors import Unavailable
from ..events import parse_cursor
from ..models import CreateStream, FindStreams, FollowEvents, GetStream, describe, metadata_alternatives, validated
from ..snapshot import Snapshot
from ..streams import Stream
from . import actions
from .following import connection, count_resume, follow_frames, require_followable, subscribe, wait_for_end
from .request import (
    Answer,
    answered,
    common_headers,
    json_answer,
    parse_json,
    parse_stream_id,
    pod_of,
    principal_of,
    raw_headers,
    read_body,
)


class Retry:
    """An answer of 200 that only says when to come back. Any other status would stop an EventSource for ever."""

    def __init__(self, reconnect_milliseconds: int, headers: Sequence[Header] = ()) -> None:
        self._body = sse.retry_block(random.randint(reconnect_milliseconds, 3 * reconnect_milliseconds))
        self._headers = [*sse.HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


async def create_stream(request: Request) -> Answer:
    """Queue a stream; with `Accept: text/event-stream` or `text/plain`, follow it in the same round trip.

    A client that repeats such a request, as some do to reconnect, goes on after its `Last-Event-ID`, if its
    `Idempotency-Key` says that it is the same stream.
    """
    pod = pod_of(request)
    body = await read_body(request)
    wanted = validated(CreateStream, parse_json(body))
    events = validated(FollowEvents, _asked(request))
    plain, followed = _wants_text(request), "text/event-stream" in request.headers.get("accept", "")
    if plain:
        require_followable(request)
    elif followed and pod.draining:
        # Nothing is created that this pod cannot tell of.
        return _retry(request)
    # Plain text cannot say that it begins again.
    new = actions.new_stream(request, wanted, on_worker_lost="fail" if plain else pod.settings.on_worker_lost)
    cursor = parse_cursor(request.headers.get("last-event-id"))
    stream, created = await actions.create(request, new, body)
    headers = {"location": request.url_for("stream", id=stream.id).path}
    if plain:
        return await follow_frames(request, stream.id, text.TEXT, text.START, headers=headers)
    if followed:
        return await _follow(request, stream.id, events, cursor=0 if created else cursor, headers=headers)
    return json_answer(request, _described(request, stream), status=201 if created else 200, headers=headers)


async def find_streams(request: Request) -> Answer:
    """List streams, newest first."""
    query = dict(request.query_params)
    metadata = {name: query.pop(name) for name in list(query) if name.startswith("metadata.")}
    wanted = validated(FindStreams, query)
    principal = principal_of(request)
    principal.require_tenant()
    async with translated():
        found = await streams.find(
            pod_of(request).pool,
            tenant=principal.tenant,
            before=wanted.before,
            status=wanted.status,
            metadata=metadata_alternatives(metadata),
            limit=wanted.limit + 1,
        )
    page = found[: wanted.limit]
    following = None
    if len(found) > wanted.limit:
        onward = request.url.include_query_params(before=page[-1].id)
        following = f"{onward.path}?{onward.query}"
    return json_answer(
        request,
        {"data": [_described(request, stream) for stream in page], "next": following},
    )


async def get_stream(request: Request) -> Answer:
    """Tell a stream's state and its answer so far; with `?wait=20`, wait for its end at most so many seconds."""
    wanted = validated(GetStream, dict(request.query_params))
    stream_id = _stream_id(request)
    if wanted.wait > 0:
        await wait_for_end(request, stream_id, wanted.wait)
    content = await actions.read(request, stream_id)
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines, content.last_seq)
    return json_answer(request, _described(request, content.stream) | snapshot.as_dict())


async def follow_events(request: Request) -> Answer:
    """Send the events after the cursor: first those in the log, then those to come."""
    query = request.query_params
    stream_id = _stream_id(request)
    raw = request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId")
    cursor = parse_cursor(raw)
    wanted = validated(FollowEvents, _asked(request))
    if _wants_text(request):
        return await follow_frames(request, stream_id, text.TEXT, text.START)
    if wanted.snapshot and not cursor:
        return await _follow_from_snapshot(request, stream_id, wanted)
    return await _follow(request, stream_id, wanted, cursor=cursor)


async def cancel_stream(request: Request) -> Answer:
    """Ask the generator to stop. Doing it again, or after the end, changes nothing."""
    stream, stopping = await actions.cancel(request, _stream_id(request))
    return json_answer(request, _described(request, stream), status=202 if stopping else 200)


async def delete_stream(request: Request) -> Answer:
    """Erase a stream and its events; if it is running, its generator is stopped."""
    await actions.erase(request, _stream_id(request))
    return Response(status_code=204, headers=common_headers(request))


ROUTES = [
    Route("/v1/streams", answered(create_stream, "create"), methods=["POST"]),
    Route("/v1/streams", answered(find_streams, "read"), methods=["GET"]),
    Route("/v1/streams/{id}", answered(get_stream, "read"), methods=["GET"], name="stream"),
    Route("/v1/streams/{id}", answered(delete_stream, "admin"), methods=["DELETE"]),
    Route("/v1/streams/{id}/events", answered(follow_events, "read"), methods=["GET"], name="events"),
    Route("/v1/streams/{id}/cancel", answered(cancel_stream, "cancel"), methods=["POST"]),
]


async def _follow_from_snapshot(request: Request, stream_id: UUID, wanted: FollowEvents) -> Answer:
    """Begin with one event that holds the answer so far. The end of a stream comes as itself, behind it."""
    if pod_of(request).draining or request.method == "HEAD":
        return await _follow(request, stream_id, wanted)
    try:
        content = await actions.read(request, stream_id)
    except Unavailable:
        if problems.MEDIA_TYPE in request.headers.get("accept", ""):
            raise
        return _retry(request)
    cursor = content.last_seq - content.whole
    snapshot = await asyncio.to_thread(Snapshot.of, content.lines[:cursor], cursor)
    opening = native.snapshot_frame(snapshot, wanted.view) if cursor else b""
    return await _follow(request, stream_id, wanted, cursor=cursor, opening=opening)


async def _follow(
    request: Request,
    stream_id: UUID,
    wanted: FollowEvents,
    *,
    cursor: int = 0,
    opening: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
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
    except Unavailable:
        if problems.MEDIA_TYPE in request.headers.get("accept", ""):
            raise
        return _retry(request, headers)
    if subscriber.finished:
        pod.relays.unsubscribe(subscriber)
        return Response(status_code=204, headers=common_headers(request))
    if request.method == "HEAD":
        pod.relays.unsubscribe(subscriber)
        return _retry(request, headers)
    if cursor and not opening:
        count_resume(request, subscriber)
    return connection(
        request,
        subscriber,
        Reader(native.VIEWS[wanted.view], native.START, cursor),
        opening=opening,
        headers=headers,
        window_seconds=wanted.window_ms / 1000,
    )


def _retry(request: Request, headers: Mapping[str, str] | None = None) -> Retry:
    known = common_headers(request) | dict(headers or {})
    return Retry(pod_of(request).settings.reconnect_milliseconds, raw_headers(known))


def _asked(request: Request) -> dict[str, str]:
    """What the query says of how events are to be told; the rest is for others."""
    return {name: value for name, value in request.query_params.items() if name in FollowEvents.model_fields}


def _wants_text(request: Request) -> bool:
    # Some clients name it among others, behind JSON.
    first = request.headers.get("accept", "").partition(",")[0].partition(";")[0]
    return first.strip().lower() == "text/plain"


def _stream_id(request: Request) -> UUID:
    return parse_stream_id(request.path_params["id"])


def _described(request: Request, stream: Stream) -> dict[str, Any]:
    # A path without scheme and host, which a pod behind a proxy cannot know.
    return describe(stream, request.url_for("events", id=stream.id).path)
