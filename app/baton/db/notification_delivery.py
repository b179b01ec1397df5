"""Whether notifications arrive: a pooler in transaction mode accepts LISTEN, and then loses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import asyncpg

from ..errors import ConfigurationError, DatabaseUnreachable
from . import notifications
from .postgres import connect

logger = logging.getLogger(__name__)

# A notification must arrive at another session within this time.
DELIVERY_SECONDS: Final = 5

_IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"


async def check_delivery(listen_dsn: str, dsn: str) -> None:
    """Check at a start that notifications arrive. If Postgres refuses to send one at the moment, log it and continue.

    Raises:
        DatabaseUnreachable: no server answers, or it is a standby, perhaps during a failover.
        ConfigurationError: notifications do not arrive.
    """
    try:
        await deliver(listen_dsn, dsn)
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise _takes_no_writes(str(error)) from None
    except asyncpg.PostgresError as error:
        logger.warning("Notifications cannot be sent at the moment: %r", error)


async def check_writable(dsn: str) -> None:
    """Check at a start that the database takes writes, where no notification shows it.

    Raises:
        ConfigurationError: it does not, or it cannot be reached.
    """
    connection = await connect(dsn, name="baton check", prepare=False)
    try:
        if await connection.fetchval(_IS_READ_ONLY):
            raise _takes_no_writes("it is in recovery, or its transactions are read-only")
    finally:
        connection.terminate()


async def deliver(listen_dsn: str, dsn: str) -> float:
    """Send a notification over one connection, and wait until another receives it; return after how many seconds.

    Asking a pooler whether it listens would prove nothing, since the answer may come from the very session that does.

    Raises:
        ConfigurationError: the notification does not arrive.
        PostgresError: it cannot be sent.
    """
    channel = notifications.check_channel()
    heard = asyncio.Event()
    listening = await connect(listen_dsn, name="baton check", prepare=False)
    try:
        sending = await connect(dsn, name="baton check", prepare=False)
        try:
            await listening.add_listener(channel, lambda *_: heard.set())
            sent_at = time.monotonic()
            await notifications.notify_unprepared(sending, channel)
            async with asyncio.timeout(DELIVERY_SECONDS):
                await heard.wait()
            return time.monotonic() - sent_at
        finally:
            sending.terminate()
    except TimeoutError:
        raise ConfigurationError(
            f"A notification did not arrive within {DELIVERY_SECONDS} s: the database URL seems to lead through a "
            "pooler in transaction mode, which loses LISTEN. Set BATON_LISTEN_DATABASE_URL to one that goes around it, "
            "or BATON_HINTS_URL=poll."
        ) from None
    finally:
        listening.terminate()


async def session_dsn(dsn: str, listen_dsn: str, *, say: Callable[[str], None]) -> str:
    """Return the DSN for a command that needs a session of its own: `listen_dsn` if `dsn` leads through a pooler.

    A shared session would lose the command's advisory locks, and pass its timeouts on to others.

    Raises:
        DatabaseUnreachable: no server answers, or the server refuses the connection.
        ConfigurationError: both lead through a pooler in transaction mode.
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


def _takes_no_writes(reason: str) -> DatabaseUnreachable:
    return DatabaseUnreachable(
        f"The database takes no writes: {reason}. It is a standby, or read-only. Name the primary, or all servers "
        "with target_session_attrs=primary, in BATON_DATABASE_URL and BATON_LISTEN_DATABASE_URL."
    )


async def _is_direct(dsn: str) -> bool:
    connection = await connect(dsn, name="baton check", prepare=False)
    try:
        # A pooler announces a made-up process id at the start, which is not that of the process that answers.
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
        return pid == connection.get_server_pid()
    finally:
        connection.terminate()
