"""The log: batches of numbered events, appended under a fence and read after a cursor.

A stream's events are numbered 1, 2, 3 … without gaps, and one row holds the events of one flush. An event gets its
number from its writer (`worker.outbox`), which appends right after the tail that it knows. Two things keep a writer
that has lost its stream from writing:

- the append joins `stream` on `(id, epoch, claim_token)`, so that a stale writer starts nothing new after a claim. The
  epoch alone would be enough, except after the database went back in time: then a later claim gets the same epoch;
- the key `(stream_id, first_seq)` decides about appends in flight at that moment, since both writers aim at the same
  place.

A writer also names the history of the database in which its tail is true (see `history`). In another history nothing is
written, so that no append leaves a gap behind what a failover lost.

So an append may leave some of its batches unwritten without an error: it returns which streams it wrote. A place is
rarely taken, and `ON CONFLICT` costs every row a second WAL record. So the first try has no `ON CONFLICT`, and it is
repeated with it if Postgres reports that a place is taken.

The log has a partition for each day or for several, and Postgres locks each one that a statement might read. So every
statement that reads or erases names the day of its streams in its text. Postgres then plans for one partition and locks
no other, in a generic plan too. Bounds in parameters would do so only in a plan that is made for each execution.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg

from .. import usage
from ..events import RESET_HEAD, RESUMED_HEAD, USAGE_HEAD
from ..outcome import Outcome
from . import end_columns, stream_states
from .fence import Fence
from .partitions import Partition, day_number, ids_of_day
from .postgres import Connection, Pool
from .stream_states import State

# For statements of other modules, too: what follows names these columns and where they come from.
INSERT: Final = "INSERT INTO baton.batch (stream_id, first_seq, last_seq, epoch, terminal, events)"

_INSERT = f"""
{INSERT}
SELECT b.stream_id, b.first_seq, b.last_seq, b.epoch, b.terminal, b.events
FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[], $5::boolean[], $6::bytea[], $7::uuid[])
     AS b (stream_id, first_seq, last_seq, epoch, terminal, events, claim_token)
JOIN baton.stream AS s
  ON s.id = b.stream_id AND s.epoch = b.epoch AND s.claim_token IS NOT DISTINCT FROM b.claim_token
WHERE coalesce((SELECT baton.current_history()) = $8, true)
{{where_free}}RETURNING stream_id
"""  # noqa: S608
_WHERE_FREE = "ON CONFLICT DO NOTHING\n"
_CLOSING_TYPES: Final = ("uuid", *(column.type for column in end_columns.COLUMNS), "integer")

# The terminal batch and the end of the stream's row are one statement, so that a crash leaves both or neither. Only a
# requeue that commits between its insert and its update can leave the row open, since under READ COMMITTED the update
# then finds a newer epoch. The next claim of the stream finds the terminal batch, and closes the row.
_CLOSE = f"""ending AS MATERIALIZED (
    SELECT e.* FROM unnest({{parameters}}) AS e (id, {", ".join(end_columns.NAMES)}, epoch)
    WHERE EXISTS (SELECT FROM written AS w WHERE w.stream_id = e.id)
), closed AS (
    UPDATE baton.stream AS s SET {end_columns.assignments(lambda name, _position: f"e.{name}")}
    FROM ending AS e WHERE s.id = e.id AND s.epoch = e.epoch
)"""  # noqa: S608
_FORGET = f"""ended AS (
    SELECT id AS stream_id, status <> 'completed' AS early FROM ending
), {stream_states.FORGET.format(ended="ended")}"""  # noqa: S608
_SAVE = f"""state AS (
    SELECT f.* FROM unnest({{parameters}}) AS f ({stream_states.NAMES})
    WHERE EXISTS (SELECT FROM written AS w WHERE w.stream_id = f.stream_id)
), {stream_states.SAVE.format(source="state")}"""  # noqa: S608

# In the following statements `{day}` stands for the bounds of the streams' day: see `within_day`.

# A page begins with the batch that holds cursor + 1. It ends after $3 rows, or once it has $4 bytes.
_READ = """
SELECT first_seq, last_seq, terminal, events
FROM (
    SELECT first_seq, last_seq, terminal, events,
           sum(octet_length(events)) OVER (ORDER BY first_seq) - octet_length(events) AS bytes_before
    FROM baton.batch
    WHERE stream_id = $1 AND {day} AND last_seq > $2 AND first_seq >= coalesce(
        (SELECT first_seq FROM baton.batch WHERE stream_id = $1 AND {day} AND first_seq <= $2 + 1
         ORDER BY first_seq DESC LIMIT 1), 1)
    ORDER BY first_seq
    LIMIT $3
) AS page
WHERE bytes_before < $4
ORDER BY first_seq
"""

_READ_NEWEST = """
SELECT first_seq, last_seq, terminal, events
FROM (
    SELECT first_seq, last_seq, terminal, events,
           sum(octet_length(events)) OVER (ORDER BY first_seq DESC) - octet_length(events) AS bytes_after
    FROM baton.batch
    WHERE stream_id = $1 AND {day}
    ORDER BY first_seq DESC
    LIMIT $2
) AS page
WHERE bytes_after < $3
ORDER BY first_seq
"""

_LAST = """
SELECT first_seq, last_seq, epoch, terminal, events FROM baton.batch
WHERE stream_id = $1 AND {day} ORDER BY first_seq DESC LIMIT 1
"""

# All batches of the stream are read; only the ones with a usage event are returned.
_USAGE = """
SELECT epoch, events FROM baton.batch
WHERE stream_id = $1 AND {day} AND position($2::bytea IN events) > 0
ORDER BY first_seq
"""

# Whether a claim has written more than that it resumes the stream, and has not started it over.
_GREW = """
SELECT coalesce(bool_and(position('\\x0a'::bytea || $3::bytea IN '\\x0a'::bytea || events) = 0)
                AND bool_or(last_seq > first_seq OR position($4::bytea IN events) <> 1), false)
FROM baton.batch WHERE stream_id = $1 AND {day} AND epoch = $2
"""

_DELETE_EXPIRED = """
WITH page AS MATERIALIZED (
    SELECT stream_id, first_seq FROM baton.batch
    WHERE (stream_id, first_seq) > ($1::uuid, $2::integer) AND stream_id >= $3::uuid AND stream_id < $4::uuid
    ORDER BY stream_id, first_seq LIMIT $5
), expired AS (
    SELECT stream_id FROM (SELECT DISTINCT stream_id FROM page) AS found
    WHERE NOT EXISTS (SELECT FROM baton.stream AS s WHERE s.id = found.stream_id)
), deleted AS (
    DELETE FROM baton.batch AS b USING page AS p
    WHERE b.stream_id = p.stream_id AND b.first_seq = p.first_seq AND b.stream_id >= $3 AND b.stream_id < $4
      AND p.stream_id IN (SELECT stream_id FROM expired)
    RETURNING b.stream_id
)
SELECT last.stream_id, last.first_seq, (SELECT count(*) FROM deleted)
FROM (SELECT) AS always
LEFT JOIN (SELECT * FROM page ORDER BY stream_id DESC, first_seq DESC LIMIT 1) AS last ON true
"""
_HAS_ENDED = """
SELECT EXISTS (
    SELECT FROM baton.batch AS b WHERE b.stream_id >= $1 AND b.stream_id < $2
    AND NOT EXISTS (
        SELECT FROM baton.stream AS s
        WHERE s.id = b.stream_id AND s.status NOT IN ('completed', 'failed', 'cancelled')
    )
)
"""

_TAILS = """
SELECT s.id, coalesce(t.last_seq, 0) AS seq, s.status IN ('completed', 'failed', 'cancelled') AS ended
FROM unnest($1::uuid[]) AS k (id)
JOIN baton.stream AS s USING (id)
LEFT JOIN LATERAL (
    SELECT last_seq FROM baton.batch WHERE stream_id = s.id AND {day} ORDER BY first_seq DESC LIMIT 1
) AS t ON true
"""

_ERASE = "DELETE FROM baton.batch WHERE stream_id = $1 AND {day} AND NOT (terminal AND $2)"

PAGE_ROWS = 512
PAGE_BYTES = 65_536


class Append(NamedTuple):
    """One batch to write: the events `first_seq` to `last_seq` of a stream, as lines of JSON joined by newlines.

    With an `outcome`, the last event is the terminal one. A batch without events has only a `state` to save, and its
    `last_seq` is the tail. `forgets`: the stream may have a state or steps, which its end deletes.
    """

    stream_id: UUID
    epoch: int
    first_seq: int
    last_seq: int
    events: bytes
    outcome: Outcome | None = None
    claim_token: UUID | None = None
    state: State | None = None
    forgets: bool = False

    @property
    def fence(self) -> Fence:
        """What the stream's row must contain."""
        return Fence(self.stream_id, self.epoch, self.claim_token)

    @property
    def size_bytes(self) -> int:
        """The size of the events and the state."""
        return len(self.events) + (0 if self.state is None else len(self.state.content))


@dataclass(slots=True, eq=False)
class Batch:
    """One batch as it is read: `events` are lines of JSON, and the first one has the number `first_seq`.

    Pods hold many batches, so `events` is one string and not a list. `encodings` caches the batch in the wire formats
    that it was sent in, so that each is made once for all clients. It is None once the cache is dropped.
    """

    first_seq: int
    last_seq: int
    terminal: bool
    events: str
    encodings: dict[str, Any] | None = field(default_factory=dict)
    committed_at: float | None = None  # on the worker's clock; only batches from notifications have it

    @property
    def lines(self) -> list[str]:
        """The events, each as one line of JSON."""
        return self.events.split("\n")


class Standing(NamedTuple):
    """The highest number in a stream's log, and whether its row is closed."""

    seq: int
    ended: bool


NOTHING: Final = Standing(0, ended=False)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream's log: its highest number, and the epoch of the claim that wrote the last batch."""

    last_seq: int = 0
    epoch: int = 0
    outcome: Outcome | None = None


async def append(connection: Connection, appends: Sequence[Append], history: str | None = None) -> set[UUID]:
    """Write batches of different streams in one statement; return the streams that were written.

    A stream is left out if the epoch or the claim token of its row differs from the batch's, or if its place in the log
    is taken. All are left out if the database has another `history`. Leave out `history` only in a transaction that has
    read the tail. Batches without events, which only save a state, are a statement of their own.
    """
    # One order everywhere, so that two appends may wait for each other but never deadlock. Comparing UUIDs is slow.
    appends = sorted(appends, key=lambda item: item.stream_id.bytes)
    batches = [item for item in appends if item.events]
    written = await _append(connection, batches, history) if batches else set()
    if len(batches) < len(appends):
        alone = [(item.fence, item.state) for item in appends if item.state is not None and not item.events]
        written |= await stream_states.save_alone(connection, alone, history)
    return written


async def _append(connection: Connection, appends: Sequence[Append], history: str | None) -> set[UUID]:
    arguments: list[object] = [
        [item.stream_id for item in appends],
        [item.first_seq for item in appends],
        [item.last_seq for item in appends],
        [item.epoch for item in appends],
        [item.outcome is not None for item in appends],
        [item.events for item in appends],
        [item.claim_token for item in appends],
        history,
    ]
    endings = [(item, item.outcome) for item in appends if item.outcome is not None]
    if endings:
        arguments += _closing(endings)
    states = [(item.stream_id, item.state) for item in appends if item.state is not None]
    if states:
        arguments += stream_states.columns(states)
    closing, saving = bool(endings), bool(states)
    forgetting = closing and any(item.forgets for item, _ in endings)
    where_free = _statement(closing=closing, saving=saving, forgetting=forgetting, where_free=True)
    if connection.is_in_transaction():
        # An error would abort the transaction.
        return _ids(await connection.fetch(where_free, *arguments))
    try:
        statement = _statement(closing=closing, saving=saving, forgetting=forgetting, where_free=False)
        return _ids(await connection.fetch(statement, *arguments))
    except asyncpg.UniqueViolationError:
        return _ids(await connection.fetch(where_free, *arguments))


@functools.cache
def _statement(*, closing: bool, saving: bool, forgetting: bool, where_free: bool) -> str:
    """Return the statement that appends batches, and does with their streams what the arguments say."""
    insert = _INSERT.format(where_free=_WHERE_FREE if where_free else "")
    parts, first = [], 9
    if closing:
        parts.append(_CLOSE.format(parameters=_parameters(_CLOSING_TYPES, first)))
        first += len(_CLOSING_TYPES)
    if forgetting:
        parts.append(_FORGET)
    if saving:
        parts.append(_SAVE.format(parameters=_parameters(stream_states.TYPES, first)))
    if not parts:
        return insert
    return f"WITH written AS ({insert}), {', '.join(parts)}\nSELECT stream_id FROM written"


def _parameters(types: Sequence[str], first: int) -> str:
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, start=first))


async def read(executor: Connection | Pool, stream_id: UUID, cursor: int) -> list[Batch]:
    """Read a page of batches after the cursor. The first one may begin before it. At the tail the page is empty."""
    return _batches(await executor.fetch(within_day(_READ, stream_id), stream_id, cursor, PAGE_ROWS, PAGE_BYTES))


async def pages(executor: Connection | Pool, stream_id: UUID, cursor: int = 0) -> AsyncIterator[list[Batch]]:
    """Read all batches after the cursor, page by page, up to the tail."""
    while page := await read(executor, stream_id, cursor):
        yield page
        cursor = page[-1].last_seq


async def read_newest(executor: Connection | Pool, stream_id: UUID, max_bytes: int) -> list[Batch]:
    """Read the newest batches of a stream, oldest first: about `max_bytes` of them, and at least one."""
    statement = within_day(_READ_NEWEST, stream_id)
    return _batches(await executor.fetch(statement, stream_id, PAGE_ROWS, max_bytes))


async def read_tail(executor: Connection | Pool, stream_id: UUID) -> Tail:
    """Read the end of a stream's log."""
    row = await executor.fetchrow(within_day(_LAST, stream_id), stream_id)
    if row is None:
        return Tail()
    outcome = Outcome.decode(row["events"].rpartition(b"\n")[2]) if row["terminal"] else None
    return Tail(row["last_seq"], row["epoch"], outcome)


async def read_usage(executor: Connection | Pool, stream_id: UUID) -> dict[int, usage.Counts]:
    """Return what each claim of a stream used, by epoch, from the usage events in the log.

    This reads the whole log of the stream. It is for a stream that gets another worker, or that ends without one.
    """
    rows = await executor.fetch(within_day(_USAGE, stream_id), stream_id, USAGE_HEAD)
    return usage.of_lines((row["epoch"], row["events"]) for row in rows)


async def grew(executor: Connection | Pool, fence: Fence) -> bool:
    """Return whether the log is longer by what a claim has written, and has not started over.

    This reads the whole log of the stream. It is for a stream whose worker has died.
    """
    found: bool = await executor.fetchval(
        within_day(_GREW, fence.stream_id), fence.stream_id, fence.epoch, RESET_HEAD, RESUMED_HEAD
    )
    return found


async def tails(executor: Connection | Pool, stream_ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """Return the highest number of each stream that exists, 0 if nothing was written yet, and whether it has ended.

    There is one statement for each day of the streams, with a snapshot of its own, and none without streams.
    """
    found = {}
    for same_day in _by_day(stream_ids):
        for row in await executor.fetch(within_day(_TAILS, same_day[0]), same_day):
            found[row[0]] = Standing(row[1], row[2])
    return found


async def delete_expired(
    connection: Connection, partition: Partition, after: tuple[UUID, int], limit: int
) -> tuple[tuple[UUID, int] | None, int]:
    """Delete batches of streams without a row, among the next `limit` batches of a partition.

    No stream of the partition may be young enough to be created now. Return the last batch that was looked at, None at
    the partition's end, and how many were deleted.
    """
    row = await connection.fetchrow(_DELETE_EXPIRED, *after, partition.first, partition.end, limit)
    assert row is not None
    return (None if row[0] is None else (row[0], row[1])), row[2]


async def has_ended(connection: Connection, partition: Partition) -> bool:
    """Whether a partition has batches of streams that have ended."""
    found: bool = await connection.fetchval(_HAS_ENDED, partition.first, partition.end)
    return found


async def erase(connection: Connection, stream_id: UUID, *, keep_end: bool) -> None:
    """Delete a stream's batches; with `keep_end`, all except the terminal one."""
    await connection.execute(within_day(_ERASE, stream_id), stream_id, keep_end)


def within_day(statement: str, stream_id: UUID) -> str:
    """Return a statement in which the bounds of the stream's day replace `{day}` as constants.

    No partition begins or ends within a day, so the bounds select one partition.
    """
    return _within_day(statement, day_number(stream_id))


@functools.lru_cache(maxsize=1024)
def _within_day(statement: str, day: int) -> str:
    first, last = ids_of_day(day)
    return statement.replace("{day}", f"stream_id BETWEEN '{first}' AND '{last}'")


def _by_day(stream_ids: Iterable[UUID]) -> list[list[UUID]]:
    days: defaultdict[int, list[UUID]] = defaultdict(list)
    for stream_id in stream_ids:
        days[day_number(stream_id)].append(stream_id)
    return list(days.values())


def _ids(rows: Iterable[asyncpg.Record]) -> set[UUID]:
    return {row[0] for row in rows}


def _closing(endings: Iterable[tuple[Append, Outcome]]) -> list[list[object]]:
    rows = [(item.stream_id, *end_columns.values(outcome), item.epoch) for item, outcome in endings]
    return [list(column) for column in zip(*rows, strict=True)]


def _batches(rows: Iterable[asyncpg.Record]) -> list[Batch]:
    return [Batch(first, last, terminal, events.decode()) for first, last, terminal, events in rows]
