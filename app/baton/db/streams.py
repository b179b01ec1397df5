"""The streams' rows: creating, finding, cancelling and ending them. `stream_queue` claims them.

A row's `epoch` rises with each claim, and a writer names the epoch under which it claimed in each append. Rows are
locked by what changes them, such as claims, cancels and ends, never by appending events.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from ..errors import ConfigurationError, IdempotencyConflict, TooManyStreams
from ..events import MAX_SEQ, Status
from ..observability import stream_end
from ..outcome import Outcome
from ..usage import AttemptUsage, Bill
from . import event_log
from .event_log import Fence
from .live_counts import NOTHING, CountPlan, LiveCounts, Moment
from .postgres import Connection, Pool

# Larger inputs are parsed and stored one at a time, and so are larger bodies of requests.
LARGE_BYTES: Final = 1 << 20

_COLUMNS = """id, tenant, generator, metadata, status, epoch, unwatched_timeout, attempts, created_at, started_at,
    finished_at, cancel_requested_at, finish_reason, error_code, error_message, usage, tokens,
    time_to_first_token_seconds, duration_seconds, traceparent, claim_token, usage_by_attempt"""

# A row if there are fewer than $12 streams of the tenant that have not ended, and in any case how many: those from the
# id $14 on ($13 at most), those among $15 that are still live, and $16 others (see `live_counts`). Those of $15 are
# found by their key, whatever the planner thinks of the index of live streams. The transaction takes its id before the
# stream does.
_INSERT = f"""
WITH recent AS (
    SELECT id FROM baton.stream WHERE tenant = $1 AND status IN ('queued', 'running') AND id >= $14 LIMIT $13
), known AS MATERIALIZED (
    SELECT id, status FROM baton.stream WHERE id = ANY ($15::uuid[])
), older AS (
    SELECT id FROM known WHERE status IN ('queued', 'running')
), live AS (
    SELECT (SELECT count(*) FROM recent) + (SELECT count(*) FROM older) + $16::bigint AS live
), made AS (
    INSERT INTO baton.stream (tenant, generator, input, metadata, on_worker_lost, max_duration, idle_timeout,
                              queue_timeout, unwatched_timeout, traceparent, continuation)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM live
    WHERE live < $12::bigint AND pg_current_xact_id() IS NOT NULL
    RETURNING {_COLUMNS}
)
SELECT live, (SELECT array_agg(id) FROM recent) AS recent, (SELECT array_agg(id) FROM older) AS older, now() AS began,
       pg_current_xact_id_if_assigned()::text::bigint AS transaction_id, pg_current_snapshot()::text AS snapshot, made.*
FROM live LEFT JOIN made ON true
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

_GET_MANY = f"SELECT {_COLUMNS} FROM baton.stream WHERE id = ANY ($1::uuid[])"  # noqa: S608

_INPUT = "SELECT input FROM baton.stream WHERE id = $1"
# The row has the size of a value, also where the value itself is stored elsewhere.
_SMALL_INPUT = """
SELECT octet_length(input), CASE WHEN octet_length(input) <= $2 THEN input END FROM baton.stream WHERE id = $1
"""
_CONTINUATION = "SELECT continuation FROM baton.stream WHERE id = $1"
_MISSING = """
SELECT asked.id FROM unnest($1::uuid[]) AS asked (id)
WHERE NOT EXISTS (SELECT FROM baton.stream AS s WHERE s.id = asked.id)
"""

# A list looks at a bounded number of rows, $4, whatever it finds. These say which rows: the newest between two ids,
# those that have not ended, or those with some metadata. The last two are in no order: unless all of them were looked
# at, they do not show which rows are the newest.
#
# Comparing rows makes Postgres use the index on (tenant, id): no other has this order. With statistics from before a
# tenant grew, a plan for `tenant = $1` may walk through the streams of all others, or sort all that the tenant has.
_NEWEST_OF_TENANT = """(tenant, id) BETWEEN ROW($1::text, $2::uuid) AND ROW($1::text, $3::uuid)
    ORDER BY tenant DESC, id DESC LIMIT $4"""
_NEWEST_OF_ALL = "id BETWEEN $2 AND $3 ORDER BY id DESC LIMIT $4"
_LIVE_OF_TENANT = "tenant = $1 AND status IN ('queued', 'running') LIMIT $4"
_LIVE_OF_ALL = "status IN ('queued', 'running') LIMIT $4"
# The index knows no tenants: the streams of others count, too.
_MATCHING = "metadata @> ANY ($6::jsonb[]) LIMIT $4"

# Of the rows that are looked at, the page: those of one tenant, between two ids, in one of some states, with metadata.
# And in any case how many were looked at, and the oldest of them.
_PAGE = f"""
WITH looked_at AS MATERIALIZED (
    SELECT id, ($1::text IS NULL OR tenant = $1) AND id BETWEEN $2::uuid AND $3::uuid
        AND ($5::text[] IS NULL OR status = ANY ($5)) AND ($6::jsonb[] IS NULL OR metadata @> ANY ($6)) AS fits
    FROM baton.stream WHERE {{}}
), whole AS (
    SELECT count(*) AS looked_at, (SELECT id FROM looked_at ORDER BY id LIMIT 1) AS oldest FROM looked_at
)
SELECT whole.*, page.* FROM whole LEFT JOIN (
    SELECT {_COLUMNS} FROM baton.stream
    WHERE id = ANY (ARRAY (SELECT id FROM looked_at WHERE fits ORDER BY id DESC LIMIT $7))
) AS page ON true
ORDER BY page.id DESC
"""  # noqa: S608

# Which rows match is in an index without an order, and a million entries of it take 40 ms. So Postgres is first asked
# how many it expects. What it says of a rare value is a fixed part of the table, 1 in 10,000, and without statistics
# it is 1 in 100: so only a larger part says that the value is common.
_EXPECTED = "EXPLAIN (FORMAT JSON) SELECT FROM baton.stream WHERE metadata @> ANY ($1::jsonb[])"
_IS_COMMON = """
SELECT $1 > 0.02 * reltuples AND EXISTS (
    SELECT FROM pg_stats WHERE schemaname = 'baton' AND tablename = 'stream' AND attname = 'metadata'
)
FROM pg_class WHERE oid = 'baton.stream'::regclass
"""
# Whatever the statistics say: a scan of the table, or sorting before the limit, has no bound.
_BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"

_LIVE_COUNTS = """
SELECT count(*) FILTER (WHERE status = 'queued'), count(*) FILTER (WHERE status = 'running')
FROM (SELECT status FROM baton.stream WHERE tenant = $1 AND status IN ('queued', 'running') LIMIT $2) AS live
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

# Rows that another session has locked are skipped: a number for operators must not wait, nor keep others waiting.
_NOTE_FIRST_TOKENS = """
WITH due AS (
    SELECT s.id, f.seconds
    FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::double precision[]) AS f (id, epoch, claim_token, seconds)
    JOIN baton.stream AS s ON s.id = f.id
    WHERE s.status = 'running' AND s.epoch = f.epoch AND s.claim_token IS NOT DISTINCT FROM f.claim_token
    ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE baton.stream AS s SET time_to_first_token_seconds = due.seconds FROM due WHERE s.id = due.id
RETURNING s.id
"""

_WATCHED = """
UPDATE baton.stream SET watched_at = clock_timestamp()
WHERE id = ANY ($1) AND status IN ('queued', 'running')
"""

_CLOSE = """
UPDATE baton.stream
SET status = $3, finish_reason = $4, error_code = $5, error_message = $6, usage = $7, tokens = $8,
    time_to_first_token_seconds = $9, duration_seconds = $10, usage_by_attempt = $11,
    finished_at = clock_timestamp(), worker_id = NULL
WHERE id = $1 AND epoch = $2
"""

_DELETE_STREAM = "DELETE FROM baton.stream WHERE id = $1 RETURNING status"
_DELETE_KEYS = "DELETE FROM baton.idempotency_key WHERE tenant = $1 AND stream_id = $2"


_KEY_TRIES = 3
# As many creates of a tenant may be at work at once without one of them seeing the limit too late.
_NEAR = 64
# When some of the tenant's streams may have ended.
_FULL_RETRY_SECONDS = 5

# Rows that a list looks at in one statement, at most.
LOOKED_AT = 2000
FIRST, LAST = UUID(int=0), UUID(int=(1 << 128) - 1)
LIVE = frozenset({"queued", "running"})

UNWATCHED = Outcome.cancelled(finish_reason="unwatched")
REWOUND = Outcome.failed("log_rewound", "The end of this answer was lost. Ask again.")
QUEUE_TIMEOUT = Outcome.failed("queue_timeout", "This answer could not be begun in time. Try again later.")


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
    usage_by_attempt: Sequence[AttemptUsage] | None = None

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
    also: tuple[str, ...] = ()  # keys that the same stream takes besides; where one is taken, none is created
    conflict: str = "This Idempotency-Key was used for a request with another body. Use a new key for a new request."


@dataclass(frozen=True, slots=True)
class StreamFilter:
    """Which streams to list: of one tenant, or of all if it is None, between two ids, in one of some states.

    `metadata`: they have one of these alternatives.
    """

    tenant: str | None
    first: UUID = FIRST
    last: UUID = LAST
    statuses: Sequence[str] | None = None
    metadata: Sequence[Mapping[str, Any]] | None = None

    @property
    def live(self) -> bool:
        """Whether only streams that have not ended are wanted."""
        return self.statuses is not None and LIVE.issuperset(self.statuses)

    @property
    def chooses(self) -> bool:
        """Whether a row that is looked at may be one that is not wanted."""
        return self.statuses is not None or self.metadata is not None

    @property
    def alternatives(self) -> list[str] | None:
        """The metadata as JSON."""
        return None if self.metadata is None else [orjson.dumps(item).decode() for item in self.metadata]


@dataclass(frozen=True, slots=True)
class Page:
    """Some streams, newest first. There may be more before the id `before`; if it is None, there are none.

    `looked_at`: how many rows it took, of which `oldest` has the lowest id.
    """

    streams: Sequence[Stream]
    before: UUID | None
    looked_at: int
    oldest: UUID | None


async def create(
    pool: Pool,
    new: NewStream,
    key: IdempotencyKey | None = None,
    *,
    max_live: int | None = None,
    counts: LiveCounts | None = None,
) -> tuple[Stream, bool]:
    """Queue a stream; return it, and whether it is new or the one that the idempotency key created before.

    `counts`: what the pod remembers of the tenants' live streams, so that not all are counted each time.

    Raises:
        IdempotencyConflict: the key was used for another request.
        TooManyStreams: the tenant has `max_live` streams that have not ended.
    """
    async with pool.acquire() as connection:
        for _ in range(_KEY_TRIES):
            try:
                async with connection.transaction():
                    return await _insert(connection, new, key, max_live, counts or LiveCounts()), True
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


async def read_input(pool: Pool, stream_id: UUID, before_large: Callable[[int], Awaitable[None]]) -> Any:
    """Read what a stream was created from; None where there is no such stream.

    `before_large`, given its bytes, is awaited before a large one is read: tens of megabytes should not be read by
    many requests at once.
    """
    row = await pool.fetchrow(_SMALL_INPUT, stream_id, LARGE_BYTES)
    if row is None:
        return None
    size, content = row
    if content is None:
        await before_large(size)
        content = await pool.fetchval(_INPUT, stream_id)
    return None if content is None else orjson.loads(content)


async def read_continuation(pool: Pool, stream_id: UUID) -> dict[str, Any]:
    """Read what a stream continues; an empty object where it continues nothing, or is gone."""
    return continuation(await pool.fetchval(_CONTINUATION, stream_id))


async def missing(pool: Pool, stream_ids: Sequence[UUID]) -> list[UUID]:
    """Return which of some streams have no row: they were erased, have expired, or never were."""
    return [row[0] for row in await pool.fetch(_MISSING, stream_ids)]


async def get_many(executor: Connection | Pool, stream_ids: Sequence[UUID]) -> list[Stream]:
    """Read some rows, each by its key, in no order; those that are gone are left out."""
    return [_stream(row) for row in await executor.fetch(_GET_MANY, stream_ids)]


async def find(connection: Connection, wanted: StreamFilter, limit: int) -> Page:
    """List the newest streams first, and say where to continue.

    However rare they are, a bounded number of rows is looked at. So a page may be short of `limit`, or empty, while
    there are more: it is the last one if it says nothing of where to continue.
    """
    async with connection.transaction(readonly=True):
        await connection.execute(_BY_INDEX)
        if wanted.metadata is not None and not await _is_common(connection, wanted):
            page = await _look(connection, _MATCHING, LOOKED_AT, wanted, limit)
            if page.looked_at < LOOKED_AT:
                return page
        if wanted.live:
            source = _LIVE_OF_ALL if wanted.tenant is None else _LIVE_OF_TENANT
            page = await _look(connection, source, LOOKED_AT, wanted, limit)
            if page.looked_at < LOOKED_AT:
                return page
        return await _look_at_newest(connection, wanted, limit)


async def find_all(connection: Connection, wanted: StreamFilter, limit: int) -> AsyncIterator[Stream]:
    """Yield the newest `limit` streams, however many rows that takes: a page for each statement."""
    count = 0
    while count < limit:
        page = await find(connection, wanted, limit - count)
        for stream in page.streams:
            yield stream
        count += len(page.streams)
        if page.before is None:
            return
        wanted = replace(wanted, last=below(page.before))


def below(stream_id: UUID) -> UUID:
    """Return the id before an id."""
    return UUID(int=max(0, stream_id.int - 1))


async def live_counts(executor: Connection | Pool, tenant: str) -> tuple[int, int]:
    """Return how many of a tenant's streams are queued, and how many run, up to `LOOKED_AT` together."""
    row = await executor.fetchrow(_LIVE_COUNTS, tenant, LOOKED_AT)
    assert row is not None
    return row[0], row[1]


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


async def end_queued(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> bool:
    """End a queued stream, unless it was claimed meanwhile. Return whether it was ended by this."""
    with event_log.putting_off(stream_id):
        return await end(connection, stream_id, outcome, _TAKE_QUEUED_EPOCH, epoch)
    return False


async def end_claimed(connection: Connection, fence: Fence, outcome: Outcome) -> bool:
    """End a stream that this claim no longer writes to. Return whether it was ended by this."""
    with event_log.putting_off(fence.stream_id):
        return await end(connection, fence.stream_id, outcome, _TAKE_CLAIMED, fence.epoch, fence.claim_token)
    return False


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
                written, known = ended
                stream_end.note(stream_id, written, **known)
            return ended is not None


async def _end(
    connection: Connection, stream_id: UUID, outcome: Outcome, take: str, *arguments: object
) -> tuple[Outcome, dict[str, Any]] | None:
    """Return the end with what the stream has used, and what the log is to say of it, if it was ended by this."""
    async with connection.transaction():
        taken = await connection.fetchrow(take, stream_id, *arguments)
        if taken is None:
            return None
        known = dict(taken)
        epoch, claim_token = known.pop("epoch"), known.pop("claim_token")
        while True:
            tail = await event_log.read_tail(connection, stream_id)
            if tail.outcome is not None:
                await close(connection, stream_id, epoch, tail.outcome)
                return None
            if tail.last_seq >= MAX_SEQ:
                raise ConfigurationError(f"Stream {stream_id} has no number left for its terminal event.")
            seq = tail.last_seq + 1
            if tail.last_seq:
                outcome = outcome.billed(Bill(epoch, await event_log.read_usage(connection, stream_id)))
            if await event_log.append(
                connection, [event_log.Append(stream_id, epoch, seq, seq, outcome.encode(), outcome, claim_token)]
            ):
                return outcome, {**known, "epoch": epoch, "events": seq}


async def close(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> None:
    """Close the row of a stream whose terminal event is in the log already."""
    await connection.execute(_CLOSE, stream_id, epoch, *outcome.columns())


async def requeue(connection: Connection, fence: Fence, *, uncount_attempt: bool = False) -> bool:
    """Give a claimed stream back to the queue; return whether that claim still had it."""
    return await connection.fetchval(_REQUEUE, *fence, int(uncount_attempt)) is not None


async def note_first_tokens(connection: Connection, seconds: Mapping[Fence, float]) -> set[UUID]:
    """Write how long running streams took to their first tokens; return the ids of those that were written."""
    rows = [(*fence, found) for fence, found in seconds.items()]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return {row[0] for row in await connection.fetch(_NOTE_FIRST_TOKENS, *columns)}


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
        await event_log.erase(connection, stream_id, keep_end=ended_now)
        await connection.execute(_DELETE_KEYS, tenant, stream_id)
    return True


async def _is_common(connection: Connection, wanted: StreamFilter) -> bool:
    """Return whether Postgres knows that too many streams have the metadata to read their part of the index."""
    plan = orjson.loads(await connection.fetchval(_EXPECTED, wanted.alternatives))
    expected = plan[0]["Plan"]["Plan Rows"]
    return expected > LOOKED_AT and bool(await connection.fetchval(_IS_COMMON, float(expected)))


async def _look_at_newest(connection: Connection, wanted: StreamFilter, limit: int) -> Page:
    source = _NEWEST_OF_ALL if wanted.tenant is None else _NEWEST_OF_TENANT
    most = LOOKED_AT if wanted.chooses else limit + 1
    page = await _look(connection, source, most, wanted, limit)
    if page.before is None and page.looked_at == most:
        return replace(page, before=page.oldest)
    return page


async def _look(connection: Connection, source: str, most: int, wanted: StreamFilter, limit: int) -> Page:
    """Look at no more than `most` rows of a source. The page says to continue only where it is full."""
    rows = await connection.fetch(
        _PAGE.format(source),
        *(wanted.tenant, wanted.first, wanted.last, most, wanted.statuses, wanted.alternatives, limit + 1),
    )
    found = [_stream(dict(list(row.items())[2:])) for row in rows if row["id"] is not None]
    before = found[limit - 1].id if len(found) > limit else None
    return Page(found[:limit], before, rows[0]["looked_at"], rows[0]["oldest"])


class _KeyTaken(Exception):
    """Rolls back a creation whose idempotency key somebody has."""

    def __init__(self, key: IdempotencyKey) -> None:
        super().__init__()
        self.key = key


def continuation(content: bytes | None) -> dict[str, Any]:
    """Decode what a row says of the message that its stream continues; an empty object if it continues none."""
    found: dict[str, Any] = {} if content is None else orjson.loads(content)
    return found


async def _insert(
    connection: Connection, new: NewStream, key: IdempotencyKey | None, max_live: int | None, counts: LiveCounts
) -> Stream:
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
    row = await _insert_below(connection, columns, max_live, counts, new.tenant)
    for each in () if key is None else (key, *(replace(key, key=name) for name in key.also)):
        if not await _take_key(connection, new.tenant, each, row["id"]):
            raise _KeyTaken(each)
    return _stream(row)


async def _insert_below(
    connection: Connection, columns: tuple[object, ...], max_live: int | None, counts: LiveCounts, tenant: str
) -> dict[str, Any]:
    """Insert a row if the tenant has fewer streams than that which have not ended; return its columns.

    Far from the limit a number that may be too high will do. Creates that are at work at once do not see each other. So
    near the limit they go one by one. At the limit they are refused without having waited: a tenant that runs against
    it is not to hold the pool's connections.

    Raises:
        TooManyStreams: the tenant has as many.
    """
    if max_live is None:
        # Counts none, and finds that less than one.
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
            f"You have {live} answers under way, which is the limit. Try again when one of them has ended.",
            _FULL_RETRY_SECONDS,
        )
    return row


async def _try_insert(
    connection: Connection, columns: tuple[object, ...], below: int, most: int, plan: CountPlan
) -> tuple[int, dict[str, Any] | None]:
    """Insert if the plan counts fewer than `below`; return how many, up to `most` at least, and the row."""
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


async def _created_before(connection: Connection, tenant: str, key: IdempotencyKey) -> Stream | None:
    """Return the stream that the key created; None where both have just been erased or have expired."""
    row = await connection.fetchrow(_KEY, tenant, key.key)
    if row is None:
        return None
    if row["request_hash"] != key.request_hash:
        raise IdempotencyConflict(key.conflict)
    return await get(connection, row["stream_id"])


def _stream(row: asyncpg.Record | Mapping[str, Any]) -> Stream:
    fields = dict(row)
    fields["metadata"] = orjson.loads(fields["metadata"])
    for name in ("usage", "usage_by_attempt"):
        fields[name] = None if fields[name] is None else orjson.loads(fields[name])
    return Stream(**fields)
