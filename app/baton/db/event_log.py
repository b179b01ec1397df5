"""The log: batches of numbered events, appended under a fence and read after a cursor.

A stream's events are numbered 1, 2, 3 … without gaps, and one row holds those of one flush. Whoever appends aims at the
tail + 1 as it knows it. Two things keep a writer that has lost its stream from writing:

- the append joins `stream` on `(id, epoch, claim_token)`, so that after a claim a stale writer starts nothing new. The
  epoch alone would do, but for a database that went back in time: then a later claim gets the same epoch again;
- the key `(stream_id, first_seq)` settles what was in flight at that moment, since both writers aim at the same place.

A writer also names the history of the database in which its tail is true (see `history`). In another one nothing is
written, so that no append leaves a gap behind what a failover lost.

So an append may leave some of its batches unwritten without an error: it returns which ones it wrote. A place is hardly
ever taken, and `ON CONFLICT` costs every row a second WAL record. So an append first goes without, and is repeated
with it where Postgres says that a place is taken.

The log has a partition for each day or more, and Postgres locks each one that a statement might look into. So every
statement that reads or erases names the day of its streams, in its text: Postgres then plans for one partition and
locks no other, in a generic plan too. As parameters the bounds would do so only in a plan that is made for each
execution.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg

from .. import usage
from ..events import USAGE_HEAD
from ..outcome import Outcome
from .partitions import day_number, ids_of_day
from .postgres import CONNECTION_ERRORS, Connection, Pool

logger = logging.getLogger(__name__)

_INSERT = """
INSERT INTO baton.batch (stream_id, first_seq, last_seq, epoch, terminal, events)
SELECT b.stream_id, b.first_seq, b.last_seq, b.epoch, b.terminal, b.events
FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[], $5::boolean[], $6::bytea[], $7::uuid[])
     AS b (stream_id, first_seq, last_seq, epoch, terminal, events, claim_token)
JOIN baton.stream AS s
  ON s.id = b.stream_id AND s.epoch = b.epoch AND s.claim_token IS NOT DISTINCT FROM b.claim_token
WHERE coalesce((SELECT baton.current_history()) = $8, true)
"""
_WHERE_FREE = "ON CONFLICT DO NOTHING\n"
_RETURNING = "RETURNING stream_id"

# The terminal batch and the stream's final state are one statement, so that a crash leaves both or neither. Only a
# requeue that commits between its insert and its update can leave the row open, since under READ COMMITTED the update
# then finds a newer epoch; whoever claims the stream next finds the terminal batch, and closes the row.
_AND_CLOSE = """
WITH written AS ({insert}), closed AS (
    UPDATE baton.stream AS s
    SET status = e.status, finish_reason = e.finish_reason, error_code = e.error_code,
        error_message = e.error_message, usage = e.usage, tokens = e.tokens,
        time_to_first_token_seconds = e.first_token, duration_seconds = e.duration,
        usage_by_attempt = e.usage_by_attempt, finished_at = clock_timestamp(), worker_id = NULL
    FROM unnest($9::uuid[], $10::text[], $11::text[], $12::text[], $13::text[], $14::jsonb[], $15::integer[],
                $16::double precision[], $17::double precision[], $18::jsonb[], $19::integer[])
         AS e (id, status, finish_reason, error_code, error_message, usage, tokens, first_token, duration,
               usage_by_attempt, epoch)
    WHERE s.id = e.id AND s.epoch = e.epoch AND EXISTS (SELECT FROM written AS w WHERE w.stream_id = e.id)
)
SELECT stream_id FROM written
"""

_APPEND = _INSERT + _RETURNING
_APPEND_WHERE_FREE = _INSERT + _WHERE_FREE + _RETURNING
_APPEND_AND_CLOSE = _AND_CLOSE.format(insert=_APPEND)
_APPEND_WHERE_FREE_AND_CLOSE = _AND_CLOSE.format(insert=_APPEND_WHERE_FREE)

# In those that follow, `{day}` stands for the bounds of the streams' day: see `within_day`.

# A page begins with the batch that holds cursor + 1, and ends after $3 rows or once $4 bytes are in it.
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

# Only the batches with a usage event are sent; all of the stream's are read.
_USAGE = """
SELECT epoch, events FROM baton.batch
WHERE stream_id = $1 AND {day} AND position($2::bytea IN events) > 0
ORDER BY first_seq
"""

_TAILS = """
SELECT s.id, coalesce(t.last_seq, 0) AS seq, s.status NOT IN ('queued', 'running') AS ended
FROM unnest($1::uuid[]) AS k (id)
JOIN baton.stream AS s USING (id)
LEFT JOIN LATERAL (
    SELECT last_seq FROM baton.batch WHERE stream_id = s.id AND {day} ORDER BY first_seq DESC LIMIT 1
) AS t ON true
"""

_ERASE = "DELETE FROM baton.batch WHERE stream_id = $1 AND {day} AND NOT (terminal AND $2)"

_NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"

PAGE_ROWS = 512
PAGE_BYTES = 65_536


class Fence(NamedTuple):
    """What the row of a stream must still say for its writer to write: which claim has it.

    `claim_token` is random, and None for claims of the release before.
    """

    stream_id: UUID
    epoch: int
    claim_token: UUID | None = None


class Append(NamedTuple):
    """One batch to be written: events `first_seq` to `last_seq` of a stream, as lines of JSON joined by newlines.

    With an `outcome` its last event is the terminal one.
    """

    stream_id: UUID
    epoch: int
    first_seq: int
    last_seq: int
    events: bytes
    outcome: Outcome | None = None
    claim_token: UUID | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """One batch as it is read: `events` are lines of JSON, the first with the number `first_seq`.

    Pods hold many of them, so it is one string and not a list. `encodings` keeps the batch in the wire formats that it
    was sent in, so that each is made once for all clients; None: not any more.
    """

    first_seq: int
    last_seq: int
    terminal: bool
    events: str
    encodings: dict[str, Any] | None = field(default_factory=dict)
    committed_at: float | None = None  # on the worker's clock, of one that came as a notification

    @property
    def lines(self) -> list[str]:
        """The events, one by one."""
        return self.events.split("\n")


class Standing(NamedTuple):
    """How far a stream's log goes, and whether its row is closed."""

    seq: int
    ended: bool


NOTHING: Final = Standing(0, ended=False)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream's log: its highest number, and who wrote the batch there."""

    last_seq: int = 0
    epoch: int = 0
    outcome: Outcome | None = None


async def append(connection: Connection, appends: Sequence[Append], history: str | None = None) -> set[UUID]:
    """Write batches of different streams in one statement; return the streams that were written.

    A stream is left out when its epoch or claim token is no longer the batch's, or when its place in the log is taken;
    all are when the database is of another `history`. Without one that is not looked at: within a transaction which has
    read the tail.
    """
    # In one order everywhere, so that two appends wait for each other and never in a circle. Ids compare slowly.
    appends = sorted(appends, key=lambda item: item.stream_id.bytes)
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
    statement, where_free = _APPEND, _APPEND_WHERE_FREE
    endings = [(item, item.outcome) for item in appends if item.outcome is not None]
    if endings:
        statement, where_free = _APPEND_AND_CLOSE, _APPEND_WHERE_FREE_AND_CLOSE
        arguments += _closing(endings)
    if connection.is_in_transaction():
        # An error would be the end of the transaction.
        return _ids(await connection.fetch(where_free, *arguments))
    try:
        return _ids(await connection.fetch(statement, *arguments))
    except asyncpg.UniqueViolationError:
        return _ids(await connection.fetch(where_free, *arguments))


async def read(executor: Connection | Pool, stream_id: UUID, cursor: int) -> list[Batch]:
    """Read a page of what follows the cursor; its first batch may begin before it. Empty at the tail."""
    return _batches(await executor.fetch(within_day(_READ, stream_id), stream_id, cursor, PAGE_ROWS, PAGE_BYTES))


async def read_newest(executor: Connection | Pool, stream_id: UUID, max_bytes: int) -> list[Batch]:
    """Read the newest batches of a stream, oldest first: those that make up `max_bytes`, and at least one."""
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
    """Return what each claim of a stream used, by its epoch and the usage events in the log.

    It reads the whole log of the stream: this is for a stream that changes hands, or that ends without its worker.
    """
    rows = await executor.fetch(within_day(_USAGE, stream_id), stream_id, USAGE_HEAD)
    return usage.of_lines((row["epoch"], row["events"]) for row in rows)


async def tails(executor: Connection | Pool, stream_ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """Return the highest number of each stream that exists, 0 where nothing was written yet, and if it has ended.

    Streams of one day are asked for in one statement, and each day's statement has a snapshot of its own. Without
    streams nothing is asked.
    """
    found = {}
    for same_day in _by_day(stream_ids):
        for row in await executor.fetch(within_day(_TAILS, same_day[0]), same_day):
            found[row[0]] = Standing(row[1], row[2])
    return found


async def erase(connection: Connection, stream_id: UUID, *, keep_end: bool) -> None:
    """Delete a stream's batches; with `keep_end`, all but the terminal one."""
    await connection.execute(within_day(_ERASE, stream_id), stream_id, keep_end)


def within_day(statement: str, stream_id: UUID) -> str:
    """Return a statement with the bounds of the stream's day as constants in place of `{day}`.

    No partition's edge lies within a day, so the bounds leave one partition.
    """
    return _within_day(statement, day_number(stream_id))


async def notify(executor: Connection | Pool, channel: str, payloads: Sequence[str]) -> None:
    """Send notifications in one transaction, which must write nothing else.

    A commit that carries a NOTIFY holds a lock of the whole cluster while its WAL is flushed; with no WAL it does not
    wait.
    """
    await executor.execute(_NOTIFY, channel, payloads)


async def queue_usage(executor: Connection | Pool) -> float:
    """Return how full Postgres' queue of notifications is, from 0 to 1."""
    ratio: float = await executor.fetchval("SELECT pg_notification_queue_usage()")
    return ratio


async def free_queue(executor: Connection | Pool) -> None:
    """Have Postgres drop the notifications that all have read.

    It does so by itself only when one is sent. So a queue that was full would stay so for ever, since none can be sent.
    """
    await queue_usage(executor)


async def hint(executor: Connection | Pool, channel: str, payloads: Sequence[str]) -> None:
    """Send notifications that may get lost, after what they tell of was committed: whoever misses them polls."""
    try:
        await notify(executor, channel, payloads)
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        logger.warning("A notification was not sent, and will be missed until the next poll: %r", error)


def partition_is_missing(error: asyncpg.PostgresError) -> bool:
    """Whether the log has no partition for the row: nobody's data is at fault, and `baton maintain` mends it."""
    return isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name


@contextlib.contextmanager
def putting_off(stream_id: UUID) -> Iterator[None]:
    """Leave a stream that has no partition to a later try, so that it keeps nobody from ending others."""
    try:
        yield
    except asyncpg.CheckViolationError as error:
        if not partition_is_missing(error):
            raise
        logger.error(
            "Stream %s cannot be ended: %s. Run `baton maintain`, which creates the partitions that are missing.",
            stream_id,
            error,
            extra={"stream_id": str(stream_id)},
        )


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
    rows = [(item.stream_id, *outcome.columns(), item.epoch) for item, outcome in endings]
    return [list(column) for column in zip(*rows, strict=True)]


def _batches(rows: Iterable[asyncpg.Record]) -> list[Batch]:
    return [Batch(first, last, terminal, events.decode()) for first, last, terminal, events in rows]
