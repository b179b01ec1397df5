"""Ending streams from outside of their writer, closing rows, and erasing.

Normally a stream's writer ends it: the append of the terminal event also closes the row (`event_log.append`). This
module ends the streams that no writer will end: queued ones, ones whose worker is lost, and ones that are erased. Each
end first takes the stream away from its claim, by raising the epoch, and then writes the terminal event at the tail, in
one transaction.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import Any, Final
from uuid import UUID

import asyncpg

from ..errors import ConfigurationError
from ..events import MAX_SEQ
from ..observability import log_context, stream_end
from ..outcome import Outcome, Timings
from ..usage import Bill
from . import end_columns, event_log, inputs, sqlstates, steps, stream_states, streams
from .fence import Fence
from .postgres import Connection, Pool

logger = logging.getLogger(__name__)

UNWATCHED: Final = Outcome.cancelled(finish_reason="unwatched")
REWOUND: Final = Outcome.failed("log_rewound", "The end of this answer was lost. Ask again.")
QUEUE_TIMEOUT: Final = Outcome.failed("queue_timeout", "This answer could not be begun in time. Try again later.")


class _If(Enum):
    """The condition that a stream's row must meet, once it is locked, before the stream is taken away."""

    LIVE = "status NOT IN ('completed', 'failed', 'cancelled')"
    QUEUED = "status = 'queued'"
    OPEN = "status = 'open'"
    WAITING = "status = 'waiting'"
    WAITING_AT_EPOCH = "status = 'waiting' AND epoch = $2"
    QUEUED_AT_EPOCH = "status = 'queued' AND epoch = $2"
    CLAIMED = streams.CLAIMED


_TAKE = {
    condition: f"""
UPDATE baton.stream SET epoch = epoch + 1, worker_id = NULL WHERE id = $1 AND {condition.value}
RETURNING epoch, claim_token, tenant, generator, attempts AS attempt, traceparent AS trace,
          extract(epoch FROM clock_timestamp() - created_at)::double precision AS total_seconds
"""  # noqa: S608
    for condition in _If
}

_REQUEST_CANCEL = """
UPDATE baton.stream SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
WHERE id = $1 AND status NOT IN ('completed', 'failed', 'cancelled')
RETURNING status, history <> baton.current_history()
"""

_CLOSE = f"""
UPDATE baton.stream SET {end_columns.assignments(lambda _name, position: f"${position + 3}")}
WHERE id = $1 AND epoch = $2
"""  # noqa: S608

# An open stream is closed before its row is locked, in the order in which appends lock both rows. From then on no
# append succeeds.
_SHUT = """
UPDATE baton.external_stream AS e SET closed = true, tail = tail + CASE WHEN kind = 'events' THEN 1 ELSE 0 END
FROM baton.stream AS s WHERE e.stream_id = $1 AND s.id = e.stream_id AND NOT e.closed
RETURNING extract(epoch FROM clock_timestamp() - s.created_at)::double precision,
          extract(epoch FROM e.first_token_at - s.created_at)::double precision, e.tokens
"""

_DELETE_STREAM = "DELETE FROM baton.stream WHERE id = $1 RETURNING status"
_DELETE_KEYS = "DELETE FROM baton.idempotency_key WHERE tenant = $1 AND stream_id = $2"
# One statement is enough: the stream was ended before, so no append in flight can add a producer.
_DELETE_EXTERNAL = """
WITH rows AS (DELETE FROM baton.external_stream WHERE stream_id = $1 RETURNING stream_id)
DELETE FROM baton.producer WHERE stream_id IN (SELECT stream_id FROM rows)
"""


async def request_cancel(pool: Pool, stream_id: UUID) -> str | None:
    """Ask for a stream's end; return the state in which the request found it, or None if it had ended before.

    A stream that is queued, waits, or is open is ended at once: the answer is that status. A running one is ended by
    its worker, which notices the request by the row: the answer is "running".

    An open stream whose log may lack events since a failover ends as `log_rewound`: the end may have the number of an
    event that clients have.
    """
    status, rewound = await pool.fetchrow(_REQUEST_CANCEL, stream_id) or (None, None)
    if status == "open":
        return "open" if await end_open(pool, stream_id, REWOUND if rewound else Outcome.cancelled()) else None
    if status == "queued" and await _end(pool, stream_id, Outcome.cancelled(), _If.QUEUED):
        return "queued"
    if status == "waiting" and await _end(pool, stream_id, REWOUND if rewound else Outcome.cancelled(), _If.WAITING):
        return "waiting"
    return status and "running"


async def end_any(pool: Pool, stream_id: UUID, outcome: Outcome) -> bool:
    """End a stream in any state and whichever worker has it; return whether this ended it."""
    return await _end(pool, stream_id, outcome, _If.LIVE)


async def end_open(executor: Connection | Pool, stream_id: UUID, outcome: Outcome) -> bool:
    """End an open stream, whatever its producer does; return whether this ended it."""
    with _retried_with_partition(stream_id):
        return await _end(executor, stream_id, outcome, _If.OPEN)
    return False


async def end_queued(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> bool:
    """End a queued stream unless it was claimed in the meantime; return whether this ended it."""
    with _retried_with_partition(stream_id):
        return await _end(connection, stream_id, outcome, _If.QUEUED_AT_EPOCH, epoch)
    return False


async def end_waiting(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> bool:
    """End a waiting stream unless it was woken in the meantime; return whether this ended it."""
    with _retried_with_partition(stream_id):
        return await _end(connection, stream_id, outcome, _If.WAITING_AT_EPOCH, epoch)
    return False


async def end_claimed(connection: Connection, fence: Fence, outcome: Outcome) -> bool:
    """End a stream for a claim whose worker no longer writes to it; return whether this ended it."""
    with _retried_with_partition(fence.stream_id):
        return await _end(connection, fence.stream_id, outcome, _If.CLAIMED, fence.epoch, fence.claim_token)
    return False


async def close(connection: Connection, stream_id: UUID, epoch: int, outcome: Outcome) -> None:
    """Close the row of a stream whose terminal event is already in the log."""
    await connection.execute(_CLOSE, stream_id, epoch, *end_columns.values(outcome))


async def erase(pool: Pool, stream_id: UUID, tenant: str = "") -> bool:
    """Delete a stream with its events; return whether it existed. Its worker is fenced by the missing row, and stops.

    A stream that is being written is ended first. That terminal event, which holds no text, stays in the log until its
    partition is dropped. It occupies the place that an append in flight may aim at, which would otherwise be free
    again.
    """
    ended_now = await end_any(pool, stream_id, Outcome.cancelled(finish_reason="erased"))
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_DELETE_STREAM, stream_id) is None:
            return False
        await event_log.erase(connection, stream_id, keep_end=ended_now)
        await stream_states.delete(connection, stream_id)
        await steps.delete(connection, stream_id)
        await inputs.delete(connection, stream_id)
        await connection.execute(_DELETE_EXTERNAL, stream_id)
        await connection.execute(_DELETE_KEYS, tenant, stream_id)
    return True


async def _end(
    executor: Connection | Pool, stream_id: UUID, outcome: Outcome, condition: _If, *arguments: object
) -> bool:
    """Take a stream away if the condition holds, and write its terminal event; return whether this ended it.

    Between these two steps an append of the last owner may still succeed. It then has the place at the tail, and this
    tries again after the new tail. If that append was the terminal one, the row is closed to match it.
    """
    if isinstance(executor, asyncpg.Pool):
        async with executor.acquire() as connection:
            return await _end(connection, stream_id, outcome, condition, *arguments)
    while True:
        # A terminal append of the last owner that is in flight waits for the row that this locks, while this waits for
        # the append's place.
        with contextlib.suppress(asyncpg.DeadlockDetectedError):
            ended = await _take_and_end(executor, stream_id, outcome, condition, *arguments)
            if ended is not None:
                written, known = ended
                stream_end.note(stream_id, written, **known)
            return ended is not None


async def _take_and_end(
    connection: Connection, stream_id: UUID, outcome: Outcome, condition: _If, *arguments: object
) -> tuple[Outcome, dict[str, Any]] | None:
    """Return the end with the stream's usage, and the stream's fields for the log; None if this did not end it."""
    async with connection.transaction():
        if condition in {_If.OPEN, _If.LIVE} and (shut := await connection.fetchrow(_SHUT, stream_id)):
            outcome = replace(outcome, timings=Timings(*shut))
        taken = await connection.fetchrow(_TAKE[condition], stream_id, *arguments)
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
                connection,
                [event_log.Append(stream_id, epoch, seq, seq, outcome.encode(), outcome, claim_token, forgets=True)],
            ):
                return outcome, {**known, "epoch": epoch, "events": seq}


@contextlib.contextmanager
def _retried_with_partition(stream_id: UUID) -> Iterator[None]:
    """Skip a stream whose log has no partition, until a later try, so that the other streams are still ended."""
    try:
        yield
    except asyncpg.CheckViolationError as error:
        if not sqlstates.partition_is_missing(error):
            raise
        logger.error(
            "Stream %s cannot be ended: %s. Run `baton maintain`, which creates the missing partitions.",
            stream_id,
            error,
            extra=log_context.fields_of(stream_id),
        )
