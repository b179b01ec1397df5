"""Appends of producers: what an append may do, and the statement that writes a group of them.

A producer numbers its appends within an epoch, so that it can repeat one whose answer it lost, and so that a second
process that takes its place fences the first (the protocol's `Producer-Id`, `Producer-Epoch` and `Producer-Seq`). What
an append means follows from the state of its stream alone: `State.accept`.

A pod decides by the state that it remembers, and writes with it: the statement changes a row of `external_stream` only
if its tail is still the one of that state and the stream is not closed. Every accepted append moves the tail or closes
the stream, so an equal tail means an equal state. Where the row has another tail, nothing of that stream is written,
and the pod decides again after reading the state. So pods never wait for each other, however the requests of one
producer are spread over them.

The statement also compares the history of the database (see `history`): in another one, what a producer was told may be
lost. A producer whose next number fits proves that nothing of its own is (`adopt`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from ..events import MAX_SEQ
from ..outcome import Outcome, Timings
from . import end_columns, event_log
from .postgres import Connection

# The most producers of one stream: each has a row.
MOST_PRODUCERS: Final = 1000
# All appends without a producer count as those of one, without a number. So a stream with one producer has no others.
UNNAMED: Final = ""

_READ = """
SELECT e.stream_id, e.kind = 'events', e.tail, e.size_bytes, e.stream_seq, e.producers, e.closed,
       s.history <> (SELECT baton.current_history()), coalesce(s.error_code, s.finish_reason)
FROM baton.external_stream AS e JOIN baton.stream AS s ON s.id = e.stream_id
WHERE e.stream_id = ANY ($1::uuid[])
"""
_READ_PRODUCERS = """
SELECT p.stream_id, p.producer_id, p.epoch, p.last_seq
FROM unnest($1::uuid[], $2::text[]) AS k (stream_id, producer_id)
JOIN baton.producer AS p USING (stream_id, producer_id)
"""

# The array makes Postgres find the rows by their key, and not by the index of open streams, in a generic plan too.
#
# All rows are locked in one order before the first is changed: the count is evaluated once, and first. Without that,
# two groups that have two streams in common could deadlock.
_WRITE = f"""
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[], $5::boolean[], $6::bytea[],
                         $7::integer[], $8::integer[], $9::text[], $10::integer[])
           AS a (stream_id, tail, last_seq, new_tail, closes, events, bytes, tokens, stream_seq, producers)
), locked AS MATERIALIZED (
    SELECT e.stream_id FROM baton.external_stream AS e WHERE e.stream_id = ANY ($1) ORDER BY e.stream_id
    FOR NO KEY UPDATE
), moved AS (
    UPDATE baton.external_stream AS e
    SET tail = a.new_tail, size_bytes = e.size_bytes + a.bytes, tokens = e.tokens + a.tokens,
        first_token_at = CASE WHEN a.tokens > 0 THEN coalesce(e.first_token_at, clock_timestamp())
                              ELSE e.first_token_at END,
        stream_seq = a.stream_seq, producers = a.producers,
        closed = a.closes, heard_at = clock_timestamp(), used_at = clock_timestamp()
    FROM asked AS a
    JOIN baton.stream AS s ON s.id = a.stream_id AND s.status = 'open'
     AND s.history = (SELECT baton.current_history())
    WHERE (SELECT count(*) FROM locked) > 0
      AND e.stream_id = ANY ($1) AND e.stream_id = a.stream_id AND e.tail = a.tail AND NOT e.closed
    RETURNING e.stream_id
), written AS (
    {event_log.INSERT}
    SELECT a.stream_id, a.tail + 1, a.last_seq, 0, a.closes, a.events
    FROM asked AS a JOIN moved USING (stream_id)
), numbered AS (
    INSERT INTO baton.producer AS p (stream_id, producer_id, epoch, last_seq)
    SELECT n.* FROM unnest($11::uuid[], $12::text[], $13::bigint[], $14::bigint[])
                    AS n (stream_id, producer_id, epoch, last_seq) JOIN moved USING (stream_id)
    ON CONFLICT (stream_id, producer_id) DO UPDATE SET epoch = excluded.epoch, last_seq = excluded.last_seq
){{closing}}
SELECT stream_id FROM moved
"""  # noqa: S608
_CLOSING_TYPES: Final = ("uuid", *(column.type for column in end_columns.COLUMNS))
_PARAMETERS: Final = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_CLOSING_TYPES, start=15))
_CLOSING = f""", closed AS (
    UPDATE baton.stream AS s SET {end_columns.assignments(lambda name, _position: f"c.{name}")}
    FROM unnest({_PARAMETERS}) AS c (id, {", ".join(end_columns.NAMES)})
    WHERE s.id = c.id AND c.id IN (SELECT stream_id FROM moved)
), unread AS (
    DELETE FROM baton.input WHERE stream_id = ANY ($15) AND stream_id IN (SELECT stream_id FROM moved)
)"""  # noqa: S608

_STANDINGS = """
SELECT s.id, extract(epoch FROM clock_timestamp() - s.created_at)::double precision,
       extract(epoch FROM e.first_token_at - s.created_at)::double precision, e.tokens, s.tenant, s.traceparent
FROM baton.stream AS s JOIN baton.external_stream AS e ON e.stream_id = s.id
WHERE s.id = ANY ($1::uuid[])
"""

# Only what this proves to be complete, and only once: the tail is the one after which the producer goes on.
_ADOPT = """
UPDATE baton.stream AS s SET history = baton.current_history()
FROM baton.external_stream AS e
WHERE s.id = $1 AND s.status = 'open' AND e.stream_id = s.id AND e.tail = $2 AND NOT e.closed
"""


class ProducerClaim(NamedTuple):
    """Who appends, and what number the append has: from 0 on within an epoch."""

    producer_id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """One append: messages, each one line of JSON, or the end of the stream, or both.

    With an `outcome` the stream ends after these lines; the terminal event is not among them. Its usage and timings are
    filled in.
    """

    stream_id: UUID
    lines: Sequence[bytes]
    tokens: int = 0
    producer: ProducerClaim | None = None
    stream_seq: str | None = None
    outcome: Outcome | None = None

    @property
    def producer_id(self) -> str:
        """The producer, or `UNNAMED`."""
        return self.producer.producer_id if self.producer else UNNAMED

    @property
    def size_bytes(self) -> int:
        """The size of the messages."""
        return sum(len(line) for line in self.lines)


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: the number of the stream's last message after it, and the producer's last append.

    `duplicate`: nothing, since it had been written before, or was to close a closed stream.
    """

    tail: int
    closed: bool
    duplicate: bool = False
    producer: ProducerClaim | None = None

    @property
    def is_final(self) -> bool:
        """Whether a newer state of the stream cannot change it. One may have a higher number of the producer."""
        return self.closed or not self.duplicate


class Standing(NamedTuple):
    """What is known of a stream that ends. `trace` is its `traceparent`."""

    timings: Timings
    tenant: str
    trace: str | None


RefusedBecause: TypeAlias = Literal[
    "not_found", "closed", "fenced", "gap", "epoch_must_begin_at_0", "stream_seq", "too_large", "too_many_producers"
]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an append was not written. `number` is the current epoch of a fenced producer, or the number that is next."""

    because: RefusedBecause
    tail: int = 0
    number: int = 0
    reason: str = ""  # why the stream was closed: a finish reason or an error code

    @property
    def is_final(self) -> bool:
        """Whether a newer state of the stream cannot change it."""
        return self.because in {"closed", "stream_seq"}


@dataclass(slots=True)
class State:
    """What a pod knows of a stream's row, and of the producers whose appends it has seen."""

    carries_events: bool
    tail: int
    size_bytes: int = 0
    stream_seq: str | None = None
    producers: int = 0
    closed: bool = False
    rewound: bool = False
    reason: str = ""
    known: dict[str, tuple[int, int] | None] = field(default_factory=dict)  # epoch and last number by producer

    def copy(self) -> State:
        """Return a state that can change without this one."""
        return replace(self, known=dict(self.known))

    def accept(self, request: AppendRequest, *, max_bytes: int) -> Appended | Refused:
        """Decide what an append does; if it is to be written, change this state as the database will be.

        The order is the protocol's: a stale producer is fenced even if the stream is closed, and an append that was
        written before is a success even then.
        """
        refused = self._number_refused(request.producer) if request.producer else None
        if isinstance(refused, Appended) or (refused is not None and refused.because == "fenced"):
            return refused
        if self.closed:
            is_done = request.producer is None and not request.lines and request.outcome is not None
            return (
                Appended(self.tail, closed=True, duplicate=True)
                if is_done
                else Refused("closed", self.tail, reason=self.reason)
            )
        return refused or self._content_refused(request, max_bytes) or self._accepted(request)

    def _number_refused(self, claim: ProducerClaim) -> Appended | Refused | None:
        known = self.known.get(claim.producer_id)
        epoch, last = known or (claim.epoch, -1)
        if claim.epoch < epoch:
            return Refused("fenced", self.tail, number=epoch)
        if claim.epoch > epoch:
            return None if claim.seq == 0 else Refused("epoch_must_begin_at_0", self.tail)
        if claim.seq <= last:
            return Appended(self.tail, self.closed, True, ProducerClaim(claim.producer_id, epoch, last))
        if claim.seq > last + 1:
            return Refused("gap", self.tail, number=last + 1)
        is_new = known is None and self.producers >= MOST_PRODUCERS
        return Refused("too_many_producers", self.tail) if is_new else None

    def _content_refused(self, request: AppendRequest, max_bytes: int) -> Refused | None:
        # As bytes: the header's text has one character for each.
        if request.stream_seq is not None and request.stream_seq <= (self.stream_seq or ""):
            return Refused("stream_seq", self.tail)
        too_many = self.tail + len(request.lines) >= MAX_SEQ
        if too_many or (request.lines and self.size_bytes + request.size_bytes > max_bytes):
            return Refused("too_large", self.tail)
        return None

    def _accepted(self, request: AppendRequest) -> Appended:
        ends = request.outcome is not None
        self.tail += len(request.lines) + (ends and self.carries_events)
        self.size_bytes += request.size_bytes
        self.stream_seq = request.stream_seq or self.stream_seq
        name = request.producer_id
        self.producers += self.known.get(name) is None
        claim = request.producer
        self.known[name] = (claim.epoch, claim.seq) if claim else (0, 0)
        if request.outcome is not None:
            self.closed, self.reason = True, request.outcome.code
        return Appended(self.tail, self.closed, False, claim)

    def is_continued_by(self, claim: ProducerClaim | None) -> bool:
        """Whether this append is the next one of the stream's only producer, which so lost nothing that was accepted.

        The first append of a new epoch shows nothing: its process does not know what the one before appended.
        """
        return (
            claim is not None
            and self.producers == 1
            and self.known.get(claim.producer_id) == (claim.epoch, claim.seq - 1)
        )


@dataclass(frozen=True, slots=True)
class Write:
    """What one statement does with one stream: `events` are `count` lines, the last one terminal with an `outcome`.

    `size_bytes` and `tokens` are those of the messages, and `producers` are those whose numbers changed.
    """

    stream_id: UUID
    before_tail: int
    after: State
    count: int
    events: bytes
    size_bytes: int
    tokens: int
    producers: Iterable[str]
    outcome: Outcome | None

    @property
    def last_seq(self) -> int:
        """The number of the last line."""
        return self.before_tail + self.count


async def read(connection: Connection, wanted: Sequence[tuple[UUID, str]]) -> dict[UUID, State]:
    """Read the states of streams with the numbers of these producers. Ids without a stream are left out."""
    ids = list(dict.fromkeys(stream_id for stream_id, _ in wanted))
    found = {
        row[0]: State(row[1], row[2], row[3], row[4], row[5], row[6], bool(row[7]), row[8] or "")
        for row in await connection.fetch(_READ, ids)
    }
    for stream_id, name in wanted:
        if stream_id in found:
            found[stream_id].known[name] = None
    # A number that changes between these two statements changes the tail, too, and the write is refused.
    rows = await connection.fetch(_READ_PRODUCERS, [item[0] for item in wanted], [item[1] for item in wanted])
    for stream_id, name, epoch, last_seq in rows:
        if stream_id in found:
            found[stream_id].known[name] = (epoch, last_seq)
    return found


async def write(connection: Connection, writes: Sequence[Write]) -> set[UUID]:
    """Write appends to different streams in one statement; return the streams that had the expected tail."""
    numbers = [
        (item, name, *number) for item in writes for name in item.producers if (number := item.after.known[name])
    ]
    arguments: list[object] = [
        [item.stream_id for item in writes],
        [item.before_tail for item in writes],
        [item.last_seq for item in writes],
        [item.after.tail for item in writes],
        [item.outcome is not None for item in writes],
        [item.events for item in writes],
        [item.size_bytes for item in writes],
        [item.tokens for item in writes],
        [item.after.stream_seq for item in writes],
        [item.after.producers for item in writes],
        [item.stream_id for item, *_ in numbers],
        [name for _, name, _, _ in numbers],
        [epoch for _, _, epoch, _ in numbers],
        [seq for _, _, _, seq in numbers],
    ]
    endings = [(item.stream_id, *end_columns.values(item.outcome)) for item in writes if item.outcome is not None]
    if endings:
        arguments += [list(column) for column in zip(*endings, strict=True)]
    return {row[0] for row in await connection.fetch(_statement(closing=bool(endings)), *arguments)}


async def adopt(connection: Connection, stream_id: UUID, tail: int) -> None:
    """Move a stream with this tail to the current history of the database: its producer knows of nothing after it."""
    await connection.execute(_ADOPT, stream_id, tail)


async def standings(connection: Connection, stream_ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """Return what is known so far of streams that end."""
    rows = await connection.fetch(_STANDINGS, stream_ids)
    return {row[0]: Standing(Timings(row[1], row[2], row[3]), row[4], row[5]) for row in rows}


@functools.cache
def _statement(*, closing: bool) -> str:
    return _WRITE.format(closing=_CLOSING if closing else "")
