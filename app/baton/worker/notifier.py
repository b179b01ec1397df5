"""A worker's notifications of what it appended, sealed and sent over a connection of their own.

Everything here may be late or lost: pods find what was not announced by polling. The keys of the seals and the history
of the database are read again every `seals.REREAD_SECONDS`, and at once after a reconnect or `renew_seals`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

import asyncpg

from ..backoff import Backoff
from ..db import event_log, history, notifications, seals
from ..db.event_log import Append
from ..db.postgres import CONNECTION_ERRORS, connect
from ..errors import ConfigurationError
from ..observability.metrics import WorkerMetrics

logger = logging.getLogger(__name__)


class Notifier:
    """Announces to pods what was appended. What cannot be sent is dropped, and found by polling."""

    MAX_WAITING: Final = 10_000

    def __init__(self, dsn: str, *, with_events: bool, metrics: WorkerMetrics, prepare: bool = True) -> None:
        self._dsn = dsn
        self._prepare = prepare
        self._with_events = with_events
        self._metrics = metrics
        self._waiting: list[Append] = []
        self._committed_at = 0.0  # when the first of these was
        self._wake = asyncio.Event()
        self._seals_due_at = 0.0

    def announce(self, appends: Sequence[Append]) -> None:
        """Queue the announcement of batches that were committed."""
        if not self._waiting:
            self._committed_at = time.time()
        if len(self._waiting) < self.MAX_WAITING:
            self._waiting.extend(appends)
            self._wake.set()

    def renew_seals(self) -> None:
        """Read the keys and the history again before anything else is sent."""
        self._seals_due_at = 0.0

    async def run(self) -> None:
        """Send until cancelled, with a new connection whenever one is lost."""
        backoff = Backoff()
        while True:
            try:
                await self._send_all(backoff)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
                logger.warning("Notifications are not being sent: %r", error)
                await backoff.sleep()

    async def _send_all(self, backoff: Backoff) -> None:
        connection = await connect(self._dsn, name="baton worker notify", prepare=self._prepare)
        self.renew_seals()
        sealing = seals.NONE
        try:
            await event_log.free_queue(connection)
            while True:
                await self._wake.wait()
                self._wake.clear()
                if time.monotonic() >= self._seals_due_at:
                    self._seals_due_at = time.monotonic() + seals.REREAD_SECONDS
                    sealing = await seals.read(connection, await history.read(connection))
                appends, self._waiting = self._waiting, []
                payloads = notifications.pack(appends, self._committed_at, sealing, with_events=self._with_events)
                await event_log.notify(connection, notifications.EVENTS_CHANNEL, payloads)
                self._metrics.notifications += len(payloads)
                backoff.reset()
        finally:
            connection.terminate()
