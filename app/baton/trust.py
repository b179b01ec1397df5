"""Which notifications a pod believes: keeps the keys of their seals and the history of the database at hand.

Keys and history may change at any time. So they are read again every now and then, and at once when the
LISTEN connection was lost, since it may lead to another server now. Until they are known, nothing is believed, which
costs time alone: what a pod does not believe makes it read the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import asyncpg

from . import seals
from .backoff import Backoff
from .database import Pool, translated
from .errors import Unavailable
from .history import HistoryWatch

logger = logging.getLogger(__name__)


class Trust:
    """The seals that one pod believes. Owned by the pod, which runs `run`, and hears from it of a new history."""

    def __init__(self, pool: Pool, *, look_seconds: float, on_new_history: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._look_seconds = look_seconds
        self._on_new_history = on_new_history
        self._watch = HistoryWatch()
        self._seals = seals.NONE
        self._keys_due_at = 0.0
        self._now = asyncio.Event()

    def believes(self, channel: str, payload: str) -> bool:
        """Return whether a worker of this database, in its present history, sent this payload."""
        if self._seals.genuine(channel, payload):
            return True
        if not self._seals.knows(payload):
            # A new key. Whoever makes up keys causes a look, and those that come anyway are no rarer.
            self._keys_due_at = 0.0
        return False

    def forget(self) -> None:
        """Believe nothing until the keys and the history were read again."""
        self._seals = seals.NONE
        self._keys_due_at = 0.0
        self._now.set()

    def seal(self, channel: str, text: str, stamp: str) -> str:
        """Seal a payload as a worker does."""
        return self._seals.seal(channel, text, stamp)

    async def run(self) -> None:
        """Read the history every `look_seconds`, and the keys when they are due, until cancelled."""
        backoff = Backoff()
        while True:
            self._now.clear()
            try:
                async with translated():
                    await self._look()
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning("The keys of notifications cannot be read, and pods read the log instead: %r", error)
                self._seals = seals.NONE
                await backoff.sleep()
                continue
            backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._now.wait()

    async def _look(self) -> None:
        before = self._watch.history
        await self._watch.look(self._pool)
        history = self._watch.history or ""
        if before not in {None, history}:
            logger.error("The database is of another history than before: it was restored, or a standby was promoted.")
            self._on_new_history()
        if history == self._seals.history and time.monotonic() < self._keys_due_at:
            return
        self._keys_due_at = time.monotonic() + seals.REREAD_SECONDS
        found = await seals.read(self._pool, history)
        if not self._now.is_set():  # else this may be what another server said
            self._seals = found
