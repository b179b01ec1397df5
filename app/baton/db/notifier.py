"""Sends notifications about appended batches, over a connection of its own, as soon as possible.

Notifications may be late or lost: a pod finds a batch that was not announced by its next poll. The signing keys and the
history of the database are read again every `signing_keys.REREAD_SECONDS`, and at once after a reconnect or
`renew_keys`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..backoff import Backoff
from . import history, notifications, signing_keys
from .event_log import Append
from .postgres import Connection, connect
from .reconnecting import keep_connected

logger = logging.getLogger(__name__)


class Notifier:
    """Announces appended batches to pods. Announcements that cannot be sent are dropped.

    `name` is that of the connection, for the server. `count` is called with the number of notifications that were sent.
    """

    MAX_WAITING: Final = 10_000

    def __init__(
        self,
        dsn: str,
        *,
        name: str,
        with_events: bool,
        prepare: bool = True,
        count: Callable[[int], None] = lambda _sent: None,
    ) -> None:
        self._dsn = dsn
        self._name = name
        self._prepare = prepare
        self._with_events = with_events
        self._count = count
        self._waiting: list[Append] = []
        self._committed_at = 0.0  # when the first of these was
        self._wake = asyncio.Event()
        self._keys_due_at = 0.0

    def announce(self, appends: Sequence[Append]) -> None:
        """Queue announcements of batches that were committed."""
        if not self._waiting:
            self._committed_at = time.time()
        if len(self._waiting) < self.MAX_WAITING:
            self._waiting.extend(appends)
            self._wake.set()

    def renew_keys(self) -> None:
        """Read the keys and the history again before the next notification."""
        self._keys_due_at = 0.0

    async def run(self) -> None:
        """Send until cancelled, over a new connection whenever one is lost."""
        await keep_connected(self._connect, self._send, on_failure=self._on_failure)

    async def _connect(self) -> Connection:
        return await connect(self._dsn, name=self._name, prepare=self._prepare)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("Notifications are not being sent: %r", error)

    async def _send(self, connection: Connection, backoff: Backoff) -> None:
        self.renew_keys()
        keys = signing_keys.NONE
        await notifications.free_queue(connection)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if time.monotonic() >= self._keys_due_at:
                self._keys_due_at = time.monotonic() + signing_keys.REREAD_SECONDS
                keys = await signing_keys.read(connection, await history.read(connection))
            appends, self._waiting = self._waiting, []
            payloads = notifications.pack(appends, self._committed_at, keys, with_events=self._with_events)
            await notifications.notify(connection, notifications.EVENTS_CHANNEL, payloads)
            self._count(len(payloads))
            backoff.reset()
