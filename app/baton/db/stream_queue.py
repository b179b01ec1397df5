"""The queue: claiming streams, giving them back, and looking at the ones that wait.

The queue is not a table of its own: it is the queued rows of `stream`. Those *in line* have a position, by which they
are claimed (see `queue_lines`). The others are *held*, and no worker claims them: see `stream_admission`.

Statements begin at the low watermark (see `queue_watermark`), so that they read no more while an old snapshot keeps
vacuum from removing the entries of streams that have passed through. There is none for held streams: what reads them
is paced, or runs rarely.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from . import stream_ending, worker_rows
from .fence import Fence
from .postgres import Connection, Place, Pool
from .queue_lines import IN_LINE, line_of
from .queue_watermark import START
from .stream_ending import End
from .streams import CLAIMED, continuation

# This is more than all inputs together.
ALL_BYTES: Final = 2**62
# More than positions can fall while streams are given back.
FAR: Final = timedelta(milliseconds=1)

# A worker that was declared dead has no row any more, and claims nothing until it notices. The lock on the row makes
# the reaper wait for this claim, or this claim for the reaper. The row is found at its place, $4: each heartbeat makes
# a new version of it, and while an old snapshot is open its key leads to all of them.
#
# Streams are claimed by their position, beginning at the low watermark, $5.
#
# Streams are taken until their inputs have $6 bytes, including the one that exceeds them, so that any input can be
# taken. The row has the size of a value, also where the value itself is stored elsewhere.
_CLAIM = f"""
WITH me AS (
    SELECT id FROM baton.worker WHERE id = $1 AND ctid = $4 FOR KEY SHARE
), found AS (
    SELECT id, queue_position, octet_length(input) AS bytes FROM baton.stream
    WHERE {IN_LINE} AND queue_position >= $5 AND generator = ANY ($2) AND EXISTS (SELECT FROM me)
    ORDER BY queue_position, id LIMIT $3
    FOR UPDATE SKIP LOCKED
), next AS (
    SELECT id, bytes FROM (
        SELECT id, bytes, sum(bytes) OVER (ORDER BY queue_position, id) - bytes AS before FROM found
    ) AS counted WHERE before < $6
)
UPDATE baton.stream AS s
SET status = 'running', epoch = s.epoch + 1, claim_token = gen_random_uuid(), attempts = s.attempts + 1,
    worker_id = $1, started_at = coalesce(s.started_at, clock_timestamp()),
    continues = s.may_continue AND s.generator = ANY ($7), run = s.run + 1,
    time_to_first_token_seconds = CASE WHEN s.continues THEN s.time_to_first_token_seconds END,
    waited_seconds = s.waited_seconds
                     + coalesce(extract(epoch FROM clock_timestamp() - s.waiting_since)::double precision, 0),
    waiting_since = NULL,
    history = coalesce(s.history, baton.current_history())
FROM next WHERE s.id = next.id
RETURNING s.id, s.epoch, s.attempts, s.on_worker_lost, s.generator, s.input, s.metadata,
          s.cancel_requested_at IS NOT NULL AS cancelled, s.max_duration, s.idle_timeout,
          extract(epoch FROM clock_timestamp() - s.started_at)::double precision - s.waited_seconds AS elapsed,
          extract(epoch FROM s.started_at - s.created_at)::double precision AS queued,
          s.tenant, s.traceparent, s.claim_token,
          coalesce(s.history <> baton.current_history(), false) AS rewound, s.history, s.continuation,
          next.bytes, s.continues, s.run, s.interruption, s.time_to_first_token_seconds, s.inputs
"""  # noqa: S608

# All queued streams: those in line, from the low watermark $1 on, and those that are held. Since when each one waits:
# never before its `start_after`.
_QUEUED = f"""
    SELECT id, epoch, generator, greatest(coalesce(queued_at, created_at), start_after) AS since, queue_timeout,
           greatest(watched_at, created_at, queued_at, start_after) AS watched, unwatched_timeout, queue_position,
           held_until
    FROM baton.stream WHERE {IN_LINE} AND queue_position >= $1
    UNION ALL
    SELECT id, epoch, generator, greatest(coalesce(queued_at, created_at), start_after), queue_timeout,
           greatest(watched_at, created_at, queued_at, start_after), unwatched_timeout, queue_position, held_until
    FROM baton.stream WHERE status = 'queued' AND queue_position IS NULL
"""  # noqa: S608

# Queued streams that no worker claimed in time, or that had no viewer for as long as they allow. The oldest come first:
# the newest may have no partition, cannot be ended then, and would take the place of others in every page.
_OVERDUE = f"""
SELECT id, epoch, since < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $2)) AS timed_out, generator
FROM ({_QUEUED}) AS queued
WHERE since < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $2))
   OR ($3 AND watched < clock_timestamp() - make_interval(secs => unwatched_timeout))
ORDER BY id
LIMIT 100
"""  # noqa: S608

# Streams that a further worker would claim: not the ones that start later, or that wait for others of their tenant.
_QUEUE_STATE = f"""
SELECT generator, count(*), extract(epoch FROM clock_timestamp() - min(since))::double precision
FROM (SELECT generator, since FROM ({_QUEUED}) AS each
      WHERE queue_position IS NOT NULL OR held_until <= clock_timestamp() LIMIT 10000) AS queued
GROUP BY generator
"""  # noqa: S608

_CANCELLED = """
SELECT id, generator FROM baton.stream
WHERE id = ANY ($1) AND status = 'queued' AND cancel_requested_at IS NOT NULL
"""
# By the two indexes that have all queued streams.
_ALL_CANCELLED = f"""
SELECT id, generator FROM baton.stream WHERE {IN_LINE} AND cancel_requested_at IS NOT NULL
UNION ALL
SELECT id, generator FROM baton.stream
WHERE status = 'queued' AND queue_position IS NULL AND cancel_requested_at IS NOT NULL
LIMIT 100
"""  # noqa: S608

_CLAIMED_FROM = "SELECT generator, queue_position FROM baton.stream WHERE id = $1"
# It goes before the first of its line, or beside it if that one was given back too: viewers have a part of the answer.
# Its last position is not used again: it may lie far below the watermarks, and an update that leaves it unchanged is
# one of the release before, which a trigger completes.
_REQUEUE = f"""
WITH before AS (
    SELECT queue_position - CASE WHEN epoch > 0 AND interruption IN ('worker_lost', 'worker_left') THEN interval '0'
                                 ELSE interval '1 us' END AS position
    FROM baton.stream WHERE {IN_LINE} AND queue_position >= $9 AND generator = ANY ($8)
    ORDER BY queue_position, id LIMIT 1
)
UPDATE baton.stream AS s
SET status = 'queued', queued_at = clock_timestamp(), epoch = epoch + 1, worker_id = NULL,
    attempts = CASE WHEN $4 THEN 0 ELSE attempts - $5 END, run = run - $6, interruption = coalesce($7, interruption),
    queue_position = coalesce(
        (SELECT position - CASE WHEN position = s.queue_position THEN interval '1 us' ELSE interval '0' END
         FROM before), clock_timestamp())
WHERE id = $1 AND {CLAIMED}
RETURNING id
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Requeue:
    """Why a stream goes back to the queue, and what that means for its counts.

    `interruption` is the reason that viewers get; None if no run was interrupted. `uncount_attempts` is how many
    attempts do not count, and `forget_attempts` forgets all of them. `uncount_runs` is how many runs never started.
    """

    interruption: str | None
    uncount_attempts: int = 0
    forget_attempts: bool = False
    uncount_runs: int = 0


# The worker died, or was declared dead.
LOST: Final = Requeue("worker_lost")
# The worker died, but the answer has grown since its last interruption.
LOST_AFTER_PROGRESS: Final = Requeue("worker_lost", forget_attempts=True)
# The worker left in good order.
LEFT: Final = Requeue("worker_left", uncount_attempts=1)
# The reply to a claim was lost, so the stream never ran.
NEVER_RAN: Final = Requeue(None, uncount_attempts=1, uncount_runs=1)


@dataclass(frozen=True, slots=True)
class Claim:
    """A stream that a worker has claimed, with everything that its generator needs."""

    stream_id: UUID
    epoch: int
    attempts: int
    on_worker_lost: str
    generator: str
    input: Any
    metadata: Mapping[str, Any]
    cancelled: bool
    max_duration: float | None = None
    idle_timeout: float | None = None
    elapsed: float = 0.0  # since its first claim, without the time in waits
    queued: float = 0.0  # before that
    tenant: str = ""
    traceparent: str | None = None
    claim_token: UUID | None = None
    rewound: bool = False  # it belongs to an older history of the database, and must not be generated
    history: str | None = None
    approvals: Sequence[Mapping[str, Any]] = ()  # fields of `generators.Approval`
    input_bytes: int = 0  # as JSON
    continues: bool = False  # its generator can continue it, and its creator allows that
    run: int = 1
    interruption: str | None = None  # why the run before ended
    time_to_first_token_seconds: float | None = None  # of the runs that this one continues
    inputs: int = 0  # how many it has got

    @property
    def fence(self) -> Fence:
        """What the stream's row must contain while this claim lasts."""
        return Fence(self.stream_id, self.epoch, self.claim_token)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A queued stream that no worker claimed in time, or that has no viewer."""

    stream_id: UUID
    epoch: int
    timed_out: bool
    generator: str


class Waiting(NamedTuple):
    """How many streams wait for a worker, and for how many seconds the first one has waited."""

    streams: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits for a worker, by generator."""

    by_generator: Mapping[str, Waiting]

    @property
    def total(self) -> Waiting:
        """All of it."""
        waiting = self.by_generator.values()
        return Waiting(
            sum(item.streams for item in waiting), max((item.oldest_seconds for item in waiting), default=0.0)
        )


async def claim(
    connection: Connection,
    worker_id: UUID,
    generators: Sequence[str],
    limit: int,
    *,
    place: Place | None,
    since: datetime = START,
    max_bytes: int = ALL_BYTES,
    continuing: Sequence[str] = (),
) -> list[Claim]:
    """Claim the first streams in line that one of `generators` can serve, beginning at the low watermark.

    `continuing`: the generators that can continue what another worker has begun.
    `max_bytes`: claim no further stream once the inputs have this many bytes in total.
    `place`: where the worker's row is, as its last heartbeat returned it. With a wrong place nothing is claimed.
    """
    return [
        Claim(
            row["id"],
            row["epoch"],
            row["attempts"],
            row["on_worker_lost"],
            row["generator"],
            orjson.loads(row["input"]),
            orjson.loads(row["metadata"]),
            row["cancelled"],
            row["max_duration"],
            row["idle_timeout"],
            row["elapsed"],
            row["queued"],
            row["tenant"],
            row["traceparent"],
            row["claim_token"],
            row["rewound"],
            row["history"],
            continuation(row["continuation"]).get("approvals", ()),
            row["bytes"],
            row["continues"],
            row["run"],
            row["interruption"],
            row["time_to_first_token_seconds"],
            row["inputs"],
        )
        for row in await connection.fetch(_CLAIM, worker_id, generators, limit, place, since, max_bytes, continuing)
    ]


async def requeue(connection: Connection, fence: Fence, how: Requeue = LOST) -> bool:
    """Give a claimed stream back to the queue; return whether that claim still had it."""
    claimed = await connection.fetchrow(_CLAIMED_FROM, fence.stream_id)
    if claimed is None:
        return False
    generator, position = claimed
    line = line_of(generator, await worker_rows.offers(connection))
    # What is in line now is not far below the position at which this one was claimed.
    since = START if position is None else max(START, position - FAR)
    counts = (how.forget_attempts, how.uncount_attempts, how.uncount_runs, how.interruption)
    return await connection.fetchval(_REQUEUE, *fence, *counts, line, since) is not None


async def overdue(
    connection: Connection, queue_timeout: float, *, unwatched: bool = True, since: datetime = START
) -> list[Overdue]:
    """Return queued streams that have waited for more than `queue_timeout` seconds or have no viewer: 100 at most."""
    rows = await connection.fetch(_OVERDUE, since, queue_timeout, unwatched)
    return [Overdue(*row) for row in rows]


def end_of(item: Overdue) -> End:
    """Return the end of an overdue stream, unless it is claimed in the meantime."""
    outcome = stream_ending.QUEUE_TIMEOUT if item.timed_out else stream_ending.UNWATCHED
    return End.of_queued(item.stream_id, item.epoch, outcome)


async def cancelled(connection: Connection, among: Collection[UUID] | None = None) -> list[tuple[UUID, str]]:
    """Return queued streams whose cancel was requested, with their generators: 100 at most.

    Only the ones in `among`, which are looked up by their keys; or all.
    """
    if among is None:
        return [(row[0], row[1]) for row in await connection.fetch(_ALL_CANCELLED)]
    return [(row[0], row[1]) for row in await connection.fetch(_CANCELLED, list(among))]


async def state(executor: Connection | Pool, since: datetime = START) -> QueueState:
    """Return what waits for a worker: 10,000 streams at most."""
    rows = await executor.fetch(_QUEUE_STATE, since)
    return QueueState({row[0]: Waiting(row[1], max(0.0, row[2])) for row in rows})
