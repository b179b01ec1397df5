"""Connect, serve, back off: how everything that has a database connection of its own stays connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from ..backoff import Backoff, require_not_cancelled, retry
from ..errors import ConfigurationError
from .postgres import CONNECTION_ERRORS, Connection

# After these a new connection may work: a lost or refused one, an error of Postgres, and a server or role that is gone.
FAILURES: Final = (*CONNECTION_ERRORS, asyncpg.PostgresError, ConfigurationError)


async def keep_connected(
    connecting: Callable[[], Awaitable[Connection]],
    serve: Callable[[Connection, Backoff], Awaitable[None]],
    *,
    on_failure: Callable[[Exception], None],
    until: Callable[[], bool] = lambda: False,
    backoff: Backoff | None = None,
) -> None:
    """Serve over a connection, and over a new one after each failure, until `serve` returns.

    `serve` resets the backoff once the connection has proved to work. `until` is called before each connection, and
    returns true once nothing is left to do.
    """

    async def once(backoff: Backoff) -> None:
        if until():
            return
        connection = await connecting()
        try:
            require_not_cancelled()
            await serve(connection, backoff)
        finally:
            # Never close(): it talks to a server that may not answer.
            connection.terminate()

    await retry(once, errors=FAILURES, on_failure=on_failure, backoff=backoff)
