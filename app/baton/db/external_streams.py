"""External streams: the ones that a producer writes over HTTP. Their rows beside `baton.stream`, and their lifetimes.

An external stream is `open` until a producer closes it or something else ends it. Its row in `external_stream` says how
far its log has come (`external_appends`), and where it is: at a path of its tenant, or at its id. The row stays for as
long as the stream does, so that a path belongs to an ended stream until that is deleted or has expired.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from .. import usage
from ..errors import Unavailable
from ..events import join_lines
from ..model_entries import EXTERNAL
from ..outcome import Outcome, Timings
from . import event_log, stream_creation, stream_ending, streams
from .event_log import Append
from .live_counts import LiveCounts
from .postgres import Connection, Pool
from .stream_creation import IdempotencyKey, NewStream
from .streams import Stream

Kind: TypeAlias = Literal["events", "json", "text", "bytes"]

GENERATOR: Final = EXTERNAL

# The TTL of a stream starts again with each read and write. A row for each read would cost more than the read, so this
# is written only once a tenth of the TTL has passed.
_LASTS: Final = """(e.expires_at IS NULL OR e.expires_at > clock_timestamp())
  AND (e.ttl_seconds IS NULL OR e.used_at + make_interval(secs => e.ttl_seconds) > clock_timestamp())"""


@dataclass(frozen=True, slots=True)
class ExternalStream:
    """The row of an external stream. The fields have the names of the columns."""

    stream_id: UUID
    tenant: str
    path: str | None  # below `/v1/stream/`; None: its id
    kind: Kind
    content_type: str
    ttl_seconds: int | None
    expires_at: datetime | None
    used_at: datetime
    tail: int  # the number of the last event; of the last message, if it is not of the kind `events`
    size_bytes: int
    tokens: int
    first_token_at: datetime | None
    heard_at: datetime
    stream_seq: str | None
    producers: int
    closed: bool

    @property
    def carries_events(self) -> bool:
        """Whether its messages are Baton's events, so that every dialect can show it."""
        return self.kind == "events"


@dataclass(frozen=True, slots=True)
class NewExternal:
    """What an external stream is created from: `stream` as for any stream, and the rest beside it.

    `path` is None for a stream whose id is its path. `lines` are the first messages, each one line of JSON. With an
    `outcome` the stream has ended with them, and no terminal event is among the lines.
    """

    stream: NewStream
    kind: Kind
    content_type: str
    path: str | None = None
    ttl_seconds: int | None = None
    expires_at: datetime | None = None
    lines: Sequence[bytes] = ()
    tokens: int = 0
    outcome: Outcome | None = None


class Overdue(NamedTuple):
    """An open stream that something other than its producer ends."""

    stream_id: UUID
    reason: Literal["cancelled", "producer_lost", "max_duration", "unwatched", "rewound"]


_COLUMNS: Final = ", ".join(f"e.{field.name}" for field in fields(ExternalStream))
_FIND = f"SELECT {_COLUMNS} FROM baton.external_stream AS e WHERE e.tenant = $1 AND e.path = $2 AND {_LASTS}"  # noqa: S608
_MADE = f"SELECT {_COLUMNS} FROM baton.external_stream AS e WHERE e.stream_id = $1"  # noqa: S608
_GET = f"{_MADE} AND {_LASTS}"
_TAKEN = "SELECT stream_id FROM baton.external_stream WHERE tenant = $1 AND path = $2"
_INSERT = """
INSERT INTO baton.external_stream (stream_id, tenant, path, kind, content_type, ttl_seconds, expires_at, tail,
                                   size_bytes, tokens, first_token_at, closed)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::integer, CASE WHEN $10 > 0 THEN clock_timestamp() END, $11
ON CONFLICT (tenant, path) DO NOTHING
RETURNING stream_id
"""
_TRIES: Final = 3

_TOUCH = """
UPDATE baton.external_stream SET used_at = clock_timestamp()
WHERE stream_id = ANY ($1::uuid[]) AND used_at + make_interval(secs => ttl_seconds / 10.0) < clock_timestamp()
"""
_HEAR = "UPDATE baton.external_stream SET heard_at = clock_timestamp() WHERE stream_id = $1"

# A cancel ends a stream at once, unless its pod dies between the request and the end, or the end cannot be written.
#
# The history is in a query of its own, since Postgres would call the function for each row otherwise.
#
# Streams without events end at their maximum life only: what is appended to them is nobody's answer.
_OVERDUE = """
SELECT id, CASE
    WHEN cancelled THEN 'cancelled'
    WHEN rewound THEN 'rewound'
    WHEN created_at + make_interval(secs => longest) < clock_timestamp() THEN 'max_duration'
    WHEN heard_at + make_interval(secs => silence) < clock_timestamp() THEN 'producer_lost'
    ELSE 'unwatched' END
FROM (
    SELECT s.id, s.created_at, e.heard_at, s.cancel_requested_at IS NOT NULL AS cancelled,
           s.history <> (SELECT baton.current_history()) AS rewound,
           CASE WHEN e.kind = 'events' THEN coalesce(s.max_duration, $1) ELSE $3 END AS longest,
           CASE WHEN e.kind = 'events' THEN coalesce(s.idle_timeout, $2) END AS silence,
           coalesce(s.watched_at, s.created_at) AS watched_at, s.unwatched_timeout
    FROM baton.stream AS s JOIN baton.external_stream AS e ON e.stream_id = s.id
    WHERE NOT e.closed AND s.status = 'open'
) AS open
WHERE cancelled
   OR ($4 AND rewound)
   OR created_at + make_interval(secs => longest) < clock_timestamp()
   OR heard_at + make_interval(secs => silence) < clock_timestamp()
   OR ($5 AND watched_at + make_interval(secs => unwatched_timeout) < clock_timestamp())
ORDER BY id
LIMIT 100
"""
_REWOUND = """
SELECT baton.current_history() WHERE EXISTS (
    SELECT FROM baton.stream AS s JOIN baton.external_stream AS e ON e.stream_id = s.id
    WHERE NOT e.closed AND s.status = 'open' AND s.history <> (SELECT baton.current_history())
)
"""

_EXPIRED = f"""
SELECT e.stream_id, e.tenant FROM baton.external_stream AS e WHERE NOT ({_LASTS}) ORDER BY e.stream_id LIMIT 100
"""  # noqa: S608


async def create(
    pool: Pool,
    new: NewExternal,
    key: IdempotencyKey | None = None,
    *,
    max_live: int | None = None,
    counts: LiveCounts | None = None,
) -> tuple[Stream, ExternalStream, bool]:
    """Create an open stream; return its rows, and whether it is new or the one at this path, or of this key, before.

    Raises:
        IdempotencyConflict: the key was used for another request.
        TooManyStreams: the tenant has `max_live` streams that have not ended.
    """
    for _ in range(_TRIES):
        # A stream that exists already needs no room.
        if new.path is not None and (there := await _at(pool, new.stream.tenant, new.path)):
            return *there, False
        with contextlib.suppress(_PathTaken):
            stream, created = await stream_creation.create(
                pool,
                replace(new.stream, generator=GENERATOR, opened=True),
                key,
                max_live=max_live,
                counts=counts,
                complete=lambda connection, stream: _complete(connection, stream, new),
            )
            # A new stream may have expired by now, or even before.
            if (external := _row(await pool.fetchrow(_MADE if created else _GET, stream.id))) is not None:
                return stream, external, created
    raise Unavailable("The stream is created and deleted by others all the time. Try again in a moment.")


class _PathTaken(Exception):
    """Rolls back a creation at a path that another stream has taken meanwhile."""


async def _complete(connection: Connection, stream: Stream, new: NewExternal) -> None:
    """Insert the row beside that of a new stream, and its first messages."""
    sizes = sum(len(line) for line in new.lines)
    outcome = _totalled(new)
    done = [] if outcome is None else [outcome.encode()]
    tail = len(new.lines) + (len(done) if new.kind == "events" else 0)
    row = (new.path, new.kind, new.content_type, new.ttl_seconds, new.expires_at, tail, sizes, new.tokens)
    closed = outcome is not None
    if await connection.fetchval(_INSERT, stream.id, stream.tenant, *row, closed) is None:
        raise _PathTaken
    if lines := [*new.lines, *done]:
        batch = Append(stream.id, stream.epoch, 1, len(lines), join_lines(lines), outcome)
        await event_log.append(connection, [batch])


def _totalled(new: NewExternal) -> Outcome | None:
    """Return the end of a stream that ends as it begins, with what its messages used."""
    if new.outcome is None:
        return None
    used = usage.of_lines((0, line) for line in new.lines) if new.kind == "events" else {}
    return replace(new.outcome, usage=usage.total_of(used), timings=Timings().plus(new.tokens))


async def _at(pool: Pool, tenant: str, path: str) -> tuple[Stream, ExternalStream] | None:
    """Return the stream at a path; None if there is none. One that has expired is deleted."""
    external = await find(pool, tenant, path)
    if external is not None:
        stream = await streams.get(pool, external.stream_id)
        return None if stream is None else (stream, external)
    expired = await pool.fetchval(_TAKEN, tenant, path)
    if expired is not None and await get(pool, expired) is None:
        await stream_ending.erase(pool, expired, tenant)
    return None


async def find(executor: Connection | Pool, tenant: str, path: str) -> ExternalStream | None:
    """Return the stream at a tenant's path; None if there is none, or if it has expired."""
    return _row(await executor.fetchrow(_FIND, tenant, path))


async def get(executor: Connection | Pool, stream_id: UUID) -> ExternalStream | None:
    """Return the row of an external stream; None if it is none, or if it has expired."""
    return _row(await executor.fetchrow(_GET, stream_id))


async def touch(pool: Pool, external: ExternalStream) -> None:
    """Note that a stream with a TTL was read, so that its TTL starts again."""
    if external.ttl_seconds is not None:
        await touch_all(pool, [external.stream_id])


async def touch_all(pool: Pool, stream_ids: Collection[UUID]) -> None:
    """Note that streams with a TTL are being read."""
    await pool.execute(_TOUCH, sorted(stream_ids))


async def hear(pool: Pool, stream_id: UUID) -> None:
    """Note that the producer of a stream lives."""
    await pool.execute(_HEAR, stream_id)


async def overdue(
    executor: Connection | Pool,
    *,
    max_duration: float,
    idle_timeout: float,
    max_life: float,
    rewound: bool,
    unwatched: bool,
) -> list[Overdue]:
    """Return open streams that are to end, 100 at most; the first two limits, in seconds, hold where a row has none.

    `max_life` holds for streams whose messages are not events. `rewound`: also the ones of an older history.
    `unwatched`: also the ones without a viewer.
    """
    rows = await executor.fetch(_OVERDUE, max_duration, idle_timeout, max_life, rewound, unwatched)
    return [Overdue(*row) for row in rows]


async def rewound_history(executor: Connection | Pool) -> str | None:
    """Return the current history if open streams belong to an older one; otherwise None."""
    found: str | None = await executor.fetchval(_REWOUND)
    return found


async def expired(executor: Connection | Pool) -> list[tuple[UUID, str]]:
    """Return the ids and tenants of streams whose TTL or time has passed: 100 at most."""
    return [(row[0], row[1]) for row in await executor.fetch(_EXPIRED)]


def _row(row: asyncpg.Record | None) -> ExternalStream | None:
    return None if row is None else ExternalStream(**dict(row))
