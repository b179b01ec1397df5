"""A worker's lease: its row, and what the heartbeats have found.

While the counter in the row rises, other workers leave this worker's streams alone. Once it has stood still for a whole
lease they delete the row, and this worker learns that from its next heartbeat. The heartbeats are sent by another
thread (`heartbeat`). All of this runs on the worker's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from ..db import worker_rows
from ..db.postgres import Connection, Place
from ..settings import Settings
from .heartbeat import Beat
from .lease_history import LeaseHistory

logger = logging.getLogger(__name__)


class Lease:
    """The row of one worker. `on_change` is called when `take` may have something to return or to raise."""

    def __init__(
        self,
        settings: Settings,
        generators: Sequence[str],
        *,
        has_end_hook: bool = False,
        on_change: Callable[[], None],
    ) -> None:
        self._name = settings.worker_name
        self._concurrency = settings.worker_concurrency
        self._generators = generators
        self._has_end_hook = has_end_hook
        self._past = LeaseHistory(
            lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.worker_heartbeat_seconds
        )
        self._on_change = on_change
        self._connection = 0  # the number of the heartbeat's connection since which its news count
        self._beat: Beat | None = None
        self._failure: Exception | None = None
        self.worker_id: UUID | None = None  # None until the first registration
        self.place: Place | None = None  # of the row, for claims; None while it is not known

    def renew(self) -> int:
        """Forget what earlier heartbeats have found; return the number of the connection for the next ones.

        The worker's own connection is a new one, possibly to another server. So the heartbeat opens one after it: a
        claim must rely on a look at the history of the same database.
        """
        self._connection += 1
        self._beat = self._failure = self.place = None
        return self._connection

    def note(self, beat: Beat) -> None:
        """Note a heartbeat."""
        if beat.worker_id is not None and beat.place is not None:
            self._past.note(beat.history, beat.heartbeat)
        # One of a row that was replaced in the meantime says nothing of the new row.
        if beat.connection == self._connection and beat.worker_id == self.worker_id:
            self._beat, self.place = beat, beat.place
            self._on_change()

    def fail(self, error: Exception) -> None:
        """Note that the heartbeat has lost its connection."""
        self._failure = error
        self._on_change()

    def take(self) -> Beat | None:
        """Return the newest heartbeat, once. If its `place` is None there is no row: then `register`.

        Raises:
            Exception: what the heartbeat has lost its connection by.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        beat, self._beat = self._beat, None
        return beat

    async def register(self, connection: Connection, beat: Beat) -> None:
        """Insert a row for this worker, under a new id, after a heartbeat that found none."""
        worker_id = await worker_rows.register(
            connection, self._name, self._generators, self._concurrency, has_end_hook=self._has_end_hook
        )
        self.place = await worker_rows.place(connection, worker_id)
        self._past.note(beat.history, beat.heartbeat)
        # From here on the other thread may raise the row's counter, and so move the row. What it has found during the
        # registration says nothing of the new row.
        self.worker_id, self._beat = worker_id, None
        logger.info("Worker %s is ready for %s", self._name, ", ".join(self._generators))

    async def lasted(self, connection: Connection, history: str) -> bool:
        """Return whether the claims of this worker were valid until the database left a history."""
        return await self._past.lasted(connection, history, self.worker_id)

    async def give_up(self, connection: Connection) -> None:
        """Delete the row: this worker leaves."""
        if self.worker_id is not None:
            await worker_rows.remove(connection, self.worker_id)
