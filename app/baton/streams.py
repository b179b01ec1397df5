"""The streams' rows: creating, finding, claiming, cancelling and ending them.

A row's `epoch` rises with each claim, and whoever writes to the log names the epoch under which it claimed. Rows are
locked by what changes them, such as claims, cancels and ends, never by appending events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from . import ending, log
from .database import Connection, Pool
from .errors import ConfigurationError, IdempotencyConflict, TooManyStreams
from .events import MAX_SEQ, Status
from .log import Fence
from .outcome import Outcome

_COLUMNS = """id, tenant, generator, metadata, status, epoch, unwatched_timeout, attempts, created_at, started_at,
    finished_at, cancel_requested_at, finish_reason, error_code, error_message, usage, tokens,
    time_to_first_token_seconds, duration_seconds, traceparent, claim_token"""

# A row if there are fewer than $12 streams of the tenant that have not ended, and in any case how many: $13 at most.
_INSERT = f"""
WITH live AS (
    SELECT count(*) AS live FROM (
        SELECT FROM baton.stream WHERE tenant = $1 AND status IN ('queued', 'running') LIMIT $13
    ) AS found
), made AS (
    INSERT INTO baton.stream (tenant, generator, input, metadata, on_worker_lost, max_duration, idle_timeout,
                              queue_timeout, unwatched_timeout, traceparent, continuation)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM live WHERE live < $12::bigint
    RETURNING {_COLUMNS}
)
SELECT live, made.* FROM live LEFT JOIN made ON true
"""  # noqa: S608

# Those of one tenant that come near its limit pass one by one, and each sees who came before it.
_ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('baton.stream ' || $1, 0))"

# Wins the key if nobody has it, or if whoever had it lost it by time.
_TAKE_KEY = """
INSERT INTO baton.idempotency_key AS k (tenant, key, request_hash, stream_id, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
ON CONFLICT (tenant, key) DO UPDATE
SET request_hash = excluded.request_hash, stream_id = excluded.stream_id, expires_at = excluded.expires_at
WHERE k.expires_at < clock_timestamp()
RETURNING stream_id
"""

_KEY = "SELECT stream_id, request_hash FROM baton.idempotency_key WHERE tenant = $1 AND key = $2"

_GET = f"SELECT {_COLUMNS} FROM baton.stream WHERE id = $1"  # noqa: S608

_INPUT = "SELECT input FROM baton.stream WHERE id = $1"
_CONTINUATION = "SELECT continuation FROM baton.stream WHERE id = $1"

# One plan for all arguments would walk through all streams of a tenant to find the one with that metadata, or through
# those of all tenants to find the few of one.
_PLAN_ANEW = "SET LOCAL plan_cache_mode = force_custom_plan"
_FIND = f"""
SELECT {_COLUMNS} FROM baton.stream
WHERE tenant = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR status = $3)
  AND ($4::jsonb[] IS NULL OR metadata @> ANY ($4))
ORDER BY id DESC LIMIT $5
"""  # noqa: S608

_NEWEST = f"""
SELECT {_COLUMNS} FROM baton.stream
WHERE ($1::text IS NULL OR tenant = $1) AND ($2::text IS NULL OR status = $2)
ORDER BY id DESC LIMIT $3
"""  # noqa: S608

# Of a tenant, for `/console`. What is looked at is bounded, whatever is found: the newest $4 between two ids, or $4
# that have not ended, and a partial index has no others.
_LATEST = f"""
SELECT {_COLUMNS} FROM (
    SELECT * FROM baton.stream WHERE tenant = $1 AND id BETWEEN $2 AND $3 ORDER BY id DESC LIMIT $4
) AS newest
WHERE $5::text[] IS NULL OR status = ANY ($5)
ORDER BY id DESC LIMIT $6
"""  # noqa: S608
_LIVE = f"""
SELECT {_COLUMNS} FROM (
    SELECT * FROM baton.stream WHERE tenant = $1 AND status IN ('queued', 'running') LIMIT $4
) AS live
WHERE id BETWEEN $2 AND $3 AND status = ANY ($5)
ORDER BY id DESC LIMIT $6
"""  # noqa: S608
_NTH = """
SELECT id FROM baton.stream WHERE tenant = $1 AND id BETWEEN $2 AND $3 ORDER BY id DESC OFFSET $4 - 1 LIMIT 1
"""
_LIVE_COUNTS = """
SELECT count(*) FILTER (WHERE status = 'queued'), count(*) FILTER (WHERE status = 'running')
FROM (SELECT status FROM baton.stream WHERE tenant = $1 AND status IN ('queued', 'running') LIMIT $2) AS live
"""

# A worker that was taken for dead has no row any more, and claims nothing until it has heard so. The lock on the row
# has a burial wait for this claim, or this claim for the burial.
_CLAIM = """
WITH me AS (
    SELECT id FROM baton.worker WHERE id = $1 FOR KEY SHARE
), next AS (
    SELECT id FROM baton.stream
    WHERE status = 'queued' AND generator = ANY ($2) AND EXISTS (SELECT FROM me)
    ORDER BY id LIMIT $3
    FOR UPDATE SKIP LOCKED
)
UPDATE baton.stream AS s
SET status = 'running', epoch = s.epoch + 1, claim_token = gen_random_uuid(), attempts = s.attempts + 1,
    worker_id = $1, started_at = coalesce(s.started_at, clock_timestamp()),
    history = coalesce(s.history, baton.current_history())
FROM next WHERE s.id = next.id
RETURNING s.id, s.epoch, s.attempts, s.on_worker_lost, s.generator, s.input, s.metadata,
          s.cancel_requested_at IS NOT NULL AS cancelled, s.max_duration, s.idle_timeout,
          extract(epoch FROM clock_timestamp() - s.started_at)::double precision AS elapsed,
          extract(epoch FROM s.started_at - s.created_at)::double precision AS queued,
          s.tenant, s.traceparent, s.claim_token, s.continuation,
          coalesce(s.history <> baton.current_history(), false) AS rewound
"""

_REQUEST_CANCEL = """
UPDATE baton.stream SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
WHERE id = $1 AND status IN ('queued', 'running')
RETURNING status
"""

# What the row must still be when it is locked is part of each statement that takes a stream away from somebody.
_TAKE = "UPDATE baton.stream SET epoch = epoch + 1, worker_id = NULL WHERE id = $1 AND "
_TAKEN = (
    " RETURNING epoch, claim_token, tenant, generator, attempts AS attempt, traceparent AS trace,"
    " extract(epoch FROM clock_timestamp() - created_at)::double precision AS total_seconds"
)
_TAKE_ANY = _TAKE + "status IN ('queued', 'running')" + _TAKEN
_TAKE_QUEUED = _TAKE + "status = 'queued'" + _TAKEN
_TAKE_QUEUED_EPOCH = _TAKE + "status = 'queued' AND epoch = $2" + _TAKEN
_FENCED = "status = 'running' AND epoch = $2 AND claim_token IS NOT DISTINCT FROM $3"
_TAKE_CLAIMED = _TAKE + _FENCED + _TAKEN

_REQUEUE = f"""
UPDATE baton.stream
SET status = 'queued', queued_at = clock_timestamp(), epoch = epoch + 1, worker_id = NULL, attempts = attempts - $4
WHERE id = $1 AND {_FENCED}
RETURNING id
"""  # noqa: S608

_ADOPT = """
UPDATE baton.stream AS s SET history = baton.current_history()
FROM unnest($1::uuid[], $2::integer[], $3::uuid[]) AS f (id, epoch, claim_token)
WHERE s.id = f.id AND s.status = 'running' AND s.epoch = f.epoch AND s.claim_token IS NOT DISTINCT FROM f.claim_token
"""

# Queued streams that no worker took in time, or that nobody has watched for as long as they allow. The oldest come
# first: the newest may have no partition, cannot be ended then, and would keep others out of every page.
_OVERDUE = """
SELECT id, epoch, coalesce(queued_at, created_at)
                  < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $1)) AS timed_out
FROM baton.stream
WHERE status = 'queued' AND (
    coalesce(queued_at, created_at) < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $1))
    OR ($2 AND coalesce(watched_at, created_at) < clock_timestamp() - make_interval(secs => unwatched_timeout)))
ORDER BY id
LIMIT 100
"""

_QUEUE_STATE = """
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(since)), 0)::double precision
FROM (SELECT coalesce(queued_at, created_at) AS since FROM baton.stream WHERE status = 'queued' ORDER BY id LIMIT 10000)
AS queued
"""

_WATCHED = """
UPDATE baton.stream SET watched_at = clock_timestamp()
WHERE id = ANY ($1) AND status IN ('queued', 'running')
"""

_CLOSE = """
UPDATE baton.stream
SET status = $3, finish_reason = $4, error_code = $5, error_message = $6, usage = $7, tokens = $8,
    time_to_first_token_seconds = $9, duration_seconds = $10, finished_at = clock_timestamp(), worker_id = NULL
WHERE id = $1 AND epoch = $2
"""

_DELETE_STREAM = "DELETE FROM baton.stream WHERE id = $1 RETURNING status"
_DELETE_BATCHES = "DELETE FROM baton.batch WHERE stream_id = $1 AND NOT (terminal AND $2)"
_DELETE_KEYS = "DELETE FROM baton.idempotency_key WHERE tenant = $1 AND stream_id = $2"


_KEY_TRIES = 3
# As many creates of a tenant may be at work at once without one of them seeing the limit too late.
_NEAR = 64
# When some of the tenant's streams may have ended.
_FULL_RETRY_SECONDS = 5

# Streams that one question of the console looks at, at most.
LOOKED_AT = 2000
LIVE = frozenset({"queued", "running"})

UNWATCHED = Outcome.cancelled(finish_reason="unwatched")
REWOUND = Outcome.failed(
    "log_rewound", "The database lost the end of this answer in a failover or a restore. Ask again."
)
QUEUE_TIMEOUT = Outcome.failed("queue_timeout", "No worker was free to begin this answer in time.")


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream's row."""

    id: UUID
    tenant: str
    generator: str
    metadata: Mapping[str, Any]
    status: Status
    epoch: int
    unwatched_timeout: float | None
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    finish_reason: str | None
    error_code: str | None
    error_message: str | None
    usage: Mapping[str, Any] | None
    tokens: int | None
    time_to_first_token_seconds: float | None
    duration_seconds: float | None
    traceparent: str | None
    claim_token: UUID | None

    @property
    def ended(self) -> bool:
        """Whether its terminal event is in the log."""
        return self.status not in LIVE

    @property
    def ended_at(self) -> float | None:
        """When it ended, in seconds since 1970."""
        return None if self.finished_at is None else self.finished_at.timestamp()


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a stream, each in seconds. None leaves it to the setting of the worker that has the stream.

    Only `unwatched_timeout` has no such setting: None means that the stream goes on unwatched.
    """

    max_duration: float | None = None
    idle_timeout: float | None = None
    queue_timeout: float | None = None
    unwatched_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream is created from. `input` is any JSON; `metadata` maps names to strings, numbers or booleans.

    `continuation` is what the stream continues: `message`, of an AI SDK's page, and `approvals`, of tool calls.
    """

    generator: str
    input: Any
    metadata: Mapping[str, Any]
    on_worker_lost: str
    tenant: str = ""
    limits: Limits = Limits()
    traceparent: str | None = None
    continuation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's own name for a request, and a digest of its body."""

    key: str
    request_hash: bytes
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A stream that a worker has claimed, with what its generator needs."""

    stream_id: UUID
    epoch: int
    attempts: int
    on_worker_lost: str
    generator: str
    input: Any
    metadata: Mapping[str, Any]
    cancelled: bool
    max_duration: float | None = None
    idle_timeout: float | None = None
    elapsed: float = 0.0  # since its first claim
    queued: float = 0.0  # before that
    tenant: str = ""
    traceparent: str | None = None
    claim_token: UUID | None = None
    rewound: bool = False  # it is of an older history of the database, and must not be generated
    approvals: Sequence[Mapping[str, Any]] = ()  # fields of `generators.Approval`

    @property
    def fence(self) -> Fence:
        """What its row says while it is this worker's."""
        return Fence(self.stream_id, self.epoch, self.claim_token)


async def create(
    pool: Pool, new: NewStream, key: IdempotencyKey | None = None, *, max_live: int | None = None
) -> tuple[Stream, bool]:
    """Queue a stream; return it, and whether it is new or the one that the idempotency key created before.

    Raises:
        IdempotencyConflict: the key was used for another request.
        TooManyStreams: the tenant has `max_live` streams that have not ended.
    """
    async with pool.acquire() as connection:
        for _ in range(_KEY_TRIES):
            try:
                async with connection.transaction():
                    return await _insert(connection, new, key, max_live), True
            except _KeyTaken as taken:
                if stream := await _created_before(connection, new.tenant, taken.key):
                    return stream, False
            except TooManyStreams:
                # It takes no room to tell of a stream that is there.
                if key is not None and (stream := await _created_before(connection, new.tenant, key)):
                    return stream, False
                raise
    raise IdempotencyConflict(
        "The stream that this Idempotency-Key created is gone, and the key is not. Use a new key for a new request."
    )


async def get(executor: Connection | Pool, stream_id: UUID) -> Stream | None:
    """Read one row."""
    row = await executor.fetchrow(_GET, stream_id)
    return None if row is None else _stream(row)


async def read_input(pool: Pool, stream_id: UUID) -> Any:
    """Read what a stream was created from; None where there is no such stream."""
    content = await pool.fetchval(_INPUT, stream_id)
    return None if content is None else orjson.loads(content)


async def read_continuation(pool: Pool, stream_id: UUID) -> dict[str, Any]:
    """Read what a stream continues; an empty object where it continues nothing, or is gone."""
    return _continuation(await pool.fetchval(_CONTINUATION, stream_id))


async def find(
    pool: Pool,
    *,
    tenant: str = "",
    before: UUID | None = None,
    status: str | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    limit: int = 20,
) -> list[Stream]:
    """List streams, newest first: those older than `before`, and that hold one of `metadata`'s alternatives."""
    alternatives = None if metadata is None else [orjson.dumps(item).decode() for item in metadata]
    rows = await _fetch_anew(pool, _FIND, tenant, before, status, alternatives, limit)
    return [_stream(row) for row in rows]


async def newest(executor: Connection | Pool, *, tenant: str | None, status: str | None, limit: int) -> list[Stream]:
    """List the newest streams first, of all tenants if none is named: for those who run the service."""
    return [_stream(row) for row in await executor.fetch(_NEWEST, tenant, status, limit)]


async def latest(
    pool: Pool, tenant: str, between: tuple[UUID, UUID], statuses: Sequence[str] | None, limit: int
) -> tuple[list[Stream], UUID | None]:
    """List a tenant's newest streams between two ids, in one of some states, and where to go on: before that id.

    However rare those states are, no more than `LOOKED_AT` streams are looked at, so the page may be short of `limit`.
    """
    if statuses is not None and LIVE.issuperset(statuses):
        rows = await pool.fetch(_LIVE, tenant, *between, LOOKED_AT, statuses, limit + 1)
        looked_at_all = True
    else:
        looked_at = LOOKED_AT if statuses is not None else limit + 1
        rows = await _fetch_anew(pool, _LATEST, tenant, *between, looked_at, statuses, limit + 1)
        looked_at_all = statuses is None
    page = [_stream(row) for row in rows[:limit]]
    if len(rows) > limit:
        return page, page[-1].id
    return page, None if looked_at_all else await pool.fetchval(_NTH, tenant, *between, LOOKED_AT)


async def live_counts(executor: Connection | Pool, tenant: str) -> tuple[int, int]:
    """Return how many of a tenant's streams are queued, and how many run, up to `LOOKED_AT` together."""
    row = await executor.fetchrow(_LIVE_COUNTS, tenant, LOOKED_AT)
    assert row is not None
    return row[0], row[1]


async def claim(connection: Connection, worker_id: UUID, generators: Sequence[str], limit: int) -> list[Claim]:
    """Claim the oldest queued streams that one of `generators` can serve."""
    return [
        Claim(
            row["id"],
            row["epoch"],
            row["attempts"],
            row["on_worker_lost"],
            row["generator"],
            orjson.loads(row["input"]),
            orjson.loads(row["metadata"]),
            row["cancelled"],
            row["max_duration"],
            row["idle_timeout"],
            row["elapsed"],
            row["queued"],
            row["tenant"],
            row["traceparent"],
            row["claim_token"],
            row["rewound"],
            _continuation(row["continuation"]).get("approvals", ()),
        )
        for row in await connection.fetch(_CLAIM, worker_id, generators, limit)
    ]


async def request_cancel(pool: Pool, stream_id: UUID) -> str | None:
    """Ask for a stream's end; return where the request found it: queued, running, or None where it had ended before.

    A queued stream is ended at once. A running one is for its worker to end, which is told apart from this.
    """
    status: str | None = await pool.fetchval(_REQUEST_CANCEL, stream_id)
    if status == "queued" and await end(pool, stream_id, Outcome.cancelled(), _TAKE_QUEUED):
        return "queued"
    return status and "running"


async def end_any(pool: Pool, stream_id: UUID, outcome: Outcome) -> bool:
    """End a stream from outside, whoever has it. Return whether it still had to be ended."""
    return await end(pool, stream_id, outcome, _TAKE_ANY)


async def end_claimed(connection: Connection, fence: Fence, outcome: Outcome) -> bool:
    """End a stream that this claim no longer writes to. Return whether it was ended by this."""
    with log.putting_off(fence.stream_id):
        return await end(connection, fence.stream_id, outcome, _TAKE_CLAIMED, fence.epoch, fence.claim_token)
    return False


async def end_overdue(connection: Connection, queue_timeout: float, *, unwatched: bool = True) -> list[Outcome]:
    """End the queued streams that have waited for too long, in seconds, or that nobody watches; return their ends."""
    ended = []
    for stream_id, epoch, timed_out in await connection.fetch(_OVERDUE, queue_timeout, unwatched):
        outcome = QUEUE_TIMEOUT if timed_out else UNWATCHED
        with log.putting_off(stream_id):
            if await end(connection, stream_id, outcome, _TAKE_QUEUED_EPOCH, epoch):
                ended.append(outcome)
    return ended


async def queue_state(executor: Connection | Pool) -> tuple[int, float]:
    """Return how many streams wait for a worker, 10,000 at most, and for how many seconds the first of them has."""
    count, oldest_seconds = await executor.fetchrow(_QUEUE_STATE)  # type: ignore[misc]
    return count, oldest_seconds


async def note_watched(pool: Pool, stream_ids: Sequence[UUID]) -> None:
    """Write down that these streams are being watched, in one statement."""
    await pool.execute(_WATCHED, sorted(stream_ids))


async def end(executor: Connection | Pool, stream_id: UUID, outcome: Outcome, take: str, *arguments: object) -> bool:
    """Claim a stream and write its terminal event, in one transaction; return whether it was ended by this.

    Between the two an append of the last owner may still land; it then has the place that was aimed at, and this
    aims again. If that append was the terminal one, the row is closed to match it.
    """
    if isinstance(executor, asyncpg.Pool):
        async with executor.acquire() as connection:
            return await end(connection, stream_id, outcome, take, *arguments)
    while True:
        # A terminal append of the last owner, in flight, waits for the row that this holds, and this for its place.
        with contextlib.suppress(asyncpg.DeadlockDetectedError):
            ended = await _end(executor, stream_id, outcome, take, *arguments)
            if ended is not None:
                ending.note(stream_id, outcome, **ended)
            return ended is not None


async def _end(
    connection: Connection, stream_id: UUID, outcome: Outcome, take: str, *arguments: object
) -> dict[str, Any] | None:
    """Return what the log is to say of the stream, if it was ended by this."""
    async with connection.transaction():
        taken = await connection.fetchrow(take, stream_id, *arguments)
        if taken is None:
            return None
        known = dict(taken)
        epoch, claim_token = known.pop("epoch"), known.pop("claim_token")
        while True:
            tail = await log.read_tail(connection, stream_id)
            if tail.outcome is not None:
                await close(connection, stream_id, epoch, tail.outcome)
                return None
            if tail.last_seq >= MAX_SEQ:
                raise ConfigurationError(f"Stream {stream_id} has no number left for its terminal event.")
            seq = tail.last_seq + 1
            if await log.append(
                connection, [log.Append(stream_id, epoch, seq, seq, outcome.encode(), outcome, claim_token)]
            ):
                return {**known, "epoch": epoch, "events": seq}


async def close(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> None:
    """Close the row of a stream whose terminal event is in the log already."""
    await connection.execute(_CLOSE, stream_id, epoch, *outcome.columns())


async def requeue(connection: Connection, fence: Fence, *, uncount_attempt: bool = False) -> bool:
    """Give a claimed stream back to the queue; return whether that claim still had it."""
    return await connection.fetchval(_REQUEUE, *fence, int(uncount_attempt)) is not None


async def adopt(connection: Connection, fences: Sequence[Fence]) -> None:
    """Move running streams to the present history: their worker knows that the log holds all that was ever sent."""
    await connection.execute(_ADOPT, *map(list, zip(*fences, strict=True)))


async def delete(pool: Pool, stream_id: UUID, tenant: str = "") -> bool:
    """Erase a stream with its events; its worker, fenced by the missing row, stops. Return whether there was one.

    One that is being written is ended first. That end, which holds no text, is left in the log until its partition is
    dropped: it takes the place at which an append in flight aims, which would otherwise land after the erasure.
    """
    ended_now = await end_any(pool, stream_id, Outcome.cancelled(finish_reason="erased"))
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_DELETE_STREAM, stream_id) is None:
            return False
        await connection.execute(_DELETE_BATCHES, stream_id, ended_now)
        await connection.execute(_DELETE_KEYS, tenant, stream_id)
    return True


async def _fetch_anew(pool: Pool, query: str, *arguments: object) -> list[asyncpg.Record]:
    """Fetch by a plan for just these arguments."""
    async with pool.acquire() as connection, connection.transaction(readonly=True):
        await connection.execute(_PLAN_ANEW)
        return await connection.fetch(query, *arguments)


class _KeyTaken(Exception):
    """Rolls back a creation whose idempotency key somebody has."""

    def __init__(self, key: IdempotencyKey) -> None:
        super().__init__()
        self.key = key


def _continuation(content: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if content is None else orjson.loads(content)
    return found


async def _insert(connection: Connection, new: NewStream, key: IdempotencyKey | None, max_live: int | None) -> Stream:
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
    )
    row = await _insert_below(connection, columns, max_live)
    if key is not None and not await _take_key(connection, new.tenant, key, row["id"]):
        raise _KeyTaken(key)
    return _stream(row)


async def _insert_below(connection: Connection, columns: tuple[object, ...], max_live: int | None) -> dict[str, Any]:
    """Insert a row if the tenant has fewer streams than that which have not ended; return its columns.

    Creates that are at work at once do not see each other. So near the limit they go one by one. At the limit they are
    refused without having waited: a tenant that runs against it is not to hold the pool's connections.

    Raises:
        TooManyStreams: the tenant has as many.
    """
    if max_live is None:
        # Counts none, and finds that less than one.
        live, row = await _try_insert(connection, columns, 1, 0)
    else:
        live, row = await _try_insert(connection, columns, max_live - _NEAR, max_live)
        if row is None and live < max_live:
            await connection.execute(_ONE_BY_ONE, columns[0])
            live, row = await _try_insert(connection, columns, max_live, max_live)
    if row is None:
        raise TooManyStreams(
            f"You have {live} streams that are queued or running, and no more may be at once. Try again when one of "
            "them has ended.",
            _FULL_RETRY_SECONDS,
        )
    return row


async def _try_insert(
    connection: Connection, columns: tuple[object, ...], below: int, count: int
) -> tuple[int, dict[str, Any] | None]:
    row = await connection.fetchrow(_INSERT, *columns, below, count)
    assert row is not None
    fields = dict(row)
    return fields.pop("live"), None if fields["id"] is None else fields


async def _take_key(connection: Connection, tenant: str, key: IdempotencyKey, stream_id: UUID) -> bool:
    row = await connection.fetchval(_TAKE_KEY, tenant, key.key, key.request_hash, stream_id, key.lifetime_seconds)
    return row is not None


async def _created_before(connection: Connection, tenant: str, key: IdempotencyKey) -> Stream | None:
    """Return the stream that the key created; None where both have just been erased or have expired."""
    row = await connection.fetchrow(_KEY, tenant, key.key)
    if row is None:
        return None
    if row["request_hash"] != key.request_hash:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for a request with another body. Use a new key for a new request."
        )
    return await get(connection, row["stream_id"])


def _stream(row: asyncpg.Record | Mapping[str, Any]) -> Stream:
    fields = dict(row)
    fields["metadata"] = orjson.loads(fields["metadata"])
    fields["usage"] = None if fields["usage"] is None else orjson.loads(fields["usage"])
    return Stream(**fields)
