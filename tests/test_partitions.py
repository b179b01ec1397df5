"""Partitions: one for each day from yesterday on, made once."""

from __future__ import annotations

import asyncio
import datetime

import asyncpg
import pytest
from tests.logbook import claimed, connected, until, working
from tests.past import day

from baton import log, partitions
from baton.events import encode_text
from baton.log import Append
from baton.maintain import DAY_SECONDS


async def test_they_reach_from_yesterday_to_so_many_days_ahead(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert len(await partitions.create_ahead(connection, 4)) == 3  # the template has those up to tomorrow
        assert await partitions.create_ahead(connection, 4) == []
        today = await connection.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        names = await connection.fetch("SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1")
    days = [today + datetime.timedelta(days=offset) for offset in range(-1, 5)]
    assert [name for (name,) in names if "pkey" not in name and "idx" not in name] == [
        f"baton.batch_{day:%Y%m%d}" for day in days
    ]


async def test_created_by_many_at_once_each_is_there_once(dsn: str) -> None:
    async def create() -> list[str]:
        async with connected(dsn) as connection:
            return await partitions.create_ahead(connection, 5)

    created = [name for names in await asyncio.gather(create(), create(), create()) for name in names]
    assert len(created) == len(set(created)) == 4


async def test_a_stream_lives_in_the_partition_of_its_day(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await log.append(connection, [Append(stream_id, 1, 1, 1, encode_text("x"))])
        name = await connection.fetchval("SELECT tableoid::regclass::text FROM baton.batch")
    made = datetime.datetime.fromtimestamp((stream_id.int >> 80) / 1000, datetime.UTC)
    assert name == f"baton.batch_{made:%Y%m%d}"


async def test_a_worker_has_them_at_hand(dsn: str) -> None:
    async with connected(dsn) as connection, working(dsn, partition_days_ahead=5):
        await until_count(connection, 7)


async def until_count(connection: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    async def all_there() -> bool:
        parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass"
        return bool(await connection.fetchval(parts) == count)

    await until(all_there)


async def test_writers_are_not_locked_out_while_they_are_made(dsn: str) -> None:
    async with connected(dsn) as creating, connected(dsn) as writing:
        (stream_id,) = await claimed(writing)
        async with creating.transaction():
            assert await partitions.create_ahead(creating, 3)
            await writing.execute("SET lock_timeout = '5s'")
            assert await log.append(writing, [Append(stream_id, 1, 1, 1, encode_text("x"))]) == {stream_id}


@pytest.mark.parametrize("days", [-1, 366])
async def test_days_out_of_range_are_refused(dsn: str, days: int) -> None:
    async with connected(dsn) as connection:
        with pytest.raises(asyncpg.RaiseError, match="between 0 and 365"):
            await partitions.create_ahead(connection, days)


async def test_what_stands_in_the_place_of_a_partition_is_told(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = partitions.name_of(await day(connection, -3))
        await connection.execute(f"CREATE TABLE {name} ()")
        with pytest.raises(asyncpg.RaiseError, match=f"{name} is there and is no partition of baton.batch: attach"):
            await partitions.create_ahead(connection, 4)
        await connection.execute(f"DROP TABLE {name}")
        assert len(await partitions.create_ahead(connection, 4)) == 3


async def test_a_detachment_that_is_not_finished_is_told(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = partitions.name_of(await day(connection, 0))
        # As a DETACH … CONCURRENTLY that was cut off leaves it.
        await connection.execute(f"UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = '{name}'::regclass")
        with pytest.raises(asyncpg.RaiseError, match=f"the detachment of {name} .+ is not finished: .+ FINALIZE; then"):
            await partitions.create_ahead(connection, 1)


async def test_they_reach_to_the_first_gap(dsn: str) -> None:
    async with connected(dsn) as connection:
        await partitions.create_ahead(connection, 4)
        await connection.execute(f"DROP TABLE {partitions.name_of(await day(connection, -3))}")
        reach = await partitions.reach(connection)
        assert reach.end == await day(connection, -3)
        assert 2 * DAY_SECONDS < reach.left_seconds <= 3 * DAY_SECONDS
        for days in (0, -1, -2):
            await connection.execute(f"DROP TABLE {partitions.name_of(await day(connection, days))}")
        assert abs((await partitions.reach(connection)).left_seconds) < 60
