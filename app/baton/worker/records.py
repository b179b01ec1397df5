"""The connection that the runs of a worker share, for what does not go through the writer.

It is opened when a run first needs it: a stream that neither continues nor has steps never does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..backoff import retry
from ..db.postgres import Connection, connect
from ..db.reconnecting import FAILURES

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Records:
    """Runs one piece of work at a time over one connection. It belongs to a worker, which closes it."""

    def __init__(self, dsn: str, *, prepare: bool = True) -> None:
        self._dsn = dsn
        self._prepare = prepare
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[Connection], Awaitable[_Result]]) -> _Result:
        """Return the result of `work`, which is repeated over new connections until the database answers."""

        async def once(_backoff: object) -> _Result:
            async with self._turn:
                return await work(await self._connected())

        return await retry(once, errors=FAILURES, on_failure=self._on_failure)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _on_failure(self, error: Exception) -> None:
        logger.warning("A worker's read failed and will be repeated over a new connection: %r", error)
        self.close()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, name="baton worker records", prepare=self._prepare)
        return self._connection
