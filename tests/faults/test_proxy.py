"""The proxy itself: a test that relies on it is worth what it does."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from tests.support.logbook import until

from baton.chaos.proxy import Proxy


async def test_it_forwards_and_cuts(dsn: str) -> None:
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


async def test_a_held_reply_is_that_of_a_statement_that_took_place(dsn: str) -> None:
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


async def test_while_it_stalls_nothing_arrives_and_new_connections_hang(dsn: str) -> None:
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


async def test_a_blackhole_swallows_the_connections_that_stand_and_lets_later_ones_through(dsn: str) -> None:
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


async def test_what_is_delayed_arrives_late_and_whole(dsn: str) -> None:
    async with Proxy(dsn) as proxy:
        connection = await asyncpg.connect(proxy.dsn)
        proxy.delay(0.15)
        started = asyncio.get_running_loop().time()
        assert await connection.fetchval("SELECT repeat('x', 100000)") == "x" * 100_000
        assert asyncio.get_running_loop().time() - started >= 0.3
        proxy.resume()
        assert await connection.fetchval("SELECT 1") == 1
        connection.terminate()


async def test_it_knows_the_backends_behind_it_and_no_others(dsn: str) -> None:
    other = await asyncpg.connect(dsn)
    async with Proxy(dsn) as proxy:
        connections = [await asyncpg.connect(proxy.dsn) for _ in range(2)]
        assert proxy.backends == {connection.get_server_pid() for connection in connections}
        connections.pop().terminate()
        await until(lambda: len(proxy.backends) == 1)
        assert proxy.backends == {connections[0].get_server_pid()}
        connections[0].terminate()
    await other.close()


async def test_where_nobody_is_the_client_hears_so(dsn: str) -> None:
    async with Proxy("postgresql:///postgres?host=/nowhere") as proxy:
        with pytest.raises((OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await asyncpg.connect(proxy.dsn, timeout=20)
