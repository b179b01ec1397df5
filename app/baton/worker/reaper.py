"""Finds dead workers, and sees to the streams that they had.

A worker is dead when its counter stood still for a whole lease while this reaper watched over one uninterrupted
connection. So no clock is compared with another, and an outage of Postgres, which stops all counters, kills nobody:
whoever lost its connection, or could not look for a while, begins to watch anew.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from ..db import event_log, streams, worker_rows
from ..db.postgres import Connection
from ..db.streams import REWOUND
from ..db.worker_rows import Orphan
from ..outcome import WORKER_LOST_MESSAGE, Outcome
from ..pace import Pace

logger = logging.getLogger(__name__)


class Reaper:
    """Watches the other workers, for one worker."""

    def __init__(
        self,
        *,
        lease_seconds: float,
        max_attempts: int,
        max_pause_seconds: float = math.inf,
        on_end: Callable[[Outcome, str], None] = lambda _outcome, _generator: None,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._max_pause_seconds = max_pause_seconds
        self._on_end = on_end
        self._looked_at = self._steady_since = time.monotonic()
        self._seen: dict[UUID, tuple[int, float]] = {}
        # It reads all that has run since vacuum could last remove anything.
        self._orphans_pace = Pace(factor=100, least_seconds=lease_seconds)
        self._orphans_pace.put_off()

    def forget(self) -> None:
        """Begin to watch anew, after the connection was interrupted."""
        self._seen.clear()
        self._steady_since = time.monotonic()

    def steady_seconds(self) -> float:
        """Return for how long it has watched without a pause that was too long.

        After a stall of the network or of this process the others' counters stand where they stood before it, since
        they could not raise them either.
        """
        now = time.monotonic()
        if now - self._looked_at > self._max_pause_seconds:
            self.forget()
        return now - self._steady_since

    async def look(self, connection: Connection, own_id: UUID, counters: Mapping[UUID, int]) -> None:
        """Look at the workers' counters; bury the workers that stood still for too long."""
        self.steady_seconds()
        self._looked_at = now = time.monotonic()
        for worker_id, counter in counters.items():
            seen, since = self._seen.get(worker_id, (-1, now))
            if seen != counter:
                self._seen[worker_id] = (counter, now)
            elif worker_id != own_id and now - since > self._lease_seconds:
                logger.warning("Worker %s is dead: no sign of life for %.1f s.", worker_id, now - since)
                await self._bury(connection, own_id, worker_id)
        self._seen = {key: value for key, value in self._seen.items() if key in counters}
        if self._orphans_pace.due:
            await self._release_orphans(connection, own_id)

    async def _bury(self, connection: Connection, own_id: UUID, dead_id: UUID) -> None:
        """Remove a dead worker's row, so that it claims no more, and then release the streams that it had."""
        await worker_rows.remove(connection, dead_id)
        await self._release_orphans(connection, own_id)

    async def _release_orphans(self, connection: Connection, own_id: UUID) -> None:
        """Release the streams whose worker has no row: it is dead, or has left without them."""
        with self._orphans_pace.timed():
            orphans = await worker_rows.orphans(connection, own_id)
        for orphan in orphans:
            outcome = await release(connection, orphan, max_attempts=self._max_attempts)
            if outcome is not None:
                self._on_end(outcome, orphan.generator)


async def release(
    connection: Connection, orphan: Orphan, *, max_attempts: int, uncount_attempt: bool = False
) -> Outcome | None:
    """Give a stream that has lost its worker to another one, if it allows that; else end it with what it has.

    Return the end that this gave it.

    One that has emitted nothing can always start again: nobody has seen anything of it. One of an older history of the
    database cannot, since its clients may have seen more than the log holds now.
    """
    if orphan.rewound:
        return REWOUND if await streams.end_claimed(connection, orphan.fence, REWOUND) else None
    may_retry = orphan.on_worker_lost == "retry" or not await _tail(connection, orphan.stream_id)
    if may_retry and (uncount_attempt or orphan.attempts < max_attempts):
        await streams.requeue(connection, orphan.fence, uncount_attempt=uncount_attempt)
        return None
    tried = f" It was tried {orphan.attempts} times." if orphan.attempts > 1 else ""
    outcome = Outcome.failed("worker_lost", WORKER_LOST_MESSAGE + tried)
    return outcome if await streams.end_claimed(connection, orphan.fence, outcome) else None


async def _tail(connection: Connection, stream_id: UUID) -> int:
    return (await event_log.tails(connection, [stream_id])).get(stream_id, event_log.NOTHING).seq
