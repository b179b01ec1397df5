"""Joining a stream, as `opening` does for all dialects, and waiting for its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal
from uuid import UUID

from starlette.requests import Request

from ..db import streams
from ..db.postgres import translated
from ..dialects.protocol import Reader
from ..errors import OldProtocol, StreamNotFound, Unauthenticated, Unavailable
from ..observability import log_context
from ..pod.event_stream import EventStream
from ..pod.pod import Pod
from ..pod.subscriber import Subscriber
from .admission import LEAVING
from .request import damaged, pod_of, principal_of, stream_headers

Waited = Literal["ended", "client left", "pod left", "timed out"]


def require_followable(request: Request) -> None:
    """Refuse, before anything is created, a client that could not distinguish a cut stream from a complete one.

    Raises:
        OldProtocol: the client uses HTTP/1.0, where a cut connection looks like a clean end.
        PodFull, TooManySubscribers, Unavailable: see `require_staying`.
    """
    require_staying(request)
    if request.scope["http_version"] == "1.0":
        raise OldProtocol(
            "With HTTP/1.0 a cut connection looks like the end of the answer. Use HTTP/1.1. If a proxy uses HTTP/1.0, "
            "configure it: nginx needs `proxy_http_version 1.1;`."
        )


def require_staying(request: Request) -> None:
    """Refuse, before anything is created, a client that this pod could not serve until the stream's end.

    Raises:
        Unavailable: the pod is leaving.
        PodFull, TooManySubscribers: a limit of subscribers is reached.
    """
    _refuse_if_leaving(request)
    pod_of(request).subscriber_limits.require_room(principal_of(request).tenant)


async def subscribe(request: Request, stream_id: UUID, cursor: int = 0) -> Subscriber:
    """Join a stream after an event.

    Raises:
        Unavailable: the pod is leaving, or the database does not answer.
        PodFull, TooManySubscribers: a limit of subscribers is reached.
        CursorBeyondTail, LogDamaged, StreamExpired, StreamNotFound: it cannot be joined there.
    """
    _refuse_if_leaving(request)
    return await _join(request, stream_id, cursor)


def count_resume(request: Request, subscriber: Subscriber) -> None:
    """Count a client that reconnected, and the events that it had missed."""
    pod_of(request).metrics.resumed_events.observe(subscriber.relay.tail - subscriber.cursor)


def event_stream(request: Request, subscriber: Subscriber, reader: Reader[Any], **options: Any) -> EventStream:
    """Answer with everything that follows a subscriber's cursor. `options` are passed to `EventStream`."""
    pod, principal = pod_of(request), principal_of(request)
    headers = stream_headers(request, reader.dialect.headers, options.pop("headers", None))
    return EventStream(
        subscriber,
        reader,
        pod.shards.of(subscriber.relay.stream_id).relays,
        pod.streams,
        pod.metrics,
        reconnect_milliseconds=pod.settings.reconnect_milliseconds,
        headers=headers,
        admitted=lambda: pod.gate.admits(principal),
        waits=functools.partial(_waits, pod, subscriber.relay.stream_id),
        **options,
    )


async def wait_for_end(
    request: Request, stream_id: UUID, seconds: float | None = None, *, views: bool = True
) -> Waited:
    """Wait until a stream ends, its client leaves, the pod leaves, or this many seconds have passed.

    With `views` false, the client does not keep a stream alive that ends without viewers.

    Raises:
        LogDamaged, StreamExpired, StreamNotFound, Unavailable: the stream cannot be watched.
        Unauthenticated: the API key was revoked, or the session has ended, during the wait.
    """
    pod = pod_of(request)
    subscriber = await _join(request, stream_id, 0, views=views)
    relay = subscriber.relay
    try:
        async with _watched_client(request, subscriber) as client, asyncio.timeout(seconds):
            while not (relay.ended or relay.over or pod.draining or client.done()):
                await subscriber.wait_for_more()
    except TimeoutError:
        return "timed out"
    finally:
        pod.shards.of(stream_id).relays.unsubscribe(subscriber)
    if relay.damaged:
        raise damaged(stream_id)
    _require_admitted(request)
    if relay.ended or relay.over:
        return "ended"
    return "pod left" if pod.draining else "client left"


async def wait_for_events(request: Request, subscriber: Subscriber, seconds: float) -> None:
    """Wait until there are events after a subscriber's cursor, none will come here, or this many seconds have passed.

    None will come here if the stream has ended, the client or the pod leaves, or the relay is over.

    Raises:
        LogDamaged: the log has a gap.
        Unauthenticated: the API key was revoked, or the session has ended, during the wait.
    """
    pod, relay = pod_of(request), subscriber.relay
    with contextlib.suppress(TimeoutError):
        async with _watched_client(request, subscriber) as client, asyncio.timeout(seconds):
            while not (relay.tail > subscriber.cursor or relay.ended or relay.over or pod.draining or client.done()):
                subscriber.take_tap()
                await subscriber.wait()
    if relay.damaged:
        raise damaged(relay.stream_id)
    _require_admitted(request)


@contextlib.asynccontextmanager
async def awaiting_inputs(request: Request, stream_id: UUID) -> AsyncIterator[Callable[[float], Awaitable[bool]]]:
    """Yield a function that waits this many seconds, or until the stream may have a new input.

    It returns False if no other wait makes sense: the stream has ended, or the client or the pod leaves. It raises what
    `wait_for_end` raises. The client is no viewer.

    Raises:
        LogDamaged, PodFull, StreamExpired, StreamNotFound, TooManySubscribers, Unavailable: see `subscribe`.
    """
    pod = pod_of(request)
    subscriber = await _join(request, stream_id, 0, views=False)
    relay = subscriber.relay
    try:
        async with _watched_client(request, subscriber) as client:
            with pod.shards.of(stream_id).input_hints.waiting(stream_id, subscriber) as hint:

                def over() -> bool:
                    return relay.ended or relay.over or pod.draining or client.done()

                async def wait(seconds: float) -> bool:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            while not (hint.given or over()):
                                await subscriber.wait_for_more()
                    hint.take()
                    if relay.damaged:
                        raise damaged(stream_id)
                    _require_admitted(request)
                    return not over()

                yield wait
    finally:
        pod.shards.of(stream_id).relays.unsubscribe(subscriber)


@contextlib.asynccontextmanager
async def _watched_client(request: Request, subscriber: Subscriber) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a task that is done when the client has left; that also taps the subscriber."""
    client = asyncio.create_task(_left(request))
    client.add_done_callback(lambda _task: subscriber.tap())
    try:
        yield client
    finally:
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)


def _require_admitted(request: Request) -> None:
    if not pod_of(request).gate.admits(principal_of(request)):
        raise Unauthenticated("The credential was revoked or has expired. Use another one.")


def _refuse_if_leaving(request: Request) -> None:
    if pod_of(request).draining:
        raise Unavailable(LEAVING)


async def _join(request: Request, stream_id: UUID, cursor: int, *, views: bool = True) -> Subscriber:
    log_context.enter_stream(stream_id)
    principal = principal_of(request)
    if not principal.sees(principal.tenant, stream_id):
        raise StreamNotFound(f"There is no stream {stream_id}.")
    pod = pod_of(request)
    pod.before_joining()
    relays = pod.shards.of(stream_id).relays
    subscriber = await relays.subscribe(stream_id, cursor, principal.tenant, views=views)
    try:
        principal.require_in_time(subscriber.relay.ended_at)
    except Unauthenticated:
        relays.unsubscribe(subscriber)
        raise
    return subscriber


async def _waits(pod: Pod, stream_id: UUID) -> bool:
    """Whether a stream waits for people.

    Raises:
        TooManyQueries, Unavailable: it cannot be read.
    """
    pool = pod.shards.of(stream_id).pool
    async with translated(pool):
        stream = await streams.get(pool, stream_id)
    return stream is not None and stream.status == "waiting"


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
