"""A pod's copy of the API keys that work, so that a request needs no query.

It is read again every few seconds: a revoked key works for that long. An unknown key may be new, so the copy is read at
once, but at most once a second: requests in between wait for the next read. So invalid keys cost almost nothing. While
the database is unreachable, the last copy is valid.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import UUID

import asyncpg

from ..db.postgres import Pool, translated
from ..db.shared_work import seen
from ..errors import ConfigurationError, DatabaseUnreachable, Unavailable
from . import keys
from .keys import ApiKey

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 1.0
# How many requests may wait for the next read. More of them mean that a client sends invalid keys.
MAX_WAITING: Final = 200


class KeyRing:
    """The live keys by their id."""

    def __init__(self, pool: Pool, *, refresh_seconds: float, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._pool = pool
        self._refresh_seconds = refresh_seconds
        self._pause_seconds = pause_seconds
        self._keys: dict[UUID, ApiKey] = {}
        self._next: asyncio.Task[None] | None = None  # the next read for unknown keys
        self._waiting = 0
        self._reading = asyncio.Lock()  # so that an older copy never replaces a newer one
        self._read_at = 0.0
        self._answering = True  # the database answered the last read
        self.reads = 0

    def __len__(self) -> int:
        """Return how many keys work."""
        return len(self._keys)

    def __contains__(self, key_id: object) -> bool:
        """Whether a key works, by the last read."""
        return key_id in self._keys

    async def open(self) -> None:
        """Read the keys for the first time.

        Raises:
            ConfigurationError: the role may not read them, or the database does not answer.
        """
        try:
            await self._read()
        except asyncpg.InsufficientPrivilegeError as error:
            raise ConfigurationError(
                f"The role of BATON_DATABASE_URL may not read the API keys: {error}. Run the SQL of `baton grants` "
                "again, as after each `baton migrate`."
            ) from None
        except Unavailable as error:
            raise DatabaseUnreachable(f"The API keys could not be read. {error}") from error

    async def find(self, key_id: UUID) -> ApiKey | None:
        """Return a key that works; None if there is no such key.

        Raises:
            Unavailable: the key is unknown, and the database does not answer.
        """
        if key_id not in self._keys:
            await self._read_for_unknown()
        return self._keys.get(key_id)

    async def run(self) -> None:
        """Read the keys every few seconds, until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._refresh_seconds)
                try:
                    await self._read()
                except (Unavailable, asyncpg.PostgresError) as error:
                    logger.warning("The API keys cannot be read; the last ones stay valid: %r", error)
        finally:
            if self._next is not None:
                self._next.cancel()

    async def _read(self) -> None:
        async with self._reading:
            self._read_at = asyncio.get_running_loop().time()
            self.reads += 1
            self._answering = False
            async with translated(self._pool):
                self._keys = await keys.live(self._pool)
            self._answering = True

    async def _read_for_unknown(self) -> None:
        """Wait for a read that begins after this call. All waiting requests share it."""
        if self._waiting >= MAX_WAITING:
            if not self._answering:
                raise Unavailable("The credential cannot be checked just now. Try again in a moment.")
            return
        if self._next is None:
            self._next = asyncio.create_task(self._read_next())
            self._next.add_done_callback(seen)
        self._waiting += 1
        try:
            await asyncio.shield(self._next)
        finally:
            self._waiting -= 1

    async def _read_next(self) -> None:
        try:
            since = asyncio.get_running_loop().time() - self._read_at
            await asyncio.sleep(max(0.0, self._pause_seconds - since))
        finally:
            # A request from now on may bring a key that was made after this read began.
            self._next = None
        try:
            await self._read()
        except asyncpg.PostgresError as error:
            raise Unavailable("The credential cannot be checked just now. Try again in a moment.") from error
