"""Creating streams: below the tenant's limit, and once for each idempotency key.

One transaction inserts the row and takes the idempotency keys. If one of the keys is taken, the transaction is rolled
back, and the stream that the key created before is returned instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from ..errors import IdempotencyConflict, TooManyStreams
from .live_counts import NOTHING, CountPlan, LiveCounts, Moment
from .postgres import Connection, Pool
from .queue_lines import Line, position
from .streams import COLUMNS, Stream, from_row, get

# Inserts a row if fewer than $20 of the tenant's streams are live, and returns in any case how many are: the streams
# from the id $22 on ($21 at most), the streams among $23 that are still live, and $24 others (see `live_counts`). The
# streams of $23 are found by their key, whatever the planner expects of the index of live streams. The transaction gets
# its id before the stream gets one.
_INSERT = f"""
WITH recent AS (
    SELECT id FROM baton.stream
    WHERE tenant = $1 AND status NOT IN ('completed', 'failed', 'cancelled') AND id >= $22 LIMIT $21
), known AS MATERIALIZED (
    SELECT id, status FROM baton.stream WHERE id = ANY ($23::uuid[])
), older AS (
    SELECT id FROM known WHERE status NOT IN ('completed', 'failed', 'cancelled')
), live AS (
    SELECT (SELECT count(*) FROM recent) + (SELECT count(*) FROM older) + $24::bigint AS live
), made AS (
    INSERT INTO baton.stream (tenant, generator, input, metadata, on_worker_lost, max_duration, idle_timeout,
                              queue_timeout, unwatched_timeout, traceparent, continuation, may_continue, status,
                              started_at, priority, start_after, queue_position, held_until, webhook)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
           CASE WHEN $13 THEN 'open' ELSE 'queued' END, CASE WHEN $13 THEN clock_timestamp() END, $14, $15,
           CASE WHEN NOT ($13 OR $16 OR later) THEN {position("$1", "$14::integer", "$17::text[]", "$18")} END,
           CASE WHEN later THEN $15 WHEN $16 THEN clock_timestamp() END, $19
    FROM live, (SELECT coalesce($15::timestamptz > clock_timestamp(), false) AS later OFFSET 0) AS start
    WHERE live < $20::bigint AND pg_current_xact_id() IS NOT NULL
    RETURNING {COLUMNS}
)
SELECT live, (SELECT array_agg(id) FROM recent) AS recent, (SELECT array_agg(id) FROM older) AS older, now() AS began,
       pg_current_xact_id_if_assigned()::text::bigint AS transaction_id, pg_current_snapshot()::text AS snapshot, made.*
FROM live LEFT JOIN made ON true
"""  # noqa: S608

# Near the limit a tenant's creates run one after another, so that each counts the streams of the ones before.
_ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('baton.stream ' || $1, 0))"

# Takes the key if it is free or has expired.
_TAKE_KEY = """
INSERT INTO baton.idempotency_key AS k (tenant, key, request_hash, stream_id, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
ON CONFLICT (tenant, key) DO UPDATE
SET request_hash = excluded.request_hash, stream_id = excluded.stream_id, expires_at = excluded.expires_at
WHERE k.expires_at < clock_timestamp()
RETURNING stream_id
"""

_KEY = "SELECT stream_id, request_hash FROM baton.idempotency_key WHERE tenant = $1 AND key = $2"

_IS_TAKEN = """
SELECT EXISTS (
    SELECT FROM baton.idempotency_key WHERE tenant = $1 AND key = ANY ($2) AND expires_at > clock_timestamp()
)
"""

LOW: Final = -1
NORMAL: Final = 0
HIGH: Final = 1

_KEY_TRIES: Final = 3
# So many creates of one tenant may run at once before one of them could exceed the limit.
_NEAR: Final = 64
# Some of the tenant's streams may have ended by then.
_FULL_RETRY_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a stream, each in seconds. None means the setting of the worker that has the stream.

    Only `unwatched_timeout` has no such setting: None means that the stream continues unwatched.
    """

    max_duration: float | None = None
    idle_timeout: float | None = None
    queue_timeout: float | None = None
    unwatched_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream is created from. `input` is any JSON; `metadata` maps names to strings, numbers or booleans.

    `may_continue`: if its worker is lost or leaves, another one continues it if the generator can. `on_worker_lost` is
    what happens otherwise: `retry` starts it again, `fail` ends it. `continuation` is what the stream continues: the
    `message` of an AI SDK page, and the `approvals` of tool calls.
    """

    generator: str
    input: Any
    metadata: Mapping[str, Any]
    on_worker_lost: str
    tenant: str = ""
    limits: Limits = Limits()
    traceparent: str | None = None
    continuation: Mapping[str, Any] | None = None
    may_continue: bool = False
    opened: bool = False  # it is written over HTTP, and never queued
    priority: int = NORMAL
    start_after: datetime | None = None
    held: bool = False  # it waits until a worker admits it (see `stream_admission`)
    webhook: str | None = None  # the URL that workers call when it has ended


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's own name for a request, and a digest of the request's body."""

    key: str
    request_hash: bytes
    lifetime_seconds: float
    also: tuple[str, ...] = ()  # further keys for the same stream; if one of them is taken, no stream is created
    conflict: str = "This Idempotency-Key was used for a request with another body. Use a new key for a new request."


async def create(
    pool: Pool,
    new: NewStream,
    key: IdempotencyKey | None = None,
    *,
    max_live: int | None = None,
    counts: LiveCounts | None = None,
    line: Line | None = None,
    complete: Callable[[Connection, Stream], Awaitable[None]] | None = None,
) -> tuple[Stream, bool]:
    """Queue a stream; return it, and whether it is new or the one that the idempotency key created before.

    `counts` is what the pod remembers of the tenants' live streams, so that not all of them are counted each time.
    `line` is what the pod knows of the line of the stream's generator.
    `complete` writes what belongs to a new stream, in the same transaction. If it raises, nothing is created.

    Raises:
        IdempotencyConflict: the key was used for another request.
        TooManyStreams: the tenant has `max_live` live streams.
    """
    async with pool.acquire() as connection:
        for _ in range(_KEY_TRIES):
            try:
                async with connection.transaction():
                    stream = await _insert(connection, new, key, max_live, counts or LiveCounts(), line=line)
                    if complete is not None:
                        await complete(connection, stream)
                    return stream, True
            except _KeyTaken as taken:
                if before := await _created_before(connection, new.tenant, taken.key):
                    return before, False
            except TooManyStreams:
                # A stream that exists already needs no room.
                if key is not None and (before := await _created_before(connection, new.tenant, key)):
                    return before, False
                raise
    raise IdempotencyConflict(
        "The stream that this Idempotency-Key created no longer exists. Use a new key for a new request."
    )


class _KeyTaken(Exception):
    """Rolls back a creation whose idempotency key is taken."""

    def __init__(self, key: IdempotencyKey) -> None:
        super().__init__()
        self.key = key


async def _insert(
    connection: Connection,
    new: NewStream,
    key: IdempotencyKey | None,
    max_live: int | None,
    counts: LiveCounts,
    *,
    line: Line | None = None,
) -> Stream:
    line = line or Line((new.generator,))
    columns = (
        new.tenant,
        new.generator,
        orjson.dumps(new.input),
        orjson.dumps(new.metadata).decode(),
        new.on_worker_lost,
        new.limits.max_duration,
        new.limits.idle_timeout,
        new.limits.queue_timeout,
        new.limits.unwatched_timeout,
        new.traceparent,
        None if new.continuation is None else orjson.dumps(new.continuation),
        new.may_continue,
        new.opened,
        new.priority,
        new.start_after,
        new.held,
        line.generators,
        line.since,
        new.webhook,
    )
    row = await _insert_below(connection, columns, max_live, counts, new.tenant)
    for each in () if key is None else (key, *(replace(key, key=name) for name in key.also)):
        if not await _take_key(connection, new.tenant, each, row["id"]):
            raise _KeyTaken(each)
    return from_row(row)


async def _insert_below(
    connection: Connection, columns: tuple[object, ...], max_live: int | None, counts: LiveCounts, tenant: str
) -> dict[str, Any]:
    """Insert a row if the tenant has fewer than `max_live` live streams; return its columns.

    Far from the limit a count that may be too high is enough. Creates that run at once do not see each other, so near
    the limit they run one after another. At the limit they are refused without waiting: a tenant at its limit must not
    hold the pool's connections.

    Raises:
        TooManyStreams: the tenant has `max_live` live streams.
    """
    if max_live is None:
        # Counts nothing: zero is below one, so the row is inserted.
        live, row = await _try_insert(connection, columns, 1, 0, NOTHING)
    else:
        plan = counts.plan(tenant)
        live, row = await _try_insert(connection, columns, max_live - _NEAR, max_live, plan)
        if row is None and plan.unchecked:
            live, row = await _try_insert(
                connection, columns, max_live - _NEAR, max_live, counts.plan(tenant, exact=True)
            )
        if row is None and live < max_live:
            await connection.execute(_ONE_BY_ONE, tenant)
            plan = counts.plan(tenant, exact=True)
            live, row = await _try_insert(connection, columns, max_live, max_live, plan)
    if row is None:
        raise TooManyStreams(
            f"You have {live} answers in progress, which is the limit. Try again when one of them has ended.",
            _FULL_RETRY_SECONDS,
        )
    return row


async def _try_insert(
    connection: Connection, columns: tuple[object, ...], below: int, most: int, plan: CountPlan
) -> tuple[int, dict[str, Any] | None]:
    """Insert a row if the plan counts fewer than `below`; return the count (exact up to `most`) and the row."""
    found = await connection.fetchrow(_INSERT, *columns, below, most, plan.split, plan.checked, plan.unchecked)
    assert found is not None
    fields = dict(found)
    recent, older = fields.pop("recent") or (), fields.pop("older") or ()
    moment = Moment(fields.pop("began"), fields.pop("transaction_id"), fields.pop("snapshot"))
    plan.learn(recent if len(recent) < most else None, older, moment)
    return fields.pop("live"), None if fields["id"] is None else fields


async def _take_key(connection: Connection, tenant: str, key: IdempotencyKey, stream_id: UUID) -> bool:
    row = await connection.fetchval(_TAKE_KEY, tenant, key.key, key.request_hash, stream_id, key.lifetime_seconds)
    return row is not None


async def is_taken(pool: Pool, tenant: str, key: IdempotencyKey) -> bool:
    """Whether a tenant has used the idempotency key, or one of its further keys."""
    taken: bool = await pool.fetchval(_IS_TAKEN, tenant, [key.key, *key.also])
    return taken


async def created_by(pool: Pool, tenant: str, key: str) -> Stream | None:
    """Return the stream that a tenant's idempotency key has created; None if there is none, or no longer."""
    async with pool.acquire() as connection:
        row = await connection.fetchrow(_KEY, tenant, key)
        return None if row is None else await get(connection, row["stream_id"])


async def repeated(pool: Pool, tenant: str, key: IdempotencyKey) -> Stream | None:
    """Return the stream that the same request has created under its key; None if there is none, or no longer.

    Raises:
        IdempotencyConflict: the key was used for another request.
    """
    async with pool.acquire() as connection:
        return await _created_before(connection, tenant, key)


async def _created_before(connection: Connection, tenant: str, key: IdempotencyKey) -> Stream | None:
    """Return the stream that the key created, or None if both have just been erased or have expired."""
    row = await connection.fetchrow(_KEY, tenant, key.key)
    if row is None:
        return None
    if row["request_hash"] != key.request_hash:
        raise IdempotencyConflict(key.conflict)
    return await get(connection, row["stream_id"])
