"""Which notifications a pod believes: it keeps the keys that sign them and the history of the database at hand.

Keys and history may change at any time. So both are read again at intervals, and at once after the LISTEN connection
was lost, since it may lead to another server now. Until they are known, nothing is believed. That costs only time: a
notification that a pod does not believe makes it read the log.
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


# How old the last look may be when a client joins what this pod has in memory. A promotion takes longer.
FRESH_SECONDS: Final = 0.2


class Trust:
    """The signing keys that a pod believes. The pod runs `run`, which calls `on_new_history` when that changes."""

    def __init__(self, pool: Pool, *, look_seconds: float, on_new_history: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._look_seconds = look_seconds
        self._watch = HistoryWatch(on_new_history)
        self.keys = signing_keys.NONE
        self._keys_due_at = 0.0
        self._now = asyncio.Event()
        self._looked_at = -math.inf  # when the last look that succeeded began
        self._renewing: asyncio.Task[None] | None = None

    def believes(self, channel: str, payload: str) -> bool:
        """Return whether a worker of this database, in its present history, sent this payload."""
        if notifications.is_signed(self.keys, channel, payload):
            return True
        if notifications.has_unknown_key(self.keys, payload):
            # Perhaps a new key. A made-up key id causes no more looks than there are anyway: one each `look_seconds`.
            self._keys_due_at = 0.0
        return False

    def forget(self) -> None:
        """Believe nothing until the keys and the history were read again."""
        self.keys = signing_keys.NONE
        self._keys_due_at = 0.0
        self._now.set()

    async def renew(self) -> None:
        """Look at the history, once for all that wait, unless that was done just now.

        A pod that was stopped, or cut off from the database, does not know yet that what it has in memory is of an
        older history.

        Raises:
            Unavailable: the database does not answer.
        """
        if time.monotonic() - self._looked_at < FRESH_SECONDS:
            return
        if self._renewing is None or self._renewing.done():
            # A tenant whose requests are stuck must not hold up the look that the others wait for.
            self._renewing = shared_task(self._look(), for_all=True)
            self._renewing.add_done_callback(seen)
        async with translated(self._pool):
            await asyncio.shield(self._renewing)

    async def run(self) -> None:
        """Read the history every `look_seconds`, and the keys when they are due, until cancelled."""
        await retry(self._keep_looking, errors=(Unavailable, asyncpg.PostgresError), on_failure=self._on_failure)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The keys of notifications cannot be read, so this pod reads the log instead: %r", error)
        self.keys = signing_keys.NONE

    async def _keep_looking(self, backoff: Backoff) -> None:
        while True:
            self._now.clear()
            async with translated(self._pool):
                await self._look()
            backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._now.wait()

    async def _look(self) -> None:
        began_at = time.monotonic()
        await self._watch.check(self._pool)
        self._looked_at = began_at
        history = self._watch.history or ""
        if history == self.keys.history and time.monotonic() < self._keys_due_at:
            return
        self._keys_due_at = time.monotonic() + signing_keys.REREAD_SECONDS
        found = await signing_keys.read(self._pool, history)
        if not self._now.is_set():  # else this may be what another server said
            self.keys = found
