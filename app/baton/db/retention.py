"""Expired streams: the horizon below which streams are deleted, and the deletion of their rows.

`baton.retention` holds the horizon: the smallest id of a stream that is kept. It is committed before anything below it
is deleted, and it never goes back, since deletions are final. So an id below it without a row means that the stream has
expired.

Streams that have not ended, including queued ones, stay complete below the horizon, and expire once they have ended. No
new stream appears there: ids are made by the database's clock, an ended stream never runs again, and the lock under
which a row is deleted is taken on an ended one.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from .. import stream_ids
from ..errors import StreamExpired, StreamNotFound
from . import partitions
from .postgres import Connection, Pool

_RAISE = """
INSERT INTO baton.retention AS r (expired_before) VALUES ($1)
ON CONFLICT (single) DO UPDATE SET expired_before = excluded.expired_before
WHERE r.expired_before < excluded.expired_before
"""

_HORIZON = "SELECT expired_before FROM baton.retention"

# Both statements begin at the last deleted row, since the index entries of deleted rows are still there. The arrays
# make Postgres use the indexes, whatever it estimates.
_DELETE_STREAMS = """
WITH expired AS (
    SELECT id FROM baton.stream
    WHERE id > $1 AND id < $2 AND status IN ('completed', 'failed', 'cancelled')
    ORDER BY id LIMIT $3
    FOR UPDATE SKIP LOCKED
), keys AS (
    DELETE FROM baton.idempotency_key WHERE stream_id = ANY (ARRAY(SELECT id FROM expired))
), external AS (
    DELETE FROM baton.external_stream WHERE stream_id = ANY (ARRAY(SELECT id FROM expired))
), producers AS (
    DELETE FROM baton.producer WHERE stream_id = ANY (ARRAY(SELECT id FROM expired))
)
DELETE FROM baton.stream WHERE id = ANY (ARRAY(SELECT id FROM expired))
RETURNING id
"""

_DELETE_KEYS = """
WITH expired AS (
    SELECT ctid FROM baton.idempotency_key
    WHERE expires_at >= $1 AND expires_at < $2
    ORDER BY expires_at LIMIT $3
    FOR UPDATE SKIP LOCKED
)
DELETE FROM baton.idempotency_key WHERE ctid = ANY (ARRAY(SELECT ctid FROM expired))
RETURNING expires_at
"""

# What is kept for a stream's next run, and deleted at its end. A row may stay if it was inserted at that moment.
RUN_TABLES: Final = ("stream_state", "step", "input")

_NOT_LIVE = """NOT EXISTS (
    SELECT FROM baton.stream WHERE id = {rows}.stream_id AND status NOT IN ('completed', 'failed', 'cancelled')
)"""

# A page of rows begins after the stream $1. Rows of its last stream that are beyond the page are deleted with it.
_DELETE_LEFTOVERS = """
WITH page AS MATERIALIZED (
    SELECT DISTINCT stream_id
    FROM (SELECT stream_id FROM baton.{table} WHERE stream_id > $1 ORDER BY stream_id LIMIT $2) AS rows
), deleted AS (
    DELETE FROM baton.{table} WHERE stream_id = ANY (ARRAY(SELECT stream_id FROM page WHERE {not_live}))
    RETURNING stream_id
)
SELECT (SELECT stream_id FROM page ORDER BY stream_id DESC LIMIT 1), (SELECT count(*) FROM deleted)
"""
_COUNT_LEFTOVERS = "SELECT count(*) FROM baton.{table} AS rows WHERE {not_live}"

# They hold a provider's handle, so no call is kept for longer than a stream is.
_DELETE_STOP_CALLS = "DELETE FROM baton.stop_call WHERE created_at < to_timestamp($1)"
_COUNT_STOP_CALLS = "SELECT count(*) FROM baton.stop_call WHERE created_at < to_timestamp($1)"

_COUNT_STREAMS = "SELECT count(*) FROM baton.stream WHERE id < $1 AND status IN ('completed', 'failed', 'cancelled')"
_COUNT_KEYS = "SELECT count(*) FROM baton.idempotency_key WHERE expires_at < clock_timestamp()"

_OLDEST = """
SELECT id, status FROM baton.stream
WHERE id >= $1 AND id < $2 AND (NOT $3 OR status NOT IN ('completed', 'failed', 'cancelled'))
ORDER BY id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stream's row that keeps a partition from being dropped."""

    stream_id: UUID
    status: str


async def raise_horizon(connection: Connection, horizon: UUID) -> None:
    """Declare that streams with smaller ids have expired."""
    await connection.execute(_RAISE, horizon)


async def delete_streams(connection: Connection, after: UUID, before: UUID, limit: int) -> list[UUID]:
    """Delete the rows of ended streams between two ids, with what belongs to them; return their ids.

    That is their idempotency keys, the rows of external streams, and of their producers.
    """
    return sorted(row[0] for row in await connection.fetch(_DELETE_STREAMS, after, before, limit))


async def delete_keys(
    connection: Connection, first: datetime.datetime, end: datetime.datetime, limit: int
) -> list[datetime.datetime]:
    """Delete idempotency keys that expired from `first` on and before `end`; return when they did."""
    return sorted(row[0] for row in await connection.fetch(_DELETE_KEYS, first, end, limit))


async def count(connection: Connection, before: UUID) -> tuple[int, int]:
    """Return how many streams and idempotency keys would be deleted."""
    return await connection.fetchval(_COUNT_STREAMS, before), await connection.fetchval(_COUNT_KEYS)


async def delete_leftovers(connection: Connection, table: str, after: UUID, limit: int) -> tuple[UUID | None, int]:
    """Delete rows of one of `RUN_TABLES` whose streams have ended or have no row, among the next `limit` rows.

    Return the last stream that was looked at, None at the end of the table, and how many rows were deleted.
    """
    not_live = _NOT_LIVE.format(rows="page")
    row = await connection.fetchrow(_DELETE_LEFTOVERS.format(table=table, not_live=not_live), after, limit)
    assert row is not None
    return row[0], row[1]


async def delete_stop_calls(connection: Connection, horizon: UUID) -> int:
    """Delete the calls of `stop` that are older than the streams that are kept; return how many."""
    status = await connection.execute(_DELETE_STOP_CALLS, stream_ids.moment_of(horizon))
    return int(status.rpartition(" ")[2])


async def count_leftovers(connection: Connection, horizon: UUID) -> tuple[int, int]:
    """Return how many rows of `RUN_TABLES`, and how many calls of `stop`, would be deleted."""
    not_live = _NOT_LIVE.format(rows="rows")
    found = [await connection.fetchval(_COUNT_LEFTOVERS.format(table=table, not_live=not_live)) for table in RUN_TABLES]
    return sum(found), await connection.fetchval(_COUNT_STOP_CALLS, stream_ids.moment_of(horizon))


async def oldest_within(connection: Connection, first: UUID, end: UUID, *, live: bool = False) -> Kept | None:
    """Return the oldest stream, or with `live` the oldest live one, with an id from `first` on and before `end`."""
    row = await connection.fetchrow(_OLDEST, first, end, live)
    return None if row is None else Kept(*row)


async def absence(executor: Connection | Pool, stream_id: UUID) -> StreamExpired | StreamNotFound:
    """Return the error that explains why a stream has no row."""
    horizon = await executor.fetchval(_HORIZON) if stream_ids.is_of_stream(stream_id) else None
    if horizon is None or stream_id >= horizon:
        return StreamNotFound(f"There is no stream {stream_id}.")
    day = partitions.day_of(horizon)
    return StreamExpired(f"The stream {stream_id} has expired: those created before {day} (UTC) are deleted.")
