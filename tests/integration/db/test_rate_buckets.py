"""How fast a caller may create streams: the token bucket that all pods share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.support.logbook import connected, until
from tests.support.past import maintained

from baton.db import rate_buckets
from baton.db.postgres import Pool, pool
from baton.db.rate_buckets import Rate

SLOW = Rate(per_second=0.01, burst=5)


@pytest.fixture
async def opened(dsn: str) -> AsyncIterator[Pool]:
    async with pool(dsn, size=8, timeout_seconds=10) as opened:
        yield opened


async def taken(opened: Pool, count: int, rate: Rate = SLOW, caller: str = "a") -> int:
    """Ask for tokens concurrently; return how many were granted."""
    waits = await asyncio.gather(*(rate_buckets.take(opened, "t", caller, rate) for _ in range(count)))
    return waits.count(None)


async def later(connection: asyncpg.Connection[Any], seconds: float) -> None:
    """Let time pass."""
    await connection.execute("UPDATE baton.token_bucket SET full_at = full_at - make_interval(secs => $1)", seconds)


async def test_a_burst_is_allowed_and_then_the_rate(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as connection:
        assert await taken(opened, 20) == 5
        assert await rate_buckets.take(opened, "t", "a", SLOW) == 100
        await later(connection, 40)
        assert await rate_buckets.take(opened, "t", "a", SLOW) in {60, 61}
        await later(connection, 210)
        assert await taken(opened, 20) == 2
        await later(connection, 1e6)
        assert await taken(opened, 20) == 5


async def test_a_burst_of_one_is_a_pause_between_requests(opened: Pool) -> None:
    assert await taken(opened, 10, Rate(0.5, 1)) == 1
    assert await rate_buckets.take(opened, "t", "a", Rate(0.5, 1)) == 2


async def test_pods_share_a_bucket_and_callers_do_not(opened: Pool, dsn: str) -> None:
    async with pool(dsn, size=8, timeout_seconds=10) as other:
        assert sum(await asyncio.gather(taken(opened, 100), taken(other, 100))) == 5
        assert await taken(other, 10, caller="b") == 5
        assert await rate_buckets.take(other, "another tenant", "a", SLOW) is None


async def test_a_refusal_writes_nothing(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as connection:
        await taken(opened, 5)
        version = "SELECT ctid::text || xmin::text FROM baton.token_bucket"
        before = await connection.fetchval(version)
        assert await taken(opened, 5) == 0
        assert await connection.fetchval(version) == before


async def test_a_clock_set_back_locks_no_caller_out(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as connection:
        await taken(opened, 5)
        await later(connection, -3600)
        assert await taken(opened, 10) == 5


async def test_maintenance_deletes_only_full_buckets(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as connection:
        await taken(opened, 5, caller="gone")
        await later(connection, 501)
        await taken(opened, 1, caller="here")
        await maintained(connection)
        assert [row[0] for row in await connection.fetch("SELECT caller FROM baton.token_bucket")] == ["here"]


async def test_a_bucket_deleted_in_between_refuses_no_caller(opened: Pool, dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as watcher:

        async def all_wait() -> bool:
            here = "datname = current_database() AND wait_event_type = 'Lock'"
            return bool(await watcher.fetchval(f"SELECT count(*) = 5 FROM pg_stat_activity WHERE {here}"))

        assert await taken(opened, 1) == 1
        await later(connection, 1000)
        async with connection.transaction():
            await rate_buckets.delete_full(connection)
            taking = asyncio.create_task(taken(opened, 5))
            await until(all_wait)
        assert await taking == 5
        assert await connection.fetchval("SELECT count(*) FROM baton.token_bucket") == 1


async def test_taking_a_token_does_not_wait_for_the_disk(dsn: str) -> None:
    """The WAL has only commits, and commits to an unlogged table are not flushed."""
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        assert (
            await opened.fetchval("SELECT relpersistence FROM pg_class WHERE oid = 'baton.token_bucket'::regclass")
            == b"u"
        )
        await taken(opened, 1)
        before = await opened.fetchval("SELECT pg_current_wal_insert_lsn()")
        await taken(opened, 100, Rate(1e5, 1000))
        written = await opened.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::pg_lsn)", before)
        assert written < 100 * 100
