"""A worker's connection for what belongs to its streams beside the log, such as the results of steps.

The writer's connection is for appends only, so that no other statement delays them.
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

Result = TypeVar("Result")


class Records:
    """Runs statements of all runs of one worker, in turn, over one connection that is opened when it is first used."""

    def __init__(self, dsn: str, *, prepare: bool = True, name: str = "baton worker records") -> None:
        self._dsn = dsn
        self._name = name
        self._prepare = prepare
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Return what `work` returns. After a failure it is repeated over a new connection, until the caller stops.

        So `work` must be safe to repeat after it was committed and its reply was lost.
        """
        return await retry(lambda _backoff: self._try(work), errors=FAILURES, on_failure=self._on_failure)

    def close(self) -> None:
        """Close the connection. A later `run` would open another one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _try(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        async with self._turn:
            connection = await self._connected()
            try:
                return await work(connection)
            except BaseException:
                # After a failure or a cancellation a statement may still be running on it.
                connection.terminate()
                raise

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, name=self._name, prepare=self._prepare, by_index=True)
        return self._connection

    def _on_failure(self, error: Exception) -> None:
        logger.warning("Records of a stream could not be read or written, and this will be repeated: %r", error)
