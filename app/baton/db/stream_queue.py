"""The queue: claiming streams, giving them back, and looking at the ones that wait.

The queue is not a table of its own: it is the queued rows of `stream`. Every statement begins at the queue's low
watermark (see `queue_watermark`), so that it reads no more while an old snapshot keeps vacuum from removing the entries
of streams that have passed through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson

from ..outcome import Outcome
from . import stream_ending
from .fence import Fence
from .postgres import Connection, Place, Pool
from .queue_watermark import ALL, First, Since
from .streams import CLAIMED, continuation

# This is more than all inputs together.
ALL_BYTES: Final = 2**62

# A worker that was declared dead has no row any more, and claims nothing until it notices. The lock on the row makes
# the reaper wait for this claim, or this claim for the reaper. The row is found at its place, $4: each heartbeat makes
# a new version of it, and while an old snapshot is open its key leads to all of them.
#
# Requeued streams come first, since clients have seen a part of their answers. They are in an index of their own, by
# the moment at which they were requeued. Streams that were never claimed are found by their ids. Both begin at the low
# watermark, $5 and $6.
#
# Streams are taken until their inputs have $7 bytes, including the one that exceeds them, so that any input can be
# taken. The row has the size of a value, also where the value itself is stored elsewhere.
_CLAIM = """
WITH me AS (
    SELECT id FROM baton.worker WHERE id = $1 AND ctid = $4 FOR KEY SHARE
), again AS (
    SELECT id, queued_at, octet_length(input) AS bytes FROM baton.stream
    WHERE status = 'queued' AND epoch > 0 AND queued_at >= $5 AND generator = ANY ($2) AND EXISTS (SELECT FROM me)
    ORDER BY queued_at LIMIT $3
    FOR UPDATE SKIP LOCKED
), fresh AS (
    SELECT id, octet_length(input) AS bytes FROM baton.stream
    WHERE status = 'queued' AND epoch = 0 AND id >= $6 AND generator = ANY ($2) AND EXISTS (SELECT FROM me)
    ORDER BY id LIMIT $3 - (SELECT count(*) FROM again)
    FOR UPDATE SKIP LOCKED
), found AS (
    SELECT id, bytes, queued_at FROM again UNION ALL SELECT id, bytes, NULL FROM fresh
), next AS (
    SELECT id, bytes FROM (
        SELECT id, bytes, sum(bytes) OVER (ORDER BY queued_at NULLS LAST, id) - bytes AS before FROM found
    ) AS counted WHERE before < $7
)
UPDATE baton.stream AS s
SET status = 'running', epoch = s.epoch + 1, claim_token = gen_random_uuid(), attempts = s.attempts + 1,
    worker_id = $1, started_at = coalesce(s.started_at, clock_timestamp()),
    continues = s.may_continue AND s.generator = ANY ($8), run = s.run + 1,
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
"""

# All queued streams from the low watermark on, $1 and $2: the requeued ones, and the ones that were never claimed.
_QUEUED = """
    SELECT id, epoch, generator, queued_at, created_at, queue_timeout, watched_at, unwatched_timeout
    FROM baton.stream
    WHERE status = 'queued' AND epoch > 0 AND queued_at >= $1
    UNION ALL
    SELECT id, epoch, generator, queued_at, created_at, queue_timeout, watched_at, unwatched_timeout
    FROM baton.stream
    WHERE status = 'queued' AND epoch = 0 AND id >= $2
"""

# The first stream of both kinds, and the moment as of which this is known. If $3 is null, of all generators.
_FIRST_QUEUED = """
SELECT (SELECT id FROM baton.stream
        WHERE status = 'queued' AND epoch = 0 AND id >= $2 AND ($3::text[] IS NULL OR generator = ANY ($3))
        ORDER BY id LIMIT 1),
       (SELECT queued_at FROM baton.stream
        WHERE status = 'queued' AND epoch > 0 AND queued_at >= $1 AND ($3::text[] IS NULL OR generator = ANY ($3))
        ORDER BY queued_at LIMIT 1),
       now()
"""

# Queued streams that no worker claimed in time, or that had no viewer for as long as they allow. The oldest come first:
# the newest may have no partition, cannot be ended then, and would take the place of others in every page.
_OVERDUE = f"""
SELECT id, epoch, coalesce(queued_at, created_at)
                  < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $3)) AS timed_out, generator
FROM ({_QUEUED}) AS queued
WHERE coalesce(queued_at, created_at) < clock_timestamp() - make_interval(secs => coalesce(queue_timeout, $3))
   OR ($4 AND coalesce(watched_at, created_at) < clock_timestamp() - make_interval(secs => unwatched_timeout))
ORDER BY id
LIMIT 100
"""  # noqa: S608

_QUEUE_STATE = f"""
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(since)), 0)::double precision
FROM (SELECT coalesce(queued_at, created_at) AS since FROM ({_QUEUED}) AS each LIMIT 10000) AS queued
"""  # noqa: S608

_REQUEUE = f"""
UPDATE baton.stream
SET status = 'queued', queued_at = clock_timestamp(), epoch = epoch + 1, worker_id = NULL,
    attempts = CASE WHEN $4 THEN 0 ELSE attempts - $5 END, run = run - $6, interruption = coalesce($7, interruption)
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


async def claim(
    connection: Connection,
    worker_id: UUID,
    generators: Sequence[str],
    limit: int,
    *,
    place: Place | None,
    since: Since = ALL,
    max_bytes: int = ALL_BYTES,
    continuing: Sequence[str] = (),
) -> list[Claim]:
    """Claim the oldest queued streams that one of `generators` can serve, beginning at the low watermark.

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
        for row in await connection.fetch(
            _CLAIM, worker_id, generators, limit, place, since.moment, since.id, max_bytes, continuing
        )
    ]


async def requeue(connection: Connection, fence: Fence, how: Requeue = LOST) -> bool:
    """Give a claimed stream back to the queue; return whether that claim still had it."""
    counts = (how.forget_attempts, how.uncount_attempts, how.uncount_runs, how.interruption)
    return await connection.fetchval(_REQUEUE, *fence, *counts) is not None


async def first_queued(
    executor: Connection | Pool, since: Since = ALL, generators: Sequence[str] | None = None
) -> First:
    """Return the first queued streams of these generators, or of all."""
    row = await executor.fetchrow(_FIRST_QUEUED, since.moment, since.id, generators)
    assert row is not None
    return First(*row)


async def overdue(
    connection: Connection, queue_timeout: float, *, unwatched: bool = True, since: Since = ALL
) -> list[Overdue]:
    """Return queued streams that have waited for more than `queue_timeout` seconds or have no viewer: 100 at most."""
    rows = await connection.fetch(_OVERDUE, since.moment, since.id, queue_timeout, unwatched)
    return [Overdue(*row) for row in rows]


async def end_overdue(connection: Connection, found: Sequence[Overdue]) -> list[tuple[Outcome, str]]:
    """End overdue streams unless they were claimed in the meantime; return each end with the name of its generator."""
    ended = []
    for item in found:
        outcome = stream_ending.QUEUE_TIMEOUT if item.timed_out else stream_ending.UNWATCHED
        if await stream_ending.end_queued(connection, item.stream_id, item.epoch, outcome):
            ended.append((outcome, item.generator))
    return ended


async def state(executor: Connection | Pool, since: Since = ALL) -> tuple[int, float]:
    """Return how many streams wait for a worker, 10,000 at most, and for how many seconds the first has waited."""
    count, oldest_seconds = await executor.fetchrow(_QUEUE_STATE, since.moment, since.id)  # type: ignore[misc]
    return count, oldest_seconds
