"""The proxy itself: a test that relies on it is worth what it does."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from tests.support.logbook import until

from baton.chaos.proxy import Proxy


async def test_a_proxy_forwards_and_cuts_connections(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        assert await connection.fetchval("SELECT repeat('x', 1000000)") == "x" * 1_000_000
        assert proxy.connections == 1
        proxy.cut()
        with pytest.raises((OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)):
            await connection.fetchval("SELECT 1")
        again = await asyncpg.connect(proxy.dsn)
        assert await again.fetchval("SELECT 1") == 1
        again.terminate()


async def test_a_held_reply_belongs_to_a_statement_that_ran(dsn: str) -> None:
    witness = await asyncpg.connect(dsn)
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        proxy.hold_replies()
        statement = asyncio.create_task(connection.execute("CREATE TABLE done ()"))

        async def took_place() -> bool:
            return await witness.fetchval("SELECT to_regclass('done') IS NOT NULL") is True

        await until(took_place)
        assert not statement.done()
        proxy.resume()
        assert await statement == "CREATE TABLE"
        connection.terminate()
    await witness.close()


async def test_a_stalled_proxy_delivers_nothing_and_new_connections_hang(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        proxy.stall()
        statement = asyncio.create_task(connection.fetchval("SELECT 1"))
        newcomer = asyncio.create_task(asyncpg.connect(proxy.dsn))
        await until(lambda: proxy.accepted == 2)
        assert not statement.done()
        assert not newcomer.done()
        proxy.resume()
        assert await statement == 1
        for opened in (connection, await newcomer):
            opened.terminate()


async def test_a_black_hole_drops_open_connections_and_passes_new_ones(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        proxy.blackhole()
        proxy.resume()
        statement = asyncio.create_task(connection.fetchval("SELECT 1"))
        later = await asyncpg.connect(proxy.dsn)
        assert await later.fetchval("SELECT 1") == 1
        assert not statement.done()
        assert not connection.is_closed()
        statement.cancel()
        for opened in (connection, later):
            opened.terminate()


async def test_delayed_data_arrives_late_and_complete(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        proxy.delay(0.15)
        started = asyncio.get_running_loop().time()
        assert await connection.fetchval("SELECT repeat('x', 100000)") == "x" * 100_000
        assert asyncio.get_running_loop().time() - started >= 0.3
        proxy.resume()
        assert await connection.fetchval("SELECT 1") == 1
        connection.terminate()


async def test_a_proxy_knows_only_the_backends_behind_it(dsn: str) -> None:
    other = await asyncpg.connect(dsn)
    async with Proxy(dsn) as proxy:
        connections = [await asyncpg.connect(proxy.dsn) for _ in range(2)]
        assert proxy.backends == {connection.get_server_pid() for connection in connections}
        connections.pop().terminate()
        await until(lambda: len(proxy.backends) == 1)
        assert proxy.backends == {connections[0].get_server_pid()}
        connections[0].terminate()
    await other.close()


async def test_an_unreachable_upstream_is_reported_to_the_client(dsn: str) -> None:
    async with Proxy("postgresql:///postgres?host=/nowhere") as proxy:
        with pytest.raises((OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await asyncpg.connect(proxy.dsn, timeout=20)
