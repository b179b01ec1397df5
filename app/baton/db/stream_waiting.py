"""Streams that wait for an input: the beginning of a wait, and its end at the deadline.

A wait begins in one transaction, which locks the stream's row. So does an input (`inputs.add`). So either the wait
sees the input and does not begin, or the input sees the wait and ends it: no wake-up is lost. While a stream waits, it
has no worker. The claim that began the wait stays in the row until the next claim.

Once the wait has ended, the stream is queued again. Code before revision 0024 takes a waiting stream for one that has
ended. So no wait begins while such code runs (see `code_revisions`).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple
from uuid import UUID

from ..events import encode_object, join_lines
from ..outcome import Outcome
from . import event_log, stream_ending, stream_states
from .event_log import Append
from .fence import Fence
from .postgres import Connection
from .stream_ending import End
from .stream_states import State
from .streams import CLAIMED

EXPIRED: Final = Outcome.failed("wait_timeout", "This answer waited for an input, and none came in time. Ask again.")

# A moment that is earlier or later is cut to these: Postgres and Python can convert them to any time zone.
_EARLIEST: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_LATEST: Final = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)

# $4 is the moment until which to wait, $5 the seconds, and $6 the most seconds. Only one of the first two is given, or
# none: then the stream ends after $6, as it does if it would wait for longer.
_LOCK = f"""
SELECT inputs, cancel_requested_at IS NOT NULL, coalesce(baton.current_history() = $7, true),
       least(coalesce($4, clock_timestamp() + make_interval(secs => $5)), last), coalesce($4 > last, $5 > $6, true)
FROM baton.stream, LATERAL (SELECT clock_timestamp() + make_interval(secs => $6) AS last) AS deadline
WHERE id = $1 AND {CLAIMED} FOR UPDATE OF stream
"""  # noqa: S608
_WAIT = """
UPDATE baton.stream
SET status = 'waiting', worker_id = NULL, may_continue = true, waiting_since = clock_timestamp(), wait_until = $2,
    held_until = $2, wait_ends = $3
WHERE id = $1
"""
_QUEUE = """
UPDATE baton.stream
SET status = 'queued', worker_id = NULL, may_continue = true, interruption = $2, attempts = 0,
    queued_at = clock_timestamp(), queue_position = NULL, held_until = clock_timestamp()
WHERE id = $1
"""
_DUE = """
SELECT id, epoch, wait_ends, cancel_requested_at IS NOT NULL, generator,
       coalesce(history <> baton.current_history(), false)
FROM baton.stream
WHERE status = 'waiting' AND held_until <= clock_timestamp() ORDER BY held_until LIMIT 100
"""
_WAKE = f"{_QUEUE} AND status = 'waiting' AND epoch = $3 RETURNING id"


class Began(Enum):
    """What became of a wait."""

    WAITING = auto()
    WOKEN = auto()  # an input was there already, and the stream is queued again
    CANCELLED = auto()  # the stream is to end instead
    REWOUND = auto()  # the database has another history, so the log must be compared first
    LEFT = auto()  # the claim no longer has the stream: this wait began before, or another worker has it


class Due(NamedTuple):
    """A waiting stream whose deadline is over."""

    stream_id: UUID
    epoch: int
    ends: bool
    cancelled: bool
    generator: str
    rewound: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """What a generator waits for, as any JSON, and until when: a moment, or so many seconds from now; None: at most.

    `state`: what the next run gets, as JSON, and `inputs`: how many it covers. It is saved when the wait begins, in the
    same transaction: a run that follows a worker lost before that must ask again, and not find that it has waited.
    """

    reason: Any
    until: datetime.datetime | float | None = None
    state: bytes | None = None
    inputs: int = 0


async def begin(
    connection: Connection,
    fence: Fence,
    wait: Wait,
    *,
    seen: int,
    most_seconds: float,
    history: str | None,
    state: State | None = None,
) -> tuple[Began, Append | None]:
    """Begin a wait after the tail of the log; return what became of it, and the batch that tells viewers.

    `seen` is how many inputs the generator knows: with more, it does not wait. `state` is saved in either case. It is
    safe to repeat this after it was committed and its reply was lost.
    """
    moment, seconds = _bounds(wait.until, most_seconds)
    async with connection.transaction():
        row = await connection.fetchrow(_LOCK, *fence, moment, seconds, most_seconds, history)
        if row is None:
            return Began.LEFT, None
        inputs, cancelled, same_history, until, ends = row
        if cancelled:
            return Began.CANCELLED, None
        if not same_history:
            return Began.REWOUND, None
        if state is not None:
            await stream_states.save_alone(connection, [(fence, state)], history)
        if inputs > seen:
            await connection.execute(_QUEUE, fence.stream_id, "input")
            return Began.WOKEN, None
        batch = await _append(connection, fence, event_of(wait.reason, until))
        if batch is None:
            return Began.LEFT, None
        await connection.execute(_WAIT, fence.stream_id, until, ends)
        return Began.WAITING, batch


def event_of(reason: Any, until: datetime.datetime) -> bytes:
    """Return the event `waiting` as one line of JSON."""
    return encode_object({"type": "waiting", "for": reason, "until": _iso(until)})


async def _append(connection: Connection, fence: Fence, event: bytes) -> Append | None:
    """Append the event `waiting` at the tail; return the batch, or None if the stream has its terminal event."""
    events = join_lines([event])
    while True:
        tail = await event_log.read_tail(connection, fence.stream_id)
        if tail.outcome is not None:
            return None
        seq = tail.last_seq + 1
        batch = Append(fence.stream_id, fence.epoch, seq, seq, events, claim_token=fence.claim_token)
        if await event_log.append(connection, [batch]):
            return batch


async def due(connection: Connection) -> list[Due]:
    """Return waiting streams whose deadlines are over: 100 at most."""
    return [Due(*row) for row in await connection.fetch(_DUE)]


def end_of(item: Due) -> End | None:
    """Return the end of a stream whose wait is over; None if it continues: then `wake` it."""
    if not item.ends and not item.cancelled and not item.rewound:
        return None
    outcome = EXPIRED
    if item.cancelled:
        outcome = Outcome.cancelled()
    if item.rewound:
        outcome = stream_ending.REWOUND
    return End.of_waiting(item.stream_id, item.epoch, outcome)


async def wake(connection: Connection, item: Due) -> bool:
    """Queue a stream whose wait is over; return whether this did."""
    return await connection.fetchval(_WAKE, item.stream_id, "deadline", item.epoch) is not None


def _bounds(
    until: datetime.datetime | float | None, most_seconds: float
) -> tuple[datetime.datetime | None, float | None]:
    """Return the moment or the seconds until which to wait, as numbers that Postgres can add."""
    if isinstance(until, datetime.datetime):
        return min(max(until, _EARLIEST), _LATEST), None
    return None, None if until is None else float(min(until, most_seconds + 1))


def _iso(moment: datetime.datetime) -> str:
    """Return a moment as events show it."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
