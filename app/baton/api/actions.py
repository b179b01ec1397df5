"""What the routes of all dialects do with streams: create, read, cancel, erase."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.requests import Request

from .. import webhook_addresses
from ..auth.tokens import Wish
from ..db import (
    event_log,
    external_streams,
    notifications,
    rate_buckets,
    retention,
    stream_creation,
    stream_ending,
)
from ..db.postgres import translated
from ..db.rate_buckets import Rate
from ..db.stream_creation import IdempotencyKey, Limits, NewStream
from ..db.streams import Stream
from ..errors import (
    CreateRateLimited,
    InputTooLarge,
    InvalidRequest,
    RawContent,
    ReservedGenerator,
    TooManyStreams,
    UnknownGenerator,
)
from ..observability import log_context, tracing
from ..pod.pod import Pod
from ..pod.shard import Shard
from . import across_databases
from .models import MAX_START_DAYS, CreateStream, Priority
from .problems import path_of
from .request import damaged, found, idempotency_key, pod_of, pool_of, principal_of, require_events
from .request_body import SEND_LESS, readable_bytes

logger = logging.getLogger(__name__)

_PRIORITIES: Final[dict[Priority, int]] = {
    "low": stream_creation.LOW,
    "normal": stream_creation.NORMAL,
    "high": stream_creation.HIGH,
}


@dataclass(frozen=True, slots=True)
class Content:
    """A stream with its events so far: `lines` of JSON, the last with number `last_seq`.

    `whole`: the last one is the terminal event.
    """

    stream: Stream
    lines: list[str]
    last_seq: int
    whole: bool


def new_stream(
    request: Request, creation: CreateStream, *, can_reset: bool, continuation: Mapping[str, Any] | None = None
) -> NewStream:
    """Return the stream to create, with this pod's settings for what the client left out.

    `can_reset`: the dialect of the request can say that the answer starts again.

    Raises:
        InputTooLarge: the input, or the message that it continues, is too large.
        InvalidRequest: a limit is too short, it starts too late, or its webhook may not be called.
        ReservedGenerator: it names the generator of external streams, which are created in another way.
    """
    if creation.generator == external_streams.GENERATOR:
        raise ReservedGenerator(
            f"The name {external_streams.GENERATOR!r} is for streams that you write yourself. Create one with "
            "`POST /v1/streams`."
        )
    pod = pod_of(request)
    require_input_size(request, creation.input, continuation)
    may_continue, on_worker_lost = _policy(creation.on_worker_lost, pod.settings.on_worker_lost, can_reset=can_reset)
    return NewStream(
        creation.generator or pod.settings.default_generator,
        creation.input,
        creation.metadata,
        on_worker_lost,
        tenant=principal_of(request).tenant,
        limits=limits_of(pod, creation),
        continuation=continuation,
        may_continue=may_continue,
        priority=_PRIORITIES[creation.priority],
        start_after=_require_soon(creation.start_after),
        held=pod.settings.max_running_streams_per_tenant is not None,
        webhook=webhook_of(pod, creation.webhook),
    )


async def create(
    request: Request, new: NewStream, body: bytes, key: IdempotencyKey | None = None
) -> tuple[Stream, bool]:
    """Queue a stream; return it, and whether it is new. A repeated `Idempotency-Key` returns its first stream.

    `key` replaces the client's own key.

    Raises:
        CreateRateLimited: the caller creates streams faster than it may.
        TooManyStreams: the tenant has as many streams that have not ended as it may.
        UnknownGenerator: neither this pod nor a worker offers the generator.
        IdempotencyConflict, InvalidRequest, Unavailable: see `stream_creation.create`.
    """
    about = {"baton.generator": new.generator, "baton.tenant": new.tenant, "url.path": path_of(request)}
    with tracing.span("create", tracing.here(), kind="server", attributes=about) as span:
        parent = None if span.traceparent is None else str(span.traceparent)
        own_key = key or idempotency_key(request, body)
        stream, created = await _create(request, replace(new, traceparent=parent), own_key)
        span.set({"baton.stream.id": str(stream.id), "baton.created": created})
        log_context.enter_stream(stream.id)
        if created:
            known = {"generator": new.generator, "tenant": new.tenant}
            logger.info("Stream %s is queued.", stream.id, extra=known)
    return stream, created


async def read(request: Request, stream_id: UUID, *, or_none: bool = False) -> Content:
    """Read all events of a stream so far. With `or_none`, a stream of other content has none.

    Raises:
        LogDamaged: events are missing.
        RawContent: its content is not events.
        StreamExpired, StreamNotFound, Unavailable: it cannot be read.
    """
    pool = pool_of(request, stream_id)
    lines: list[str] = []
    cursor, whole = 0, False
    async with translated(pool):
        for _ in range(2):
            stream = await found(request, stream_id)
            try:
                await require_events(request, stream)
            except RawContent:
                if not or_none:
                    raise
                return Content(stream, [], 0, whole=False)
            async for page in event_log.pages(pool, stream_id, cursor):
                for batch in page:
                    if batch.first_seq != cursor + 1:
                        raise damaged(stream_id)
                    lines.extend(batch.lines)
                    cursor, whole = batch.last_seq, batch.terminal
            if stream.ended == whole:
                return Content(stream, lines, cursor, whole)
            # It ended or was erased between the two reads.
    raise damaged(stream_id)


async def cancel(request: Request, stream_id: UUID) -> tuple[Stream, bool]:
    """Ask a stream's generator to stop; return the stream, and whether the generator still runs.

    Raises:
        StreamExpired, StreamNotFound, Unavailable: it cannot be cancelled.
    """
    pool = pool_of(request, stream_id)
    async with translated(pool):
        await found(request, stream_id)
        where = await stream_ending.request_cancel(pool, stream_id)
        if where == "running":
            await notifications.announce_cancel(pool, stream_id)
        elif where is not None:
            await notifications.announce_change(pool, stream_id)
        return await found(request, stream_id), where == "running"


async def erase(request: Request, stream_id: UUID) -> None:
    """Erase a stream and its events; if it is running, its generator is stopped.

    Raises:
        StreamExpired, StreamNotFound, Unavailable: it cannot be erased.
    """
    pool = pool_of(request, stream_id)
    async with translated(pool):
        stream = await found(request, stream_id)
        if not await stream_ending.erase(pool, stream_id, stream.tenant):
            raise await retention.absence(pool, stream_id)
        await notifications.announce_erasure(pool, stream_id)


def token(request: Request, stream: Stream, wish: Wish) -> tuple[str | None, datetime | None]:
    """Sign a token of a stream that the caller sees. Return it and when it expires; None if none can be issued.

    Raises:
        Forbidden: the token would allow more than the caller may do.
    """
    gate = pod_of(request).gate
    issued = None if gate.anonymous else gate.tokens.issue(principal_of(request), stream.id, wish, stream.ended_at)
    return (None, None) if issued is None else (issued[0], datetime.fromtimestamp(issued[1], UTC))


async def _create(request: Request, new: NewStream, key: IdempotencyKey | None) -> tuple[Stream, bool]:
    if not new.generator:
        raise UnknownGenerator(
            "Name a generator: there is no default one.", operator="BATON_DEFAULT_GENERATOR is empty"
        )

    async def is_taken(shard: Shard) -> bool:
        return key is not None and await stream_creation.is_taken(shard.pool, new.tenant, key)

    name = across_databases.name_of(new.tenant, new.metadata, None if key is None else key.key)
    return await across_databases.create(request, name, lambda shard: _create_in(request, shard, new, key), is_taken)


async def _create_in(request: Request, shard: Shard, new: NewStream, key: IdempotencyKey | None) -> tuple[Stream, bool]:
    pod = pod_of(request)
    await take_create(request, shard)
    if sentence := await pod.missing_generator(new.generator):
        raise UnknownGenerator(f"There is no generator called {new.generator!r:.80}.", operator=sentence)
    if new.start_after is not None:
        # A worker of an older release would start it at once.
        await shard.require_current_code()
    try:
        stream, created = await stream_creation.create(
            shard.pool,
            new,
            key,
            max_live=pod.settings.max_tenant_streams,
            counts=shard.live_counts,
            line=shard.watch.queue_lines.of(new.generator),
        )
    except TooManyStreams:
        pod.metrics.rejected["tenant_streams"] += 1
        raise
    if created:
        announce = notifications.announce_held if new.held else notifications.announce_queued
        await announce(shard.pool)
    return stream, created


async def take_create(request: Request, shard: Shard) -> None:
    """Raise CreateRateLimited unless the caller may create a stream in this database now."""
    pod, caller = pod_of(request), principal_of(request)
    rate = Rate(pod.settings.creates_per_second, pod.settings.creates_burst)
    wait_seconds = await rate_buckets.take(shard.pool, caller.tenant, caller.name, rate)
    if wait_seconds is not None:
        pod.metrics.rejected["creates_per_second"] += 1
        raise CreateRateLimited(
            f"You may create {rate.per_second:g} streams a second, and {rate.burst} at once after a pause. Try again "
            f"in {wait_seconds} s.",
            wait_seconds,
        )


def _policy(wanted: str | None, default: str, *, can_reset: bool) -> tuple[bool, str]:
    """Return whether a new worker may continue the stream, and what happens if none can: `retry` or `fail`.

    Only a client can choose to restart an answer in a dialect that cannot say so. It may follow it in another one.
    """
    if wanted in {"retry", "fail"}:
        return False, wanted
    policy = wanted or default
    return policy == "continue", "retry" if can_reset and policy != "fail" else "fail"


def require_input_size(request: Request, *contents: Any) -> None:
    """Refuse an input that is too large.

    Raises:
        InputTooLarge: one of the contents is.
    """
    pod = pod_of(request)
    max_bytes = pod.settings.max_input_bytes
    if any(len(orjson.dumps(content)) > max_bytes for content in contents):
        pod.metrics.rejected["input_bytes"] += 1
        raise InputTooLarge(
            f"The conversation is larger than {readable_bytes(max_bytes)} and cannot be sent. {SEND_LESS}",
            operator=f"an input may have {max_bytes} bytes as JSON (BATON_MAX_INPUT_BYTES)",
        )


def _require_soon(start_after: datetime | None) -> datetime | None:
    if start_after is not None and start_after > datetime.now(UTC) + timedelta(days=MAX_START_DAYS):
        raise InvalidRequest(f"start_after may be at most {MAX_START_DAYS} days ahead.")
    return start_after


def webhook_of(pod: Pod, url: str | None) -> str | None:
    """Return the webhook of a new stream: the creator's own, or the one of this pod's settings.

    Raises:
        InvalidRequest: its host is not one that the operator has listed.
    """
    if url is None:
        return pod.settings.webhook_url
    if webhook_addresses.origin_of(url) not in pod.settings.webhook_origins:
        raise InvalidRequest(
            "webhook: this service does not call that host. Name another URL, or ask the operator to list the host.",
            operator="its host, scheme or port is in neither BATON_WEBHOOK_HOSTS nor BATON_WEBHOOK_URL",
        )
    return url


def limits_of(pod: Pod, creation: CreateStream) -> Limits:
    """Return what bounds a new stream.

    Raises:
        InvalidRequest: a limit is too short.
    """
    unwatched = creation.cancel_when_unwatched_seconds or pod.settings.cancel_when_unwatched_seconds
    least = 2 * pod.settings.watch_interval_seconds
    if unwatched is not None and unwatched < least:
        raise InvalidRequest(
            f"cancel_when_unwatched_seconds must be at least {least:g}: which streams are watched is recorded every "
            f"{pod.settings.watch_interval_seconds:g} seconds."
        )
    return Limits(
        creation.max_duration_seconds, creation.idle_timeout_seconds, creation.queue_timeout_seconds, unwatched
    )
