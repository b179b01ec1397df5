"""A worker whose connection is silently gone for less than its lease keeps its streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
from tests.support.logbook import DEADLINE_SECONDS

from baton.chaos.proxy import Proxy
from baton.generators import load_generators
from baton.settings import Settings
from baton.worker.workers import Workers

LEASE_SECONDS = 3.0


@contextlib.asynccontextmanager
async def working(dsn: str, name: str) -> AsyncIterator[None]:
    settings = Settings(
        database_url=dsn, worker_name=name, lease_seconds=LEASE_SECONDS, worker_heartbeat_seconds=0.2, _env_file=None
    )
    worker = Workers(settings, load_generators(settings))
    task = asyncio.create_task(worker.run())
    await worker.ready.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_with_a_silent_connection_is_not_declared_dead(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    counter = "SELECT heartbeat FROM baton.worker WHERE id = $1"
    async with Proxy(dsn) as proxy, working(proxy.dsn, "struck"):
        struck = await connection.fetchval("SELECT id FROM baton.worker WHERE name = 'struck'")
        async with working(dsn, "watching"):
            proxy.blackhole()
            proxy.resume()
            stood = await connection.fetchval(counter, struck)
            now = stood
            async with asyncio.timeout(DEADLINE_SECONDS):
                while now is not None and now <= stood + 1:
                    await asyncio.sleep(0.02)
                    now = await connection.fetchval(counter, struck)
            assert now is not None, "it was declared dead"
    await connection.close()
