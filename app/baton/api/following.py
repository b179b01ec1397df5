"""Joining a stream, as `opening` does for all dialects, and waiting for its end."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from uuid import UUID

from starlette.requests import Request

from ..dialects.dialect import Reader
from ..errors import OldProtocol, StreamNotFound, Unauthenticated, Unavailable
from ..observability import log_context
from ..pod.event_stream import Connection
from ..pod.relay import Subscriber
from .request import damaged, pod_of, principal_of, stream_headers

Waited = Literal["ended", "client left", "pod left", "in vain"]


def require_followable(request: Request) -> None:
    """Refuse to follow in a dialect whose clients take a clean end for the stream's, before anything is created.

    Raises:
        OldProtocol: the client speaks HTTP/1.0, in which a cut connection has a clean end.
        PodFull, TooManySubscribers, Unavailable: see `require_staying`.
    """
    require_staying(request)
    if request.scope["http_version"] == "1.0":
        raise OldProtocol(
            "By HTTP/1.0 a cut connection looks like the end of the answer. A proxy in between may be the one that "
            "speaks it: nginx needs `proxy_http_version 1.1;`."
        )


def require_staying(request: Request) -> None:
    """Refuse to follow or to wait, before anything is created.

    Raises:
        Unavailable: the pod is leaving.
        PodFull, TooManySubscribers: it has no room for one more of this caller's.
    """
    _refuse_if_leaving(request)
    pod_of(request).audience.require_room(principal_of(request).tenant)


async def subscribe(request: Request, stream_id: UUID, cursor: int = 0) -> Subscriber:
    """Join a stream after an event.

    Raises:
        Unavailable: the pod is leaving, or the database does not answer.
        PodFull, TooManySubscribers: there is no room for one more.
        CursorBeyondTail, LogDamaged, StreamExpired, StreamNotFound: it cannot be joined there.
    """
    _refuse_if_leaving(request)
    return await _join(request, stream_id, cursor)


def count_resume(request: Request, subscriber: Subscriber) -> None:
    """Count a client that came back, and what it has missed."""
    pod_of(request).metrics.resumed_events.observe(subscriber.relay.tail - subscriber.cursor)


def connection(request: Request, subscriber: Subscriber, reader: Reader[Any], **options: Any) -> Connection:
    """Answer with what a subscriber gets from now on; `options` are those of `Connection`."""
    pod, principal = pod_of(request), principal_of(request)
    headers = stream_headers(request, reader.dialect.headers, options.pop("headers", None))
    return Connection(
        subscriber,
        reader,
        pod.relays,
        pod.connections,
        pod.metrics,
        reconnect_milliseconds=pod.settings.reconnect_milliseconds,
        headers=headers,
        admitted=lambda: pod.gate.admits(principal),
        **options,
    )


async def wait_for_end(request: Request, stream_id: UUID, seconds: float | None = None) -> Waited:
    """Wait until a stream has ended, or its client or the pod leaves, or for so many seconds at most.

    Raises:
        LogDamaged, StreamExpired, StreamNotFound, Unavailable: the stream cannot be watched.
        Unauthenticated: the API key has been revoked meanwhile, or has expired.
    """
    pod = pod_of(request)
    subscriber = await _join(request, stream_id, 0)
    relay = subscriber.relay
    client = asyncio.create_task(_left(request))
    client.add_done_callback(lambda _task: subscriber.tap())
    try:
        async with asyncio.timeout(seconds):
            while not (relay.ended or relay.over or pod.draining or client.done()):
                subscriber.cursor = relay.tail
                subscriber.tapped = False
                await subscriber.wait()
    except TimeoutError:
        return "in vain"
    finally:
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        pod.relays.unsubscribe(subscriber)
    if relay.damaged:
        raise damaged(stream_id)
    if not pod.gate.admits(principal_of(request)):
        raise Unauthenticated("The API key has been revoked since, or has expired.")
    if relay.ended or relay.over:
        return "ended"
    return "pod left" if pod.draining else "client left"


def _refuse_if_leaving(request: Request) -> None:
    if pod_of(request).draining:
        raise Unavailable("This part of the service is shutting down. Try again.")


async def _join(request: Request, stream_id: UUID, cursor: int) -> Subscriber:
    log_context.enter_stream(stream_id)
    principal = principal_of(request)
    if not principal.sees(principal.tenant, stream_id):
        raise StreamNotFound(f"There is no stream {stream_id}.")
    pod = pod_of(request)
    pod.before_joining()
    relays = pod.relays
    subscriber = await relays.subscribe(stream_id, cursor, principal.tenant)
    try:
        principal.require_in_time(subscriber.relay.ended_at)
    except Unauthenticated:
        relays.unsubscribe(subscriber)
        raise
    return subscriber


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
