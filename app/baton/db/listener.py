"""One connection that LISTENs, kept alive: `connecting → listening → degraded → listening …`.

It calls back for each notification, on the event loop: a callback takes O(1) time or hands the work on. After each
(re)connect it listens first and only then tells its owner so, who catches up with what it cannot have heard. While it
is degraded its owner polls.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

import asyncpg

from ..backoff import Backoff
from ..errors import ConfigurationError, DatabaseUnreachable
from .postgres import CONNECTION_ERRORS, Connection, connect

logger = logging.getLogger(__name__)

# How long the server keeps what we do not acknowledge. It frees a notification only when every listener has read it, so
# that a frozen one would fill the queue of the whole cluster. Only the server's own setting ends that.
USER_TIMEOUT_SECONDS: Final = 20
# A second session's way to the first: what it sends must arrive.
DELIVERY_SECONDS: Final = 5

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
        """Listen, and begin again after every failure."""
        backoff = Backoff()
        while True:
            try:
                await self._listen(backoff)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError) as error:
                logger.warning("The LISTEN connection is lost; polling until it is back: %r", error)
                self._set(ListenerState.DEGRADED)
                await backoff.sleep()

    async def _listen(self, backoff: Backoff) -> None:
        connection = await connect(self._dsn, timeout_seconds=self._connect_seconds, name=self._name)
        try:
            await connection.execute(_SET_USER_TIMEOUT, str(USER_TIMEOUT_SECONDS * 1000))
            for channel in self._channels:
                await connection.add_listener(channel, self._heard)
            backoff.reset()
            self._set(ListenerState.LISTENING)
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

    def _set(self, state: ListenerState) -> None:
        self.state = state
        self._on_state(state)


async def check_delivery(listen_dsn: str, dsn: str) -> None:
    """See that notifications arrive, at a start; one that Postgres does not take just now keeps nobody from starting.

    Raises:
        ConfigurationError: nothing arrives, or the server is a standby.
    """
    try:
        await deliver(listen_dsn, dsn)
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ConfigurationError(
            f"The database takes no writes: {error}. It is a standby, or read-only. Name the primary, or all servers "
            "with target_session_attrs=primary, in BATON_DATABASE_URL and BATON_LISTEN_DATABASE_URL."
        ) from None
    except asyncpg.PostgresError as error:
        logger.warning("Notifications cannot be sent just now: %r", error)


async def session_dsn(dsn: str, listen_dsn: str, *, say: Callable[[str], None]) -> str:
    """Return the DSN for a command that needs a session of its own: `listen_dsn` if the other leads through a pooler.

    One that is shared loses the command's advisory locks, and hands its timeouts on to others.

    Raises:
        DatabaseUnreachable: there is no connection to be had.
        ConfigurationError: it leads through a pooler in transaction mode, and there is no other.
    """
    if await _is_direct(dsn):
        return dsn
    if listen_dsn != dsn:
        say("BATON_DATABASE_URL leads through a pooler; going around it by BATON_LISTEN_DATABASE_URL.")
        return listen_dsn
    try:
        await check_delivery(dsn, dsn)
    except DatabaseUnreachable:
        raise
    except ConfigurationError as error:
        raise ConfigurationError(
            "The database URL seems to lead through a pooler in transaction mode, and this command needs a session of "
            "its own, for its locks and timeouts. Set BATON_LISTEN_DATABASE_URL to one that goes around it."
        ) from error
    return dsn


async def _is_direct(dsn: str) -> bool:
    connection = await connect(dsn, name="baton check", prepare=False)
    try:
        # What a pooler gives out at the start is not the number of the process that answers.
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
        return pid == connection.get_server_pid()
    finally:
        connection.terminate()


async def deliver(listen_dsn: str, dsn: str) -> float:
    """Send a notification through one connection, and see that it arrives at the other; return after how many seconds.

    A pooler in transaction mode accepts LISTEN, and then forgets it: asking it again proves nothing, since the answer
    may come from the very session that has it.

    Raises:
        ConfigurationError: nothing arrives.
        PostgresError: it cannot be sent.
    """
    channel = f"baton_check_{secrets.token_hex(8)}"
    heard = asyncio.Event()
    listening = await connect(listen_dsn, name="baton check", prepare=False)
    try:
        sending = await connect(dsn, name="baton check", prepare=False)
        try:
            await listening.add_listener(channel, lambda *_: heard.set())
            sent_at = time.monotonic()
            # Nothing is prepared here: behind a pooler that may fail by itself, and would hide what is looked for.
            await sending.execute(f"NOTIFY {channel}")
            async with asyncio.timeout(DELIVERY_SECONDS):
                await heard.wait()
            return time.monotonic() - sent_at
        finally:
            sending.terminate()
    except TimeoutError:
        raise ConfigurationError(
            f"A notification did not arrive within {DELIVERY_SECONDS} s: the database URL seems to lead through a "
            "pooler in transaction mode, which loses LISTEN. Set BATON_LISTEN_DATABASE_URL to one that goes around it."
        ) from None
    finally:
        listening.terminate()
