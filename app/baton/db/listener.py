"""One connection that LISTENs and is kept alive: `connecting → listening → degraded → listening …`.

It calls back for each notification, on the event loop. A callback takes O(1) time, or hands the work to a task. After
each (re)connect it listens first and then reports the new state, so that its owner catches up with what it may have
missed. While the state is degraded, the owner polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from ..backoff import Backoff
from .postgres import Connection, connect
from .reconnecting import keep_connected

logger = logging.getLogger(__name__)

# How long the server keeps data that this side does not acknowledge. The server frees a notification only once every
# listener has read it, so a frozen listener would fill the queue of the whole cluster. Only this setting of the server
# ends that.
USER_TIMEOUT_SECONDS: Final = 20

_SET_USER_TIMEOUT = "SELECT set_config('tcp_user_timeout', $1, false)"
_PROBE = "SELECT count(*) FROM pg_listening_channels() AS c WHERE c = ANY ($1)"


class ListenerState(Enum):
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
        on_state: Callable[[ListenerState], None],
        probe_seconds: float = 5,
        connect_seconds: float = 10,
        name: str = "baton listen",
    ) -> None:
        self._dsn = dsn
        self._channels = channels
        self._on_state = on_state
        self._probe_seconds = probe_seconds
        self._connect_seconds = connect_seconds
        self._name = name
        self.state = ListenerState.CONNECTING

    async def run(self) -> None:
        """Listen, over a new connection after every failure."""
        await keep_connected(self._connect, self._listen, on_failure=self._on_failure)

    async def _connect(self) -> Connection:
        return await connect(self._dsn, timeout_seconds=self._connect_seconds, name=self._name)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The LISTEN connection is lost; polling until it is back: %r", error)
        self._set(ListenerState.DEGRADED)

    async def _listen(self, connection: Connection, backoff: Backoff) -> None:
        await connection.execute(_SET_USER_TIMEOUT, str(USER_TIMEOUT_SECONDS * 1000))
        for channel in self._channels:
            await connection.add_listener(channel, self._on_notification)
        backoff.reset()
        self._set(ListenerState.LISTENING)
        await self._watch(connection)

    async def _watch(self, connection: Connection) -> None:
        """Raise once the connection is lost. `SELECT 1` would prove nothing: a pooler answers it from any session."""
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
                raise ConnectionError("the session behind it has lost its LISTEN")

    def _on_notification(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self._channels[channel](str(payload))

    def _set(self, state: ListenerState) -> None:
        self.state = state
        self._on_state(state)
