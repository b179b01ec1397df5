"""Verifies that a worker of this database sent a notification: by its signature, in the database's present history.

Keys and history may change at any time. So both are read again at intervals, and at once after the LISTEN connection
was lost, since the next one may lead to another server. Until they are known, no notification verifies. That costs only
time: an unverified notification makes the pod read the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Final

import asyncpg

from ..backoff import Backoff, retry
from ..db import notifications, signing_keys
from ..db.history import HistoryWatch
from ..db.postgres import Pool, translated
from ..db.shared_work import seen, shared_task
from ..errors import Unavailable

logger = logging.getLogger(__name__)

# How old the last read of the history may be when a client joins what this pod has in memory. A promotion takes longer.
FRESH_SECONDS: Final = 0.2


class NotificationVerifier:
    """The keys and the history that one pod verifies with. `on_new_history` is called when the history changes."""

    def __init__(self, pool: Pool, *, check_seconds: float, on_new_history: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._check_seconds = check_seconds
        self._watch = HistoryWatch(on_new_history)
        self.keys = signing_keys.NONE
        self._keys_due_at = 0.0
        self._now = asyncio.Event()
        self._read_at = -math.inf  # when the last successful read of the history began
        self._renewing: asyncio.Task[None] | None = None

    def verifies(self, channel: str, payload: str) -> bool:
        """Return whether a worker of this database, in its present history, sent this payload."""
        if notifications.is_signed(self.keys, channel, payload):
            return True
        if notifications.has_unknown_key(self.keys, payload):
            # Perhaps a new key. A made-up key id causes no extra reads: there is one each `check_seconds` in any case.
            self._keys_due_at = 0.0
        return False

    def forget(self) -> None:
        """Verify nothing until the keys and the history have been read again."""
        self.keys = signing_keys.NONE
        self._keys_due_at = 0.0
        self._now.set()

    async def renew(self) -> None:
        """Read the history, once for all callers that wait, unless that was done a moment ago.

        A pod that was suspended, or cut off from the database, does not know yet that what it has in memory belongs to
        an older history.

        Raises:
            Unavailable: the database does not answer.
        """
        if time.monotonic() - self._read_at < FRESH_SECONDS:
            return
        if self._renewing is None or self._renewing.done():
            # A tenant whose requests are stuck must not hold up the read that the others wait for.
            self._renewing = shared_task(self._read(), for_all=True)
            self._renewing.add_done_callback(seen)
        async with translated(self._pool):
            await asyncio.shield(self._renewing)

    async def run(self) -> None:
        """Read the history every `check_seconds`, and the keys when they are due, until cancelled."""
        await retry(self._keep_reading, errors=(Unavailable, asyncpg.PostgresError), on_failure=self._on_failure)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The keys that verify notifications cannot be read; the pod reads the log instead: %r", error)
        self.keys = signing_keys.NONE

    async def _keep_reading(self, backoff: Backoff) -> None:
        while True:
            self._now.clear()
            async with translated(self._pool):
                await self._read()
            backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await self._now.wait()

    async def _read(self) -> None:
        began_at = time.monotonic()
        await self._watch.check(self._pool)
        self._read_at = began_at
        history = self._watch.history or ""
        if history == self.keys.history and time.monotonic() < self._keys_due_at:
            return
        self._keys_due_at = time.monotonic() + signing_keys.REREAD_SECONDS
        found = await signing_keys.read(self._pool, history)
        if not self._now.is_set():  # otherwise the previous server may have answered
            self.keys = found
