"""Sends hints as soon as possible, in the order in which they were given. What cannot be sent is dropped.

Hints may be late or lost: their receivers find the same by polling. Batches that arrive while others are being sent
are packed together. Those are signed: the signing keys and the history of the database are read again every
`signing_keys.REREAD_SECONDS`, and at once after a failure or `renew_keys`. A transport that needs a connection to the
database gets the one for that. A worker has one of its own, from its first hint on. A pod takes one from its pool for
each statement: pods are many, send little, and their connections count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import asyncpg

from ..backoff import Backoff, retry
from ..db import history, notifications, signing_keys
from ..db.event_log import Append
from ..db.notifications import EVENTS_CHANNEL
from ..db.postgres import Connection, Pool, connect, translated
from ..db.reconnecting import keep_connected
from ..db.signing_keys import SigningKeys
from ..errors import Unavailable
from .hint import Hint
from .transport import Message, Transport

logger = logging.getLogger(__name__)

# Batches of the log that were committed, which pods are to apply, and all other hints.
Sendable: TypeAlias = Append | Hint


class Sender:
    """Sends the hints of one process about one database, which owns it and awaits `run()`.

    It takes connections from `pool`, or without one has its own, whose name is `name`. `count` is called with the
    number of messages that were sent.
    """

    MAX_WAITING: Final = 10_000

    def __init__(
        self,
        dsn: str,
        transport: Transport,
        *,
        name: str,
        with_events: bool,
        prepare: bool = True,
        pool: Pool | None = None,
        count: Callable[[int], None] = lambda _sent: None,
    ) -> None:
        self._dsn = dsn
        self._transport = transport
        self._name = name
        self._prepare = prepare
        self._pool = pool
        self._with_events = with_events
        self._count = count
        self._waiting: list[Sendable] = []
        self._committed_at = 0.0  # when the first batch of these was
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._keys = signing_keys.NONE
        self._keys_due_at = 0.0

    def send(self, hints: Sequence[Sendable]) -> None:
        """Queue hints about what was committed."""
        if not self._waiting:
            self._committed_at = time.time()
        if len(self._waiting) < self.MAX_WAITING:
            self._waiting.extend(hints)
            self._idle.clear()
            self._wake.set()

    def renew_keys(self) -> None:
        """Read the keys and the history again before the next batch is announced."""
        self._keys_due_at = 0.0

    async def settle(self, timeout_seconds: float) -> None:
        """Wait until all hints were sent or dropped, but not for longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled, over a new connection whenever one is lost."""
        await self._wake.wait()
        if self._pool is None:
            await keep_connected(self._connect, self._keep_sending, on_failure=self._on_failure)
        else:
            pool = self._pool
            errors = (Unavailable, asyncpg.PostgresError)
            await retry(lambda backoff: self._send_over(pool, backoff), errors=errors, on_failure=self._on_failure)

    async def _connect(self) -> Connection:
        return await connect(self._dsn, name=self._name, prepare=self._prepare)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("Hints are not being sent: %r", error)

    async def _keep_sending(self, connection: Connection, backoff: Backoff) -> None:
        self.renew_keys()
        while True:
            await self._wake.wait()
            await self._send(connection)
            backoff.reset()

    async def _send_over(self, pool: Pool, backoff: Backoff) -> None:
        self.renew_keys()
        while True:
            await self._wake.wait()
            async with translated(pool), pool.acquire() as connection:
                await self._send(connection)
            backoff.reset()

    async def _send(self, connection: Connection) -> None:
        """Send what waits. If that fails, it is lost."""
        self._wake.clear()
        hints, self._waiting = self._waiting, []
        try:
            messages = await self._packed(connection, hints)
            await self._transport.send(connection, messages)
        finally:
            if not self._waiting:
                self._idle.set()
        self._count(len(messages))

    async def _packed(self, connection: Connection, hints: Iterable[Sendable]) -> list[Message]:
        committed_at = self._committed_at
        appends = [item for item in hints if isinstance(item, Append)]
        messages = [Message(item.channel, item.payload, item.stream) for item in hints if isinstance(item, Hint)]
        if appends:
            keys = await self._current_keys(connection)
            messages += self._announcements(appends, committed_at, keys)
        return messages

    async def _current_keys(self, connection: Connection) -> SigningKeys:
        if time.monotonic() >= self._keys_due_at:
            self._keys_due_at = time.monotonic() + signing_keys.REREAD_SECONDS
            self._keys = await signing_keys.read(connection, await history.read(connection))
        return self._keys

    def _announcements(self, appends: Sequence[Append], committed_at: float, keys: SigningKeys) -> Iterable[Message]:
        if not self._transport.by_stream:
            payloads = notifications.pack(appends, committed_at, keys, with_events=self._with_events)
            return [Message(EVENTS_CHANNEL, payload) for payload in payloads]
        by_stream: dict[str, list[Append]] = {}
        for item in appends:
            by_stream.setdefault(item.stream_id.hex, []).append(item)
        return [
            Message(EVENTS_CHANNEL, payload, stream)
            for stream, items in by_stream.items()
            for payload in notifications.pack(items, committed_at, keys, with_events=self._with_events)
        ]
