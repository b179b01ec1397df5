"""How a client begins to follow a stream: in one way for all dialects.

A route of a dialect finds out which stream is meant and where its client is, and states both as an `Opening`. `follow`
does the rest: it subscribes, skips the frames that the client has, and answers with those that follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..dialects.protocol import Dialect, Encoded, Reader
from ..errors import CursorBeyondTail, PassingError, Unavailable
from ..pod.subscriber import Subscriber
from .admission import LEAVING
from .following import count_resume, event_stream, require_followable, subscribe
from .request import AsgiResponse, common_headers, damaged, pod_of, raw_content, shard_of, stream_headers

State = TypeVar("State")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening(Generic[State]):
    """What differs from dialect to dialect, and from client to client, when a stream is followed.

    `begun` has the frames that precede the first event, in its body only those that the client needs. `after` is the
    number of the last frame that the client has. A dialect whose frames are the events also gives it as `cursor`, from
    which the log is read; the others count their frames from the beginning of the log.

    `lead` is sent first, in place of frames up to `after`. `on_passing` answers a temporary error, or raises another
    one; by default the error itself is raised. `on_gone` is awaited when the client leaves before the end.
    """

    dialect: Dialect[State]
    begun: Encoded[State]
    after: int = 0
    cursor: int = 0
    lead: bytes = b""
    window_seconds: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    on_passing: Callable[[PassingError], AsgiResponse] | None = None
    on_gone: Callable[[], Awaitable[None]] | None = None


class HeadersOnly:
    """The answer to `HEAD`: the headers of a stream, without a length."""

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def follow(request: Request, stream_id: UUID, opening: Opening[Any]) -> AsgiResponse:
    """Answer with the frames that the client does not have; with 204 if it has all events of an ended stream.

    Raises:
        CursorBeyondTail: the stream has fewer frames so far.
        OldProtocol: the client uses HTTP/1.0, and the dialect relies on cut connections.
        PodFull, TooManySubscribers: there is no room for another subscriber.
        RawContent: the stream has no events.
        LogDamaged, StreamExpired, StreamNotFound, Unavailable: the stream cannot be followed.
    """
    try:
        return await _follow(request, stream_id, opening)
    except asyncio.CancelledError:
        # The server cancels what still waits when the pod leaves, and would answer 500.
        if opening.on_passing is None or not pod_of(request).draining:
            raise
        return opening.on_passing(Unavailable(LEAVING))
    except PassingError as error:
        if opening.on_passing is None:
            raise
        return opening.on_passing(error)


async def _follow(request: Request, stream_id: UUID, opening: Opening[Any]) -> AsgiResponse:
    dialect = opening.dialect
    if not dialect.reconnects:
        require_followable(request)
    subscriber = await subscribe(request, stream_id, opening.cursor)
    with contextlib.ExitStack() as unless_followed:
        unless_followed.callback(shard_of(request, stream_id).relays.unsubscribe, subscriber)
        if not subscriber.relay.carries_events:
            raise raw_content(stream_id)
        if subscriber.finished:
            return Response(status_code=204, headers=common_headers(request))
        if request.method == "HEAD":
            headers = stream_headers(request, dialect.headers, opening.headers)
            return HeadersOnly([*dialect.headers, *headers])
        reader = Reader(dialect, opening.begun, opening.after)
        # Before the answer begins, so that it can still be an error.
        rest = await _skip(request, reader, subscriber, opening.after)
        unless_followed.pop_all()
    if opening.after and not opening.lead:
        count_resume(request, subscriber)
    return event_stream(
        request,
        subscriber,
        reader,
        opening=opening.lead + opening.begun.body + rest,
        headers=opening.headers,
        window_seconds=opening.window_seconds,
        on_gone=opening.on_gone,
    )


async def _skip(request: Request, reader: Reader[Any], subscriber: Subscriber, after: int) -> bytes:
    """Read the log up to frame number `after`; return the frames that follow it in the same batch."""
    relay = subscriber.relay
    attempts: list[Callable[[], Awaitable[None]]] = [
        relay.catch_up,
        functools.partial(shard_of(request, relay.stream_id).relays.settle, relay),
    ]
    while reader.last < after:
        batches = await subscriber.take()
        if relay.damaged:
            raise damaged(relay.stream_id)
        if relay.rewound and batches and batches[-1].terminal:
            body = reader.read(batches[:-1])
            if reader.last < after:
                relay.require_history(relay.tail)
            return body + reader.read(batches[-1:])
        if body := reader.read(batches):
            return body
        if reader.last < after and (reader.over or not batches):
            if not attempts or reader.over or relay.ended or relay.over:
                raise CursorBeyondTail(
                    f"The stream has only {reader.last} frames so far, but the request asks for frames after number "
                    f"{after}. Start again without a cursor."
                )
            await attempts.pop(0)()
    return b""
