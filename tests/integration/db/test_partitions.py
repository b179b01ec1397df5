"""Partitions of the log: one for each day from yesterday on, or wider ones."""

from __future__ import annotations

import asyncio
import datetime
import random

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests.support.logbook import claimed, connected, until, working
from tests.support.past import day, id_at

from baton import stream_ids
from baton.db import event_log, partitions
from baton.db.event_log import Append
from baton.db.partitions import Partition
from baton.db.postgres import Connection
from baton.events import encode_text
from baton.schema.retention_policy import DAY_SECONDS


async def test_partitions_reach_from_yesterday_to_the_days_ahead(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert len(await partitions.create_ahead(connection, 4)) == 3  # the template database has those up to tomorrow
        assert await partitions.create_ahead(connection, 4) == []
        today = await connection.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        names = await connection.fetch("SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1")
    days = [today + datetime.timedelta(days=offset) for offset in range(-1, 5)]
    assert [name for (name,) in names if "pkey" not in name and "idx" not in name] == [
        f"baton.batch_{day:%Y%m%d}" for day in days
    ]


async def test_concurrent_calls_create_each_partition_once(dsn: str) -> None:
    async def create() -> list[str]:
        async with connected(dsn) as connection:
            return await partitions.create_ahead(connection, 5)

    created = [name for names in await asyncio.gather(create(), create(), create()) for name in names]
    assert len(created) == len(set(created)) == 4


async def test_a_stream_is_stored_in_the_partition_of_its_day(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await event_log.append(connection, [Append(stream_id, 1, 1, 1, encode_text("x"))])
        name = await connection.fetchval("SELECT tableoid::regclass::text FROM baton.batch")
    made = datetime.datetime.fromtimestamp((stream_id.int >> 80) / 1000, datetime.UTC)
    assert name == f"baton.batch_{made:%Y%m%d}"


async def test_a_worker_creates_partitions_ahead(dsn: str) -> None:
    async with connected(dsn) as connection, working(dsn, partition_days_ahead=5):
        await until_count(connection, 7)


async def until_count(connection: asyncpg.Connection[asyncpg.Record], count: int) -> None:
    async def all_there() -> bool:
        parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass"
        return bool(await connection.fetchval(parts) == count)

    await until(all_there)


async def test_writers_are_not_blocked_while_partitions_are_created(dsn: str) -> None:
    async with connected(dsn) as creating, connected(dsn) as writing:
        (stream_id,) = await claimed(writing)
        async with creating.transaction():
            assert await partitions.create_ahead(creating, 3)
            await writing.execute("SET lock_timeout = '5s'")
            assert await event_log.append(writing, [Append(stream_id, 1, 1, 1, encode_text("x"))]) == {stream_id}


@pytest.mark.parametrize("days", [-1, 366])
async def test_days_out_of_range_are_refused(dsn: str, days: int) -> None:
    async with connected(dsn) as connection:
        with pytest.raises(asyncpg.RaiseError, match="between 0 and 365"):
            await partitions.create_ahead(connection, days)


async def test_a_table_with_the_name_of_a_new_partition_is_reported(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = partitions.name_of(await day(connection, -3))
        await connection.execute(f"CREATE TABLE {name} ()")
        with pytest.raises(asyncpg.RaiseError, match=f"{name} is there and is no partition of baton.batch: attach"):
            await partitions.create_ahead(connection, 4)
        await connection.execute(f"DROP TABLE {name}")
        assert len(await partitions.create_ahead(connection, 4)) == 3


async def test_an_unfinished_detachment_is_reported(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = partitions.name_of(await day(connection, 0))
        # As an interrupted DETACH … CONCURRENTLY leaves it.
        await connection.execute(f"UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = '{name}'::regclass")
        with pytest.raises(asyncpg.RaiseError, match=f"the detachment of {name} .+ is not finished: .+ FINALIZE; then"):
            await partitions.create_ahead(connection, 1)


async def test_partitions_reach_to_the_first_gap(dsn: str) -> None:
    async with connected(dsn) as connection:
        await partitions.create_ahead(connection, 4)
        await connection.execute(f"DROP TABLE {partitions.name_of(await day(connection, -3))}")
        reach = await partitions.reach(connection)
        assert reach.end == await day(connection, -3)
        assert 2 * DAY_SECONDS < reach.left_seconds <= 3 * DAY_SECONDS
        for days in (0, -1, -2):
            await connection.execute(f"DROP TABLE {partitions.name_of(await day(connection, days))}")
        assert abs((await partitions.reach(connection)).left_seconds) < 60


async def test_days_far_ahead_take_several_transactions(dsn: str) -> None:
    async with connected(dsn) as connection:
        created = await partitions.create_ahead(connection, 100)
        assert len(created) == 99
        by_transaction = "SELECT count(*) FROM pg_class WHERE oid = ANY ($1::text[]::regclass[]) GROUP BY xmin::text"
        assert max(row[0] for row in await connection.fetch(by_transaction, created)) <= 30


# Wider partitions


async def attach(connection: Connection, name: str, first_day: int, end_day: int) -> None:
    """Attach a partition for a range of days, counted from today."""
    first, end = [stream_ids.first_id(await day(connection, -days)) for days in (first_day, end_day)]
    await connection.execute(f"CREATE TABLE {name} PARTITION OF baton.batch FOR VALUES FROM ('{first}') TO ('{end}')")


async def drop_all(connection: Connection) -> None:
    for item in await partitions.attached(connection):
        await connection.execute(f"DROP TABLE {item.name}")


def held(items: list[Partition]) -> list[tuple[str, int, int]]:
    return sorted((item.name, item.first.int, item.end.int) for item in items)


@pytest.mark.parametrize("seed", range(8))
async def test_missing_partitions_are_predicted_as_they_are_created(dsn: str, seed: int) -> None:
    choose = random.Random(seed)
    async with connected(dsn) as connection:
        await drop_all(connection)
        first = choose.randint(-9, 3)
        for number in range(choose.randint(0, 5)):
            end = first + choose.randint(1, 4)
            await attach(connection, f"baton.part_{number}", first, end)
            first = end + choose.choice([0, 0, 1, 5])
        width, ahead = choose.choice([1, 1, 2, 7, 30]), choose.choice([0, 1, 7, 40])
        await partitions.set_width(connection, width)
        before = await partitions.attached(connection)
        planned = partitions.planned(before, await partitions.now(connection), ahead, width)
        assert await partitions.missing(connection, ahead) == [item.name for item in planned]
        assert await partitions.create_ahead(connection, ahead) == [item.name for item in planned]
        after = await partitions.attached(connection)
        assert held(after) == held(before + planned)
        assert await partitions.missing(connection, ahead) == []
        assert (await partitions.reach(connection)).left_seconds > ahead * DAY_SECONDS


async def test_wider_partitions_begin_where_daily_ones_end(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert await partitions.set_width(connection, 7)
        assert not await partitions.set_width(connection, 7)
        # As code of the release before calls it.
        created = [name for (name,) in await connection.fetch("SELECT baton.create_partitions(30)")]
        assert 5 <= len(created) <= 6
        there = sorted(await partitions.attached(connection), key=lambda item: item.first)
        assert [item.end for item in there[:-1]] == [item.first for item in there[1:]]
        days = [
            round((stream_ids.moment_of(item.end) - stream_ids.moment_of(item.first)) / DAY_SECONDS) for item in there
        ]
        assert days[:3] == [1, 1, 1]
        assert days[3] <= 7
        assert set(days[4:]) == {7}
        assert there[3].name == partitions.name_of(await day(connection, -2))
        assert (await partitions.reach(connection)).end == stream_ids.moment_of(there[-1].end)


async def test_streams_of_a_wide_partition_are_written_and_read(dsn: str) -> None:
    async with connected(dsn) as connection:
        await drop_all(connection)
        await attach(connection, "baton.batch_wide", -20, 10)
        ids = [id_at(await day(connection, days)) for days in (20, 5, 0, -9)]
        for stream_id in ids:
            await connection.execute(
                "INSERT INTO baton.stream (id, generator, input, on_worker_lost, status, epoch) "
                "VALUES ($1, 'test', 'null', 'retry', 'running', 1)",
                stream_id,
            )
            await event_log.append(connection, [Append(stream_id, 1, 1, 1, encode_text("x"))])
            assert len(await event_log.read(connection, stream_id, 0)) == 1
        assert await event_log.tails(connection, ids) == dict.fromkeys(ids, event_log.Standing(1, ended=False))


@given(some.integers(1, 36_500), some.integers(1, 365), some.integers(0, 50_000))
def test_any_retention_needs_no_more_partitions_than_the_ceiling(
    retention_days: int, days_ahead: int, today: int
) -> None:
    width = partitions.width_for(retention_days, days_ahead)
    # From the first day that is kept, and one more because maintenance runs once a day, to the last one ahead.
    first, last = today - retention_days - 1, today + days_ahead
    count = last // width - first // width + 1
    assert count <= partitions.MOST
    assert 1 <= width <= 366


def test_a_year_needs_only_daily_partitions() -> None:
    assert partitions.width_for(365, 7) == 1
    assert partitions.width_for(3 * 365, 7) == 3
