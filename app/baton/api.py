"""The native API: routes, and the models of requests and answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from . import log, notifications, problems, retention, streams
from .database import translated
from .errors import InvalidRequest, RequestTooLarge, StreamNotFound, Unavailable, UnknownGenerator
from .events import clean, parse_cursor
from .models import CreateStream, FindStreams, GetStream, describe, metadata_alternatives, validated
from .pod import Pod
from .snapshot import Snapshot
from .sse import EventStream, Retry
from .streams import IdempotencyKey, Limits, NewStream, Stream

Answer = Response | EventStream | Retry


async def create_stream(request: Request) -> Answer:
    """Queue a stream; with `Accept: text/event-stream`, follow it in the same round trip."""
    pod = _pod(request)
    body = await _body(request, pod.settings.max_body_bytes)
    wanted = validated(CreateStream, _json(body))
    new = NewStream(
        wanted.generator or pod.settings.default_generator,
        wanted.input,
        wanted.metadata,
        wanted.on_worker_lost or pod.settings.on_worker_lost,
        limits=_limits(pod, wanted),
    )
    async with translated():
        if sentence := await pod.missing_generator(new.generator):
            raise UnknownGenerator(sentence)
        stream, created = await streams.create(pod.pool, new, _idempotency_key(request, body))
        if created:
            await log.hint(pod.pool, notifications.QUEUE_CHANNEL, [""])
    headers = {"location": request.url_for("stream", id=stream.id).path}
    if "text/event-stream" in request.headers.get("accept", ""):
        return await _follow(request, stream.id, headers=headers)
    return _answer(
        request,
        _described(request, stream),
        status=201 if created else 200,
        headers=headers,
    )


async def find_streams(request: Request) -> Answer:
    """List streams, newest first."""
    query = dict(request.query_params)
    metadata = {name: query.pop(name) for name in list(query) if name.startswith("metadata.")}
    wanted = validated(FindStreams, query)
    async with translated():
        found = await streams.find(
            _pod(request).pool,
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
    return _answer(
        request,
        {"data": [_described(request, stream) for stream in page], "next": following},
    )


async def get_stream(request: Request) -> Answer:
    """Tell a stream's state and its answer so far; with `?wait=20`, wait for its end at most so many seconds."""
    pod = _pod(request)
    wanted = validated(GetStream, dict(request.query_params))
    stream_id = _stream_id(request)
    if wanted.wait > 0:
        await _wait_for_end(request, stream_id, wanted.wait)
    async with translated():
        stream = await _found(pod, stream_id)
        lines: list[str] = []
        cursor = 0
        whole = False
        while page := await log.read(pod.pool, stream_id, cursor):
            lines.extend(line for batch in page for line in batch.lines)
            cursor, whole = page[-1].last_seq, page[-1].terminal
        if not (stream.ended and whole):
            # Its end may have come between the two reads, or it was erased or has expired.
            stream = await _found(pod, stream_id)
    snapshot = await asyncio.to_thread(Snapshot.of, lines, cursor)
    return _answer(request, _described(request, stream) | snapshot.as_dict())


async def follow_events(request: Request) -> Answer:
    """Send the events after the cursor as SSE: first those in the log, then those to come."""
    query = request.query_params
    raw = request.headers.get("last-event-id") or query.get("last_event_id") or query.get("lastEventId")
    return await _follow(request, _stream_id(request), cursor=parse_cursor(raw))


async def cancel_stream(request: Request) -> Answer:
    """Ask the generator to stop. Doing it again, or after the end, changes nothing."""
    pod = _pod(request)
    stream_id = _stream_id(request)
    async with translated():
        await _found(pod, stream_id)
        where = await streams.request_cancel(pod.pool, stream_id)
        if where == "running":
            await log.hint(pod.pool, notifications.CANCEL_CHANNEL, [stream_id.hex])
        elif where == "queued":
            await log.hint(pod.pool, notifications.EVENTS_CHANNEL, [notifications.hint(stream_id)])
        stream = await _found(pod, stream_id)
    return _answer(request, _described(request, stream), status=202 if where == "running" else 200)


async def delete_stream(request: Request) -> Answer:
    """Erase a stream and its events; if it is running, its generator is stopped."""
    pod = _pod(request)
    stream_id = _stream_id(request)
    async with translated():
        if not await streams.delete(pod.pool, stream_id):
            raise await retention.absence(pod.pool, stream_id)
        await log.hint(pod.pool, notifications.EVENTS_CHANNEL, [notifications.gone(stream_id)])
        await log.hint(pod.pool, notifications.CANCEL_CHANNEL, [stream_id.hex])
    return Response(status_code=204, headers=_headers(request))


async def healthz(request: Request) -> Answer:
    """Tell that the process is alive."""
    return _answer(request, {"status": "alive"})


async def readyz(request: Request) -> Answer:
    """Tell whether new clients should be sent to this pod, and what the listener is doing."""
    pod = _pod(request)
    state = {
        "status": "ready" if pod.ready else "not ready",
        "draining": pod.draining,
        "listener": pod.listener.state.value,
    }
    return _answer(request, state, status=200 if pod.ready else 503)


async def metrics(request: Request) -> Answer:
    """Give the metrics in Prometheus' text format."""
    return Response(_pod(request).metrics.render(), media_type="text/plain; version=0.0.4", headers=_headers(request))


def _answered(handler: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Answer]]:
    """Have a request answered that the server gives up while the pod leaves; it would answer 500."""

    async def endpoint(request: Request) -> Answer:
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if not _pod(request).draining:
                raise
            raise Unavailable("This pod is leaving. Try again to reach another one.") from None

    return endpoint


def routes() -> list[Route]:
    """All routes of the native API."""
    return [
        Route("/v1/streams", _answered(create_stream), methods=["POST"]),
        Route("/v1/streams", _answered(find_streams), methods=["GET"]),
        Route("/v1/streams/{id}", _answered(get_stream), methods=["GET"], name="stream"),
        Route("/v1/streams/{id}", _answered(delete_stream), methods=["DELETE"]),
        Route("/v1/streams/{id}/events", _answered(follow_events), methods=["GET"], name="events"),
        Route("/v1/streams/{id}/cancel", _answered(cancel_stream), methods=["POST"]),
        Route("/healthz", _answered(healthz), methods=["GET"]),
        Route("/readyz", _answered(readyz), methods=["GET"]),
        Route("/metrics", _answered(metrics), methods=["GET"]),
    ]


def _pod(request: Request) -> Pod:
    pod: Pod | None = getattr(request.app.state, "pod", None)
    if pod is None:
        raise Unavailable(
            "Baton has not been started. Where its app is mounted into another, the outer app's lifespan must enter "
            "`baton_app.router.lifespan_context(baton_app)`."
        )
    return pod


async def _follow(
    request: Request, stream_id: UUID, *, cursor: int = 0, headers: Mapping[str, str] | None = None
) -> Answer:
    """Subscribe, and answer with events; 204 when the client has all of them.

    A passing trouble is answered with 200 and a time to come back, since any other status stops an EventSource for
    ever; a client that asks for problem+json gets the truth.
    """
    pod = _pod(request)
    milliseconds = pod.settings.reconnect_milliseconds
    raw_headers = [(name.encode(), value.encode()) for name, value in (_headers(request) | dict(headers or {})).items()]
    try:
        if pod.draining:
            raise Unavailable("This pod is leaving. Connect again to reach another one.")
        subscriber = await pod.relays.subscribe(stream_id, cursor)
    except asyncio.CancelledError:
        # The server gives up what is still waiting when the pod leaves, and would answer 500.
        if not pod.draining:
            raise
        return Retry(milliseconds, raw_headers)
    except Unavailable:
        if problems.MEDIA_TYPE in request.headers.get("accept", ""):
            raise
        return Retry(milliseconds, raw_headers)
    if subscriber.finished:
        pod.relays.unsubscribe(subscriber)
        return Response(status_code=204, headers=_headers(request))
    if request.method == "HEAD":
        pod.relays.unsubscribe(subscriber)
        return Retry(milliseconds, raw_headers)
    return EventStream(
        subscriber, pod.relays, pod.connections, pod.metrics, reconnect_milliseconds=milliseconds, headers=raw_headers
    )


async def _wait_for_end(request: Request, stream_id: UUID, seconds: float) -> None:
    relays = _pod(request).relays
    subscriber = await relays.subscribe(stream_id, 0)
    try:
        async with asyncio.timeout(seconds):
            while not (subscriber.relay.ended or subscriber.relay.over or _pod(request).draining):
                subscriber.cursor = subscriber.relay.tail
                subscriber.tapped = False
                await subscriber.wait()
    except TimeoutError:
        pass
    finally:
        relays.unsubscribe(subscriber)


async def _found(pod: Pod, stream_id: UUID) -> Stream:
    stream = await streams.get(pod.pool, stream_id)
    if stream is None:
        raise await retention.absence(pod.pool, stream_id)
    return stream


def _stream_id(request: Request) -> UUID:
    raw = request.path_params["id"]
    try:
        return UUID(raw)
    except ValueError:
        raise StreamNotFound(f"There is no stream {raw!r:.80}: an id looks like 019a5e2c-….") from None


def _limits(pod: Pod, wanted: CreateStream) -> Limits:
    unwatched = wanted.cancel_when_unwatched_seconds or pod.settings.cancel_when_unwatched_seconds
    least = 2 * pod.settings.watch_interval_seconds
    if unwatched is not None and unwatched < least:
        raise InvalidRequest(
            f"cancel_when_unwatched_seconds must be at least {least:g}, since pods note every "
            f"{pod.settings.watch_interval_seconds:g} seconds what is watched."
        )
    return Limits(wanted.max_duration_seconds, wanted.idle_timeout_seconds, wanted.queue_timeout_seconds, unwatched)


async def _body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise RequestTooLarge(f"The body may have {max_bytes} bytes at most.")
    except ClientDisconnect:
        raise InvalidRequest("The body did not arrive whole.") from None
    return bytes(body)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError as error:
        reason = str(error)
    try:
        # orjson refuses escaped lone surrogates, which JavaScript sends for a cut emoji.
        return clean(json.loads(body, parse_constant=_refused, parse_float=_finite))
    except (ValueError, RecursionError):
        raise InvalidRequest(f"The body is not JSON: {reason}.") from None


def _refused(constant: str) -> Any:
    raise ValueError(constant)


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _refused(number)


def _idempotency_key(request: Request, body: bytes) -> IdempotencyKey | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise InvalidRequest("An Idempotency-Key has 1 to 255 characters.")
    hours = _pod(request).settings.idempotency_hours
    return IdempotencyKey(key, hashlib.sha256(body).digest(), hours * 3600)


def _described(request: Request, stream: Stream) -> dict[str, Any]:
    # A path without scheme and host, which a pod behind a proxy cannot know.
    return describe(stream, request.url_for("events", id=stream.id).path)


def _headers(request: Request) -> dict[str, str]:
    return {"x-baton-pod": _pod(request).settings.pod_name}


def _answer(request: Request, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(content),
        status,
        _headers(request) | dict(headers or {}),
        "application/json",
    )
