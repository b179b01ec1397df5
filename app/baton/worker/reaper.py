"""Finds dead workers, and takes care of the streams that they had.

A worker is dead when its counter stood still for a whole lease while this reaper watched over one uninterrupted
connection. So no clock is compared with another, and an outage of Postgres, which stops all counters, kills no worker:
a reaper that lost its connection, or could not check for a while, starts to watch again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from ..db import event_log, stream_queue, worker_rows
from ..db.postgres import Connection
from ..db.stream_ending import REWOUND, End
from ..db.stream_queue import Requeue
from ..db.worker_rows import Orphan
from ..outcome import WORKER_LEFT_MESSAGE, WORKER_LOST_MESSAGE, Outcome
from ..pace import Pace
from .hooked_ends import AT_ONCE, Ends

logger = logging.getLogger(__name__)


class Reaper:
    """Watches the other workers, for one worker."""

    def __init__(
        self,
        *,
        lease_seconds: float,
        max_attempts: int,
        max_pause_seconds: float = math.inf,
        ends: Ends = AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._max_pause_seconds = max_pause_seconds
        self._ends = ends
        self._clock = clock
        self._checked_at = self._steady_since = clock()
        self._seen: dict[UUID, tuple[int, float]] = {}
        # While an old snapshot is open this reads an entry for every stream that has run since.
        self._orphans_pace = Pace(factor=100, least_seconds=lease_seconds, clock=clock)
        self._orphans_pace.put_off()

    def forget(self) -> None:
        """Start to watch again, after the connection was interrupted."""
        self._seen.clear()
        self._steady_since = self._clock()

    def steady_seconds(self) -> float:
        """Return for how many seconds it has watched without a long pause.

        After a stall of the network or of this process the other counters may be unchanged because their workers
        stalled too.
        """
        now = self._clock()
        if now - self._checked_at > self._max_pause_seconds:
            self.forget()
        return now - self._steady_since

    async def check(self, connection: Connection, own_id: UUID, counters: Mapping[UUID, int]) -> None:
        """Check the workers' counters, and remove the workers whose counters stood still for too long."""
        self.steady_seconds()
        self._checked_at = now = self._clock()
        for worker_id, counter in counters.items():
            seen, since = self._seen.get(worker_id, (-1, now))
            if seen != counter:
                self._seen[worker_id] = (counter, now)
            elif worker_id != own_id and now - since > self._lease_seconds:
                logger.warning("Worker %s is dead: its last heartbeat was %.1f s ago.", worker_id, now - since)
                await self._remove(connection, own_id, worker_id)
        self._seen = {key: value for key, value in self._seen.items() if key in counters}
        if self._orphans_pace.due:
            await self._release_orphans(connection, own_id)

    async def _remove(self, connection: Connection, own_id: UUID, dead_id: UUID) -> None:
        """Delete a dead worker's row, so that it claims nothing more, and then release its streams."""
        await worker_rows.remove(connection, dead_id)
        await self._release_orphans(connection, own_id)

    async def _release_orphans(self, connection: Connection, own_id: UUID) -> None:
        """Release the streams whose worker has no row: it is dead, or it has left."""
        with self._orphans_pace.timed():
            orphans = await worker_rows.orphans(connection, own_id)
        for orphan in orphans:
            await release(connection, orphan, ends=self._ends, max_attempts=self._max_attempts)


async def release(
    connection: Connection, orphan: Orphan, *, ends: Ends = AT_ONCE, max_attempts: int, leaving: bool = False
) -> None:
    """Give a stream that lost its worker back to the queue, if its policy allows that; else end it.

    `leaving`: the worker stops in good order.

    A stream without events can always restart, since no client has seen anything of it. A stream of an older history of
    the database cannot, since its clients may have seen more than the log holds now. Only the deaths since the answer
    last grew count against a stream that continues.
    """
    if orphan.rewound:
        await ends.make(connection, End.of_claimed(orphan.fence, REWOUND), orphan.generator)
        return
    may_requeue = orphan.continues or orphan.on_worker_lost == "retry" or not await _tail(connection, orphan.stream_id)
    if may_requeue and (how := await _requeue(connection, orphan, max_attempts, leaving=leaving)):
        await stream_queue.requeue(connection, orphan.fence, how)
        return
    outcome = Outcome.failed("worker_left", WORKER_LEFT_MESSAGE) if leaving else _lost(orphan.attempts)
    await ends.make(connection, End.of_claimed(orphan.fence, outcome), orphan.generator)


def _lost(attempts: int) -> Outcome:
    tried = f" It was tried {attempts} times." if attempts > 1 else ""
    return Outcome.failed("worker_lost", WORKER_LOST_MESSAGE + tried)


async def _requeue(connection: Connection, orphan: Orphan, max_attempts: int, *, leaving: bool) -> Requeue | None:
    """Return how a stream goes back to the queue; None if it was tried often enough."""
    if leaving:
        return stream_queue.LEFT
    if orphan.continues and await event_log.grew(connection, orphan.fence):
        return stream_queue.LOST_AFTER_PROGRESS
    return stream_queue.LOST if orphan.attempts < max_attempts else None


async def _tail(connection: Connection, stream_id: UUID) -> int:
    return (await event_log.tails(connection, [stream_id])).get(stream_id, event_log.NOTHING).seq
