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

# $4 is the moment until which to wait, $5 the seconds, and $6 the most seconds. Only one of the first two is given, or
# none: then the stream ends after $6.
_LOCK = f"""
SELECT inputs, cancel_requested_at IS NOT NULL, coalesce(baton.current_history() = $7, true),
       least(coalesce($4, clock_timestamp() + make_interval(secs => $5)), last), coalesce($4 > last, $5 IS NULL)
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

    `state` is what it saves with that, as JSON, and `received` how many inputs this covers.
    """

    reason: Any
    until: datetime.datetime | float | None = None
    state: bytes | None = None
    received: int = 0


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

    `seen` is how many inputs the generator knows: with more, it does not wait. `state` is saved in this transaction.
    Saved before, a state that says that the generator has asked would make the run after a lost worker believe that
    nobody has answered. It is safe to repeat this after it was committed and its reply was lost.
    """
    moment = wait.until if isinstance(wait.until, datetime.datetime) else None
    seconds = None if moment is not None or wait.until is None else float(wait.until)  # type: ignore[arg-type]
    async with connection.transaction():
        row = await connection.fetchrow(_LOCK, *fence, moment, seconds, most_seconds, history)
        if row is None:
            return Began.LEFT, None
        inputs, cancelled, same_history, until, ends = row
        if cancelled:
            return Began.CANCELLED, None
        if not same_history:
            return Began.REWOUND, None
        if inputs > seen:
            await _save(connection, fence, state, history)
            await connection.execute(_QUEUE, fence.stream_id, "input")
            return Began.WOKEN, None
        batch = await _append(connection, fence, {"for": wait.reason, "until": _iso(until)})
        if batch is None:
            return Began.LEFT, None
        await _save(connection, fence, state, history)
        await connection.execute(_WAIT, fence.stream_id, until, ends)
        return Began.WAITING, batch


async def _save(connection: Connection, fence: Fence, state: State | None, history: str | None) -> None:
    if state is not None:
        await stream_states.save_alone(connection, [(fence, state)], history)


async def _append(connection: Connection, fence: Fence, content: dict[str, Any]) -> Append | None:
    """Append the event `waiting` at the tail; return the batch, or None if the stream has its terminal event."""
    events = join_lines([encode_object({"type": "waiting", **content})])
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


def _iso(moment: datetime.datetime) -> str:
    """Return a moment as events show it."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
