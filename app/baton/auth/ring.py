"""A pod's copy of the API keys that work, so that a request needs no query.

It is read again every few seconds: a revoked key works for that long. An unknown key may be new, so the copy is read at
once, but at most once a second: requests in between wait for the next read. So invalid keys cost almost nothing. While
the database is unreachable, the last copy is valid.

Of several databases, each has all keys. A key works if one of them has it, and none that has ever answered about it
says that it was revoked: a revocation that has not reached all of them counts. The last copy of a database that is away
stays valid, and the others are not kept waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
# How long one of several databases may take to answer. For the only one, it is the time that its pool allows.
PATIENCE_SECONDS: Final = 2.0

_FAILURES: Final = (Unavailable, asyncpg.PostgresError)


@dataclass(slots=True)
class _Copy:
    """The live keys of one database, as of its last answer."""

    keys: dict[UUID, ApiKey] = field(default_factory=dict)
    known: bool = False  # it has answered once
    failure: Exception | None = None  # of the last read


class KeyRing:
    """The live keys by their id.

    `pools` returns a pool for each database, and None for one that has not been connected yet. It is called for each
    read. What is known of a database whose pool is not returned any more is forgotten.
    """

    def __init__(
        self,
        pools: Callable[[], Sequence[Pool | None]],
        *,
        refresh_seconds: float,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._pools = pools
        self._refresh_seconds = refresh_seconds
        self._pause_seconds = pause_seconds
        self._copies: dict[Pool, _Copy] = {}
        self._complete = True  # every database has answered once
        self._revoked: set[UUID] = set()  # those that some database had as live; a revocation is final
        self._keys: dict[UUID, ApiKey] = {}
        self._next: asyncio.Task[None] | None = None  # the next read for unknown keys
        self._waiting = 0
        self._reading = asyncio.Lock()  # so that an older copy never replaces a newer one
        self._read_at = 0.0
        self._answering = True  # a database answered the last read
        self.reads = 0

    def __len__(self) -> int:
        """Return how many keys work."""
        return len(self._keys)

    def __contains__(self, key_id: object) -> bool:
        """Whether a key works, by the last read."""
        return key_id in self._keys

    async def open(self) -> None:
        """Read the keys for the first time. Of several databases, one has to answer.

        Raises:
            ConfigurationError: the role may not read them, or no database answers.
        """
        try:
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await self._read()
        except Unavailable as error:
            raise DatabaseUnreachable(f"The API keys could not be read. {error}") from error
        for failure in self._failures():
            if isinstance(failure, asyncpg.InsufficientPrivilegeError):
                whose = "BATON_DATABASE_URL" if len(self._copies) == 1 else "one of BATON_DATABASES"
                raise ConfigurationError(
                    f"The role of {whose} may not read the API keys: {failure}. Run the SQL of `baton grants` again, "
                    "as after each `baton migrate`."
                ) from None

    async def find(self, key_id: UUID) -> ApiKey | None:
        """Return a key that works; None if there is no such key.

        Raises:
            Unavailable: the key is unknown, and no database answers, or one that may have it has never answered.
        """
        if key_id not in self._keys:
            await self._read_for_unknown()
        found = self._keys.get(key_id)
        if found is None and not self._complete:
            raise _unavailable()
        return found

    async def run(self) -> None:
        """Read the keys every few seconds, until cancelled."""
        try:
            while True:
                elapsed_seconds = asyncio.get_running_loop().time() - self._read_at
                await asyncio.sleep(max(0.0, self._refresh_seconds - elapsed_seconds))
                with contextlib.suppress(*_FAILURES):
                    await self._read()
                for failure in self._failures():
                    logger.warning("The API keys cannot be read; the last ones stay valid: %r", failure)
        finally:
            if self._next is not None:
                self._next.cancel()

    def _failures(self) -> list[Exception]:
        return [copy.failure for copy in self._copies.values() if copy.failure is not None]

    async def _read(self) -> None:
        """Read the keys of all databases at once.

        Raises:
            Unavailable: no database answers.
            PostgresError: none lets this role read them.
        """
        async with self._reading:
            self._read_at = asyncio.get_running_loop().time()
            self.reads += 1
            self._answering = False
            pools = self._pools()
            self._copies = {pool: self._copies.get(pool) or _Copy() for pool in pools if pool is not None}
            patience_seconds = None if len(pools) == 1 else PATIENCE_SECONDS
            async with asyncio.TaskGroup() as reads:
                for pool, copy in self._copies.items():
                    reads.create_task(_read_one(pool, copy, patience_seconds))
            await self._note_revoked(patience_seconds)
            self._keys = {
                key_id: key
                for copy in self._copies.values()
                for key_id, key in copy.keys.items()
                if key_id not in self._revoked
            }
            self._complete = None not in pools and all(copy.known for copy in self._copies.values())
            failures = self._failures()
            if len(failures) == len(self._copies):
                raise failures[0] if failures else _unavailable()
            self._answering = True

    async def _note_revoked(self, patience_seconds: float | None) -> None:
        """Ask each database that answers about the keys that are live in others only. Seldom there are any."""
        live = {key_id for copy in self._copies.values() for key_id in copy.keys}
        for pool, copy in self._copies.items():
            elsewhere = live - copy.keys.keys() - self._revoked
            if not elsewhere or copy.failure is not None:
                continue
            try:
                async with translated(pool, patience_seconds):
                    self._revoked |= await keys.revoked(pool, elsewhere)
            except _FAILURES as error:
                copy.failure = error

    async def _read_for_unknown(self) -> None:
        """Wait for a read that begins after this call. All waiting requests share it."""
        if self._waiting >= MAX_WAITING:
            if not self._answering:
                raise _unavailable()
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
            raise _unavailable() from error


async def _read_one(pool: Pool, copy: _Copy, patience_seconds: float | None) -> None:
    """Read the keys of one database. If that fails, its last copy stays."""
    try:
        async with translated(pool, patience_seconds):
            copy.keys = await keys.live(pool)
        copy.known, copy.failure = True, None
    except _FAILURES as error:
        copy.failure = error


def _unavailable() -> Unavailable:
    return Unavailable("The credential cannot be checked just now. Try again in a moment.")
