"""Verifies that a worker of this database sent a notification: by its seal, in the database's present history.

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

from ..backoff import Backoff
from ..db import seals
from ..db.history import HistoryWatch
from ..db.postgres import Pool, translated
from ..db.shared_work import seen, shared_task
from ..errors import Unavailable

logger = logging.getLogger(__name__)

# How old the last read of the history may be when a client joins what this pod has in memory. A promotion takes longer.
FRESH_SECONDS: Final = 0.2


class NotificationVerifier:
    """The keys and the history that one pod verifies with. `on_new_history` is called when the history changes."""

    def __init__(self, pool: Pool, *, look_seconds: float, on_new_history: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._look_seconds = look_seconds
        self._watch = HistoryWatch(on_new_history)
        self._seals = seals.NONE
        self._keys_due_at = 0.0
        self._now = asyncio.Event()
        self._looked_at = -math.inf  # when the last successful read of the history began
        self._renewing: asyncio.Task[None] | None = None

    def verifies(self, channel: str, payload: str) -> bool:
        """Return whether a worker of this database, in its present history, sent this payload."""
        if self._seals.genuine(channel, payload):
            return True
        if not self._seals.knows(payload):
            # Perhaps a new key. A made-up key id causes no extra reads: there is one each `look_seconds` in any case.
            self._keys_due_at = 0.0
        return False

    def forget(self) -> None:
        """Verify nothing until the keys and the history have been read again."""
        self._seals = seals.NONE
        self._keys_due_at = 0.0
        self._now.set()

    def seal(self, channel: str, text: str, stamp: str) -> str:
        """Seal a payload as a worker does."""
        return self._seals.seal(channel, text, stamp)

    async def renew(self) -> None:
        """Read the history, once for all callers that wait, unless that was done a moment ago.

        A pod that was suspended, or cut off from the database, does not know yet that what it has in memory belongs to
        an older history.

        Raises:
            Unavailable: the database does not answer.
        """
        if time.monotonic() - self._looked_at < FRESH_SECONDS:
            return
        if self._renewing is None or self._renewing.done():
            # A tenant whose requests are stuck must not hold up the read that the others wait for.
            self._renewing = shared_task(self._look(), for_all=True)
            self._renewing.add_done_callback(seen)
        async with translated(self._pool):
            await asyncio.shield(self._renewing)

    async def run(self) -> None:
        """Read the history every `look_seconds`, and the keys when they are due, until cancelled."""
        backoff = Backoff()
        while True:
            self._now.clear()
            try:
                async with translated(self._pool):
                    await self._look()
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning(
                    "The keys that verify notifications cannot be read; the pod reads the log instead: %r", error
                )
                self._seals = seals.NONE
                await backoff.sleep()
                continue
            backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._now.wait()

    async def _look(self) -> None:
        began_at = time.monotonic()
        await self._watch.look(self._pool)
        self._looked_at = began_at
        history = self._watch.history or ""
        if history == self._seals.history and time.monotonic() < self._keys_due_at:
            return
        self._keys_due_at = time.monotonic() + seals.REREAD_SECONDS
        found = await seals.read(self._pool, history)
        if not self._now.is_set():  # else this may come from the server of before
            self._seals = found
