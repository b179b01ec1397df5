"""One connection that LISTENs, kept alive: `connecting → listening → degraded → listening …`.

It calls back for each notification, on the event loop: a callback takes O(1) time or hands the work on. After each
(re)connect it listens first and only then tells its owner so, who catches up with what it cannot have heard. While it
is degraded its owner polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import asyncpg

from .backoff import Backoff
from .database import CONNECTION_ERRORS, Connection, connect
from .errors import ConfigurationError

logger = logging.getLogger(__name__)

_PROBE = "SELECT count(*) FROM pg_listening_channels() AS c WHERE c = ANY ($1)"


class State(Enum):
    """What a listener is doing."""

    CONNECTING = "connecting"
    LISTENING = "listening"
    DEGRADED = "degraded"


class Listener:
    """Listens on some channels until its `run()` is cancelled."""

    def __init__(
        self,
        dsn: str,
        channels: Mapping[str, Callable[[str], None]],
        *,
        on_state: Callable[[State], None],
        probe_seconds: float = 5,
        name: str = "baton listen",
    ) -> None:
        self._dsn = dsn
        self._channels = channels
        self._on_state = on_state
        self._probe_seconds = probe_seconds
        self._name = name
        self.state = State.CONNECTING

    async def run(self) -> None:
        """Listen, and begin again after every failure."""
        backoff = Backoff()
        while True:
            try:
                await self._listen(backoff)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
                logger.warning("The LISTEN connection is lost; polling until it is back: %r", error)
                self._set(State.DEGRADED)
                await backoff.sleep()

    async def _listen(self, backoff: Backoff) -> None:
        connection = await connect(self._dsn, name=self._name)
        try:
            for channel in self._channels:
                await connection.add_listener(channel, self._heard)
            backoff.reset()
            self._set(State.LISTENING)
            await self._watch(connection)
        finally:
            # Never close(): it talks to a server that may not answer.
            connection.terminate()

    async def _watch(self, connection: Connection) -> None:
        """Return when the connection is lost. `SELECT 1` would prove nothing: a pooler answers that from anywhere."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        while True:
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
                raise ConnectionError("the server closed it")
            except TimeoutError:
                pass
            listening = await connection.fetchval(_PROBE, list(self._channels), timeout=self._probe_seconds)
            if listening != len(self._channels):
                raise ConnectionError("the session behind it has forgotten its LISTEN")

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self._channels[channel](str(payload))

    def _set(self, state: State) -> None:
        self.state = state
        self._on_state(state)
