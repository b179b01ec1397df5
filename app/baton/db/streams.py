"""The streams' rows: reading them, and noting what a worker or a pod learns about a stream.

Streams are created by `stream_creation`, claimed by `stream_queue`, listed by `stream_lists` and ended by
`stream_ending`. A row's `epoch` rises with each claim, and a writer names the epoch of its claim in each append.
Claims, cancels and ends lock the row that they change. Appends never lock it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, get_args
from uuid import UUID

import asyncpg
import orjson

from ..events import FinalStatus, Status
from ..usage import AttemptUsage
from . import end_columns
from .fence import Fence
from .postgres import Connection, Pool

# A stream with any other status has ended. In SQL: status NOT IN ('completed', 'failed', 'cancelled').
LIVE: Final = frozenset(get_args(Status)) - frozenset(get_args(FinalStatus))
# Since when a stream has had no viewer, unless it has one. The time in a wait does not count.
UNWATCHED_SINCE: Final = (
    "greatest(coalesce(watched_at, created_at), "
    "CASE WHEN waiting_since IS NOT NULL OR waited_seconds > 0 THEN queued_at END)"
)
# What a row says while a claim has it: the parameters are the epoch and the token of the claim.
CLAIMED: Final = "status = 'running' AND epoch = $2 AND claim_token IS NOT DISTINCT FROM $3"


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream's row. The fields have the names of the columns."""

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
    answered_by: Mapping[str, Any] | None = None
    run: int = 0  # how often a worker has started it
    interruption: str | None = None  # why its last worker gave it back or lost it, or why its wait ended
    waiting_since: datetime | None = None  # this and the next one: of its last wait
    wait_until: datetime | None = None
    priority: int = 0
    start_after: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether its terminal event is in the log."""
        return self.status not in LIVE

    @property
    def ended_at(self) -> float | None:
        """When it ended, in seconds since 1970."""
        return None if self.finished_at is None else self.finished_at.timestamp()


COLUMNS: Final = ", ".join(field.name for field in fields(Stream))

_GET = f"SELECT {COLUMNS} FROM baton.stream WHERE id = $1"  # noqa: S608

_GET_MANY = f"SELECT {COLUMNS} FROM baton.stream WHERE id = ANY ($1::uuid[])"  # noqa: S608

_INPUT = "SELECT input FROM baton.stream WHERE id = $1"
# The row has the size of a value, also where the value itself is stored elsewhere.
_SMALL_INPUT = """
SELECT octet_length(input), CASE WHEN octet_length(input) <= $2 THEN input END FROM baton.stream WHERE id = $1
"""
_CONTINUATION = "SELECT continuation FROM baton.stream WHERE id = $1"
# The id is decoded outside: Postgres cannot, if it has a NUL.
_CONTINUED = """
SELECT id, convert_from(continuation, 'UTF8')::json #> '{message,id}' FROM baton.stream
WHERE id = ANY ($1::uuid[]) AND continuation IS NOT NULL
"""
_MISSING = """
SELECT asked.id FROM unnest($1::uuid[]) AS asked (id)
WHERE NOT EXISTS (SELECT FROM baton.stream AS s WHERE s.id = asked.id)
"""

_ADOPT = """
UPDATE baton.stream AS s SET history = baton.current_history()
FROM unnest($1::uuid[], $2::integer[], $3::uuid[]) AS f (id, epoch, claim_token)
WHERE s.id = f.id AND s.status = 'running' AND s.epoch = f.epoch AND s.claim_token IS NOT DISTINCT FROM f.claim_token
"""

# The history is returned with each row, so that both are of one snapshot.
_OF_OLDER_HISTORY = """
SELECT s.id, h.current FROM baton.stream AS s, (SELECT baton.current_history() AS current) AS h
WHERE s.id = ANY ($1::uuid[]) AND s.status NOT IN ('completed', 'failed', 'cancelled') AND s.history <> h.current
"""

# Rows that another session has locked are skipped: a number for operators must neither wait nor block others.
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
WHERE id = ANY ($1) AND status NOT IN ('completed', 'failed', 'cancelled')
"""


async def get(executor: Connection | Pool, stream_id: UUID) -> Stream | None:
    """Read one row; return None if there is none."""
    row = await executor.fetchrow(_GET, stream_id)
    return None if row is None else from_row(row)


async def get_many(executor: Connection | Pool, stream_ids: Sequence[UUID]) -> list[Stream]:
    """Read some rows, each by its key, in no order. Ids without a row are left out."""
    return [from_row(row) for row in await executor.fetch(_GET_MANY, stream_ids)]


async def missing(pool: Pool, stream_ids: Sequence[UUID]) -> list[UUID]:
    """Return which of these ids have no row: the stream was erased, has expired, or never existed."""
    return [row[0] for row in await pool.fetch(_MISSING, stream_ids)]


async def read_input(
    pool: Pool, stream_id: UUID, *, large_bytes: int, before_large: Callable[[int], Awaitable[None]]
) -> Any:
    """Read what a stream was created from; return None if there is no such stream.

    `before_large` is awaited with the size in bytes before an input of more than `large_bytes` is read, so that many
    requests do not read tens of megabytes at once.
    """
    row = await pool.fetchrow(_SMALL_INPUT, stream_id, large_bytes)
    if row is None:
        return None
    size, content = row
    if content is None:
        await before_large(size)
        content = await pool.fetchval(_INPUT, stream_id)
    return None if content is None else orjson.loads(content)


async def read_continuation(pool: Pool, stream_id: UUID) -> dict[str, Any]:
    """Read what a stream continues; return an empty object if it continues nothing or has no row."""
    return continuation(await pool.fetchval(_CONTINUATION, stream_id))


async def continued_messages(pool: Pool, stream_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the ids of the messages that some streams continue."""
    rows = await pool.fetch(_CONTINUED, stream_ids)
    return {row[0]: orjson.loads(row[1]) for row in rows if row[1] is not None}


def continuation(content: bytes | None) -> dict[str, Any]:
    """Decode the column of what a stream continues; return an empty object if it continues nothing."""
    found: dict[str, Any] = {} if content is None else orjson.loads(content)
    return found


async def note_watched(pool: Pool, stream_ids: Sequence[UUID]) -> None:
    """Note in one statement that these streams are being watched."""
    await pool.execute(_WATCHED, sorted(stream_ids))


async def note_first_tokens(connection: Connection, seconds: Mapping[Fence, float]) -> set[UUID]:
    """Note how many seconds running streams took to their first tokens; return the ids whose rows were written."""
    rows = [(*fence, found) for fence, found in seconds.items()]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return {row[0] for row in await connection.fetch(_NOTE_FIRST_TOKENS, *columns)}


async def adopt(connection: Connection, fences: Sequence[Fence]) -> None:
    """Move running streams to the current history. Their worker knows that the log holds everything that was sent."""
    await connection.execute(_ADOPT, *map(list, zip(*fences, strict=True)))


async def of_older_history(pool: Pool, stream_ids: Collection[UUID]) -> tuple[set[UUID], str | None]:
    """Return which queued and running streams belong to an older history, and the current one; None without any."""
    rows = await pool.fetch(_OF_OLDER_HISTORY, list(stream_ids))
    return {row[0] for row in rows}, rows[0][1] if rows else None


def from_row(row: asyncpg.Record | Mapping[str, Any]) -> Stream:
    """Make a stream of a row with all of `COLUMNS`."""
    found = end_columns.decoded(dict(row))
    found["metadata"] = orjson.loads(found["metadata"])
    return Stream(**found)
