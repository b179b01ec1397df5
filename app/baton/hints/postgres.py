"""LISTEN and NOTIFY: one connection that LISTENs and is kept alive: `connecting → listening → degraded → listening …`.

After each (re)connect it listens first and then reports the new state, so that its owner catches up with what it may
have missed. Postgres wakes every listener of the database for every notification, and each gets those of all streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from ..backoff import Backoff
from ..db import notifications
from ..db.postgres import Connection, connect
from ..db.reconnecting import keep_connected
from .transport import EVERYTHING, HintState, Listening, Message, Owner

logger = logging.getLogger(__name__)

# How long the server keeps data that this side does not acknowledge. The server frees a notification only once every
# listener has read it, so a frozen listener would fill the queue of the whole cluster. Only this setting of the server
# ends that.
USER_TIMEOUT_SECONDS: Final = 20

_SET_USER_TIMEOUT = "SELECT set_config('tcp_user_timeout', $1, false)"
_PROBE = "SELECT count(*) FROM pg_listening_channels() AS c WHERE c = ANY ($1)"


class PostgresTransport:
    """Listens on its owner's channels, and notifies."""

    by_stream = False

    def __init__(
        self,
        dsn: str,
        owner: Owner,
        *,
        probe_seconds: float = 5,
        connect_seconds: float = 10,
        name: str = "baton listen",
    ) -> None:
        self._dsn = dsn
        self._owner = owner
        self._probe_seconds = probe_seconds
        self._connect_seconds = connect_seconds
        self._name = name
        self._may_be_full = True
        self.state = HintState.CONNECTING

    def listen(self, stream: str) -> Listening:
        """Do nothing: the notifications about all streams arrive."""
        return EVERYTHING

    async def send(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Notify, in one transaction for each channel."""
        if self._may_be_full:
            await notifications.free_queue(connection)
        self._may_be_full = True  # unless it has room for these
        by_channel: defaultdict[str, list[str]] = defaultdict(list)
        for message in messages:
            by_channel[message.channel].append(message.payload)
        for channel, payloads in by_channel.items():
            await notifications.notify(connection, channel, payloads)
        self._may_be_full = False

    async def run(self) -> None:
        """Listen, over a new connection after every failure."""
        await keep_connected(self._connect, self._listen, on_failure=self._on_failure)

    async def _connect(self) -> Connection:
        return await connect(self._dsn, timeout_seconds=self._connect_seconds, name=self._name)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The LISTEN connection is lost; polling until it is back: %r", error)
        self._set(HintState.DEGRADED)

    async def _listen(self, connection: Connection, backoff: Backoff) -> None:
        await connection.execute(_SET_USER_TIMEOUT, str(USER_TIMEOUT_SECONDS * 1000))
        for channel in self._owner.handlers:
            await connection.add_listener(channel, self._on_notification)
        backoff.reset()
        self._set(HintState.LISTENING)
        self._owner.on_gap()
        await self._watch(connection)

    async def _watch(self, connection: Connection) -> None:
        """Raise once the connection is lost. `SELECT 1` would prove nothing: a pooler answers it from any session."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        channels = list(self._owner.handlers)
        while True:
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
                raise ConnectionError("the server closed it")
            except TimeoutError:
                pass
            listening = await connection.fetchval(_PROBE, channels, timeout=self._probe_seconds)
            if listening != len(channels):
                raise ConnectionError("the session behind it has lost its LISTEN")

    def _on_notification(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        self._owner.handlers[channel](str(payload))

    def _set(self, state: HintState) -> None:
        self.state = state
        self._owner.on_state(state)
