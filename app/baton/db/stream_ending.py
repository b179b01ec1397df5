"""Ending streams from outside of their writer, closing rows, and erasing.

Normally a stream's writer ends it: the append of the terminal event also closes the row (`event_log.append`). This
module ends the streams that no writer will end: queued ones, ones whose worker is lost, and ones that are erased. Each
end first takes the stream away from its claim, by raising the epoch, and then writes the terminal event at the tail, in
one transaction.

With an end hook the hook runs first in that transaction (see `hooked_ends`), on the answer as the log has it. If the
log has grown when the stream is taken away, everything is rolled back, and the hook runs again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final
from uuid import UUID

import asyncpg

from ..errors import ConfigurationError
from ..events import MAX_SEQ
from ..observability import log_context, stream_end
from ..outcome import Outcome, Timings
from ..usage import Bill
from . import (
    end_columns,
    ended_answers,
    event_log,
    hooked_ends,
    inputs,
    sqlstates,
    steps,
    stream_states,
    streams,
    worker_rows,
)
from .fence import Fence
from .hooked_ends import Hook
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
    QUEUED_AND_CANCELLED = "status = 'queued' AND cancel_requested_at IS NOT NULL"
    CLAIMED = streams.CLAIMED


_TAKE = {
    condition: f"""
UPDATE baton.stream SET epoch = epoch + 1, worker_id = NULL WHERE id = $1 AND {condition.value}
RETURNING epoch, claim_token, tenant, generator, attempts AS attempt, traceparent AS trace,
          extract(epoch FROM clock_timestamp() - created_at)::double precision AS total_seconds
"""  # noqa: S608
    for condition in _If
}

_MEETS = {condition: f"SELECT FROM baton.stream WHERE id = $1 AND {condition.value}" for condition in _If}
# Of several workers that find the same stream, only one runs the hook.
_TRY_ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('baton.end ' || $1::text, 0))"

_REQUEST_CANCEL = f"""
UPDATE baton.stream
SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
    held_until = CASE WHEN status = 'waiting' THEN clock_timestamp() ELSE held_until END
WHERE id = $1 AND status NOT IN ('completed', 'failed', 'cancelled')
RETURNING status, history <> baton.current_history(), ({worker_rows.HAS_END_HOOK})
"""  # noqa: S608

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


@dataclass(frozen=True, slots=True)
class End:
    """An end that no writer makes: of a stream, if its row meets a condition when the end is made."""

    stream_id: UUID
    outcome: Outcome
    condition: _If
    arguments: tuple[object, ...] = ()

    @classmethod
    def of_queued(cls, stream_id: UUID, epoch: int, outcome: Outcome) -> End:
        """Return the end of a queued stream, unless it is claimed in the meantime."""
        return cls(stream_id, outcome, _If.QUEUED_AT_EPOCH, (epoch,))

    @classmethod
    def of_claimed(cls, fence: Fence, outcome: Outcome) -> End:
        """Return the end of a stream for a claim whose worker no longer writes to it."""
        return cls(fence.stream_id, outcome, _If.CLAIMED, (fence.epoch, fence.claim_token))

    @classmethod
    def of_cancelled(cls, stream_id: UUID) -> End:
        """Return the end of a queued stream whose cancel was requested."""
        return cls(stream_id, Outcome.cancelled(), _If.QUEUED_AND_CANCELLED)

    @classmethod
    def of_waiting(cls, stream_id: UUID, epoch: int, outcome: Outcome) -> End:
        """Return the end of a waiting stream, unless it is woken in the meantime."""
        return cls(stream_id, outcome, _If.WAITING_AT_EPOCH, (epoch,))


async def request_cancel(pool: Pool, stream_id: UUID) -> str | None:
    """Ask for a stream's end; return the state in which the request found it, or None if it had ended before.

    A stream that is queued, waits, or is open is ended at once: the answer is that status. A running one is ended by
    its worker, which notices the request by the row: the answer is "running". While a worker has an end hook, workers
    end queued and waiting streams too, and the answer is "running".

    An open stream whose log may lack events since a failover ends as `log_rewound`: the end may have the number of an
    event that clients have.
    """
    status, rewound, hooked = await pool.fetchrow(_REQUEST_CANCEL, stream_id) or (None, None, None)
    if status == "open":
        return "open" if await end_open(pool, stream_id, REWOUND if rewound else Outcome.cancelled()) else None
    if status == "queued" and not hooked and await _end(pool, End(stream_id, Outcome.cancelled(), _If.QUEUED)):
        return "queued"
    if status == "waiting" and not hooked:
        outcome = REWOUND if rewound else Outcome.cancelled()
        if await _end(pool, End(stream_id, outcome, _If.WAITING)):
            return "waiting"
    return status and "running"


async def end_any(pool: Pool, stream_id: UUID, outcome: Outcome) -> bool:
    """End a stream in any state and whichever worker has it; return whether this ended it."""
    return await _end(pool, End(stream_id, outcome, _If.LIVE))


async def end_open(executor: Connection | Pool, stream_id: UUID, outcome: Outcome) -> bool:
    """End an open stream, whatever its producer does; return whether this ended it."""
    return await end(executor, End(stream_id, outcome, _If.OPEN))


async def end(executor: Connection | Pool, wanted: End, hook: Hook | None = None, *, hook_failed: bool = False) -> bool:
    """Make an end; return whether this ended the stream.

    With a `hook`, which runs in the same transaction, only one process tries at a time, and the others return False.
    What the hook raises is raised. `hook_failed` marks the stream as one that ends without its hook.
    """
    with _retried_with_partition(wanted.stream_id):
        return await _end(executor, wanted, hook, hook_failed=hook_failed)
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


class _LogHasGrown(Exception):
    """The hook has seen an answer that is not complete: roll back, and run it again."""


async def _end(
    executor: Connection | Pool, wanted: End, hook: Hook | None = None, *, hook_failed: bool = False
) -> bool:
    """Take a stream away if the condition holds, and write its terminal event; return whether this ended it.

    Between these two steps an append of the last owner may still succeed. It then has the place at the tail, and this
    tries again after the new tail. If that append was the terminal one, the row is closed to match it.
    """
    if isinstance(executor, asyncpg.Pool):
        async with executor.acquire() as connection:
            return await _end(connection, wanted, hook, hook_failed=hook_failed)
    while True:
        # A terminal append of the last owner that is in flight waits for the row that this locks, while this waits for
        # the append's place.
        with contextlib.suppress(asyncpg.DeadlockDetectedError, _LogHasGrown):
            ended = await _take_and_end(executor, wanted, hook, hook_failed=hook_failed)
            if ended is not None:
                written, known = ended
                stream_end.note(wanted.stream_id, written, **known)
            return ended is not None


async def _take_and_end(
    connection: Connection, wanted: End, hook: Hook | None, *, hook_failed: bool
) -> tuple[Outcome, dict[str, Any]] | None:
    """Return the end with the stream's usage, and the stream's fields for the log; None if this did not end it."""
    async with connection.transaction():
        seen = None if hook is None else await _run_hook(connection, wanted, hook)
        if hook is not None and seen is None:
            return None
        outcome = wanted.outcome
        if wanted.condition in {_If.OPEN, _If.LIVE} and (shut := await connection.fetchrow(_SHUT, wanted.stream_id)):
            outcome = replace(outcome, timings=Timings(*shut))
        taken = await connection.fetchrow(_TAKE[wanted.condition], wanted.stream_id, *wanted.arguments)
        if taken is None and seen:
            raise _LogHasGrown
        if taken is None:
            return None
        ended = await _append(connection, wanted.stream_id, outcome, dict(taken), seen)
        if ended is not None and hook_failed:
            await hooked_ends.mark_failed(connection, wanted.stream_id)
        return ended


async def _append(
    connection: Connection, stream_id: UUID, outcome: Outcome, known: dict[str, Any], seen: int | None
) -> tuple[Outcome, dict[str, Any]] | None:
    """Write the terminal event of a stream that was taken away; return the end, and the stream's fields for the log.

    `seen`: the number that the event must have because the hook has run for it. Return None if another terminal event
    is in the log already, and then close the row.
    """
    epoch, claim_token = known.pop("epoch"), known.pop("claim_token")
    while True:
        tail = await event_log.read_tail(connection, stream_id)
        if seen and tail.last_seq + 1 != seen:
            raise _LogHasGrown
        if tail.outcome is not None:
            await close(connection, stream_id, epoch, tail.outcome)
            return None
        if tail.last_seq >= MAX_SEQ:
            raise ConfigurationError(f"Stream {stream_id} has no number left for its terminal event.")
        seq = tail.last_seq + 1
        outcome = await _billed(connection, stream_id, outcome, epoch, tail.last_seq)
        if await event_log.append(
            connection,
            [event_log.Append(stream_id, epoch, seq, seq, outcome.encode(), outcome, claim_token, forgets=True)],
        ):
            return outcome, {**known, "epoch": epoch, "events": seq}


async def _run_hook(connection: Connection, wanted: End, hook: Hook) -> int | None:
    """Run the hook for an end that can be made now; return the number of its terminal event, as the hook has seen it.

    Return 0 if the terminal event is in the log already, and only the row is to be closed. Return None if the end
    cannot be made, or if another process makes it.
    """
    stream_id = wanted.stream_id
    if not await connection.fetchval(_TRY_ALONE, str(stream_id)):
        return None
    if await connection.fetchrow(_MEETS[wanted.condition], stream_id, *wanted.arguments) is None:
        return None
    tail = await event_log.read_tail(connection, stream_id)
    outcome = await _billed(connection, stream_id, wanted.outcome, 0, tail.last_seq)
    answer = await ended_answers.before_end(connection, stream_id, outcome)
    if answer is None:
        return 0
    await hook(connection, answer)
    return answer.events


async def _billed(connection: Connection, stream_id: UUID, outcome: Outcome, epoch: int, last_seq: int) -> Outcome:
    """Return an end with what the stream has used according to its log."""
    return outcome.billed(Bill(epoch, await event_log.read_usage(connection, stream_id))) if last_seq else outcome


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
