"""A pool of connections that tenants share fairly (see `fair_semaphore`), and that leaves a read-only server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

from . import sqlstates
from .fair_semaphore import FairSemaphore, current_tenant

# They are generic for type checkers only.
if TYPE_CHECKING:
    _AnyPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    _AnyContext: TypeAlias = PoolAcquireContext[asyncpg.Record]
else:
    _AnyPool, _AnyContext = asyncpg.Pool, PoolAcquireContext


class FairPool(_AnyPool):
    """A pool whose connections tenants get in turns. Work for all tenants does not wait for a turn.

    `timeout_seconds` bounds each use of the pool (see `postgres.translated`). `disk_full` is set once a write fails
    because the server's disk is full.
    """

    __slots__ = ("disk_full", "semaphore", "timeout_seconds")

    def __init__(self, *arguments: Any, semaphore: FairSemaphore, timeout_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.semaphore = semaphore
        self.timeout_seconds = timeout_seconds
        self.disk_full = False

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext[asyncpg.Record]:
        """Acquire a connection, for an `async with` block. All of asyncpg's shortcuts, such as `fetch`, use it.

        Raises:
            TooManyQueries: on entering the block, if the tenant's other requests have its share of the connections.
        """
        tenant = current_tenant()
        return _Acquired(self, timeout) if tenant is None else _AcquiredInTurn(self, timeout, tenant)


class _Acquired(_AnyContext):
    """A connection. If its server turns out to be read-only, none of the pool's connections is used again.

    The server's name may lead to another server by now, while open connections would stay with a standby forever.
    """

    __slots__ = ("_pool",)

    def __init__(self, pool: FairPool, timeout: float | None) -> None:
        super().__init__(pool, timeout)
        self._pool = pool

    async def __aexit__(self, *exc: Any) -> None:
        if sqlstates.only_reads(exc[1]):
            await self._pool.expire_connections()
        self._pool.disk_full |= sqlstates.disk_is_full(exc[1])
        await super().__aexit__(*exc)


class _AcquiredInTurn(_Acquired):
    """A connection, and the tenant's place for it."""

    __slots__ = ("_semaphore", "_tenant")

    def __init__(self, pool: FairPool, timeout: float | None, tenant: str) -> None:
        super().__init__(pool, timeout)
        self._semaphore = pool.semaphore
        self._tenant = tenant

    async def __aenter__(self) -> PoolConnectionProxy[asyncpg.Record]:
        await self._semaphore.acquire(self._tenant)
        try:
            return await super().__aenter__()
        except BaseException:
            self._semaphore.release(self._tenant)
            raise

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await super().__aexit__(*exc)
        finally:
            self._semaphore.release(self._tenant)
