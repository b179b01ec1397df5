"""The proxy itself: a test that relies on it is worth what it does."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from tests.faults.proxy import Proxy
from tests.logbook import until


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
