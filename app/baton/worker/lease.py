"""A worker's lease: its row, and the heartbeats that raise the row's counter.

While the counter rises, other workers leave this worker's streams alone. Once it has stood still for a whole lease they
delete the row, and this worker notices at its next heartbeat. All of this runs on the worker's control loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from ..db import worker_rows
from ..db.history import HistoryWatch
from ..db.postgres import Connection, Place
from ..settings import Settings
from .lease_history import Heartbeat, LeaseHistory

logger = logging.getLogger(__name__)


class Lease:
    """The row of one worker. `on_new_history` is called when the database may have gone back in time."""

    def __init__(self, settings: Settings, generators: Sequence[str], *, on_new_history: Callable[[], None]) -> None:
        self._name = settings.worker_name
        self._concurrency = settings.worker_concurrency
        self._generators = generators
        self._watch = HistoryWatch(on_new_history)
        self._past = LeaseHistory(
            lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.worker_heartbeat_seconds
        )
        self._latest = Heartbeat(0.0, {})
        self.worker_id: UUID | None = None  # None until the first registration
        self.place: Place | None = None  # of the row, for claims

    async def renew(
        self, connection: Connection, tokens: int, silences: Mapping[UUID, float]
    ) -> Mapping[UUID, int] | None:
        """Send a heartbeat; return all workers' counters from before it, or None if there is no row: then `register`.

        `tokens` and `silences`: see `worker_rows.heartbeat`.
        """
        counters = await self._watch.check(connection)
        self._latest = Heartbeat(time.monotonic(), counters)
        if self.worker_id is None:
            return None
        place = await worker_rows.heartbeat(connection, self.worker_id, tokens, silences)
        if place is None:
            return None
        self.place = place
        self._note()
        return counters

    async def register(self, connection: Connection) -> None:
        """Insert a row for this worker, under a new id."""
        self.worker_id = await worker_rows.register(connection, self._name, self._generators, self._concurrency)
        self.place = await worker_rows.place(connection, self.worker_id)
        self._note()
        logger.info("Worker %s is ready for %s", self._name, ", ".join(self._generators))

    async def lasted(self, connection: Connection, history: str) -> bool:
        """Return whether the claims of this worker were valid until the database left a history."""
        return await self._past.lasted(connection, history, self.worker_id)

    async def give_up(self, connection: Connection) -> None:
        """Delete the row: this worker leaves."""
        if self.worker_id is not None:
            await worker_rows.remove(connection, self.worker_id)

    def _note(self) -> None:
        self._past.note(self._watch.history or "", self._latest)
