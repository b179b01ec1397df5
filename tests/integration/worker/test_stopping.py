"""Having generators stop what they began at a provider, for streams that have ended early."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from tests.support.cluster import Tap
from tests.support.logbook import connected, until

from baton.db import stop_calls
from baton.db.postgres import Connection
from baton.worker.stopping import Stopping


class Provider(Tap):
    """A generator with a `stop` that fails or hangs as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: list[Any] = []
        self.failures = 0
        self.hangs = False

    async def stop(self, state: Any) -> None:
        self.stopped.append(state)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not now")


class Caller:
    """A worker, as far as it makes calls."""

    def __init__(self, provider: Provider, **others: Any) -> None:
        self.result = asyncio.Event()
        self.stopping = Stopping({"model": provider, "other": Tap(), **others}, on_result=self.result.set)

    async def work(self, connection: Connection) -> None:
        """Take what is due, wait for the calls, and write the results."""
        self.stopping.hurry("model")
        await self.stopping.work(connection)
        await until(lambda: not self.stopping.running)
        await self.stopping.work(connection)


async def add(connection: Connection, number: int = 1, generator: str = "model") -> UUID:
    """What the end of a stream leaves."""
    stream_id = UUID(int=number)
    await connection.execute(
        "INSERT INTO baton.stop_call (stream_id, generator, state) VALUES ($1, $2, $3)",
        stream_id,
        generator,
        orjson.dumps({"id": number}),
    )
    return stream_id


async def count(connection: Connection) -> int:
    found: int = await connection.fetchval("SELECT count(*) FROM baton.stop_call")
    return found


async def pass_time(connection: Connection, **ages: int) -> None:
    """Move the calls into the past."""
    await connection.execute(
        "UPDATE baton.stop_call SET due_at = due_at - $1::interval, created_at = created_at - $1::interval",
        timedelta(**ages),
    )


async def test_a_call_is_made_once_with_the_state_and_deleted(dsn: str) -> None:
    async with connected(dsn) as connection:
        provider = Provider()
        caller = Caller(provider)
        for number in (1, 2):
            await add(connection, number)
        await caller.work(connection)
        await caller.work(connection)
        assert sorted(state["id"] for state in provider.stopped) == [1, 2]
        assert await count(connection) == 0


async def test_a_worker_takes_only_calls_of_its_generators(dsn: str) -> None:
    async with connected(dsn) as connection:
        provider = Provider()
        await add(connection, generator="elsewhere")
        await Caller(provider).work(connection)
        assert (provider.stopped, await count(connection)) == ([], 1)


async def test_the_control_loop_never_waits_for_a_provider(dsn: str) -> None:
    async with connected(dsn) as connection:
        provider = Provider()
        provider.hangs = True
        caller = Caller(provider)
        await add(connection)
        await caller.stopping.work(connection)
        await until(lambda: bool(provider.stopped))
        await caller.stopping.work(connection)
        assert caller.stopping.running == 1
        await caller.stopping.aclose()
        assert await count(connection) == 1


async def test_the_call_of_a_worker_that_died_is_made_by_another_after_the_lease(dsn: str) -> None:
    async with connected(dsn) as connection:
        hung, provider = Provider(), Provider()
        hung.hangs = True
        dead, caller = Caller(hung), Caller(provider)
        await add(connection)
        await dead.stopping.work(connection)
        await until(lambda: bool(hung.stopped))
        await dead.stopping.aclose()  # as a killed process: nothing is written
        await caller.work(connection)
        assert provider.stopped == []
        await pass_time(connection, minutes=2)
        await caller.work(connection)
        assert (provider.stopped, await count(connection)) == ([{"id": 1}], 0)


async def test_a_worker_that_leaves_puts_its_calls_back(dsn: str) -> None:
    async with connected(dsn) as connection:
        hung, provider = Provider(), Provider()
        hung.hangs = True
        leaving = Caller(hung)
        await add(connection)
        await leaving.stopping.work(connection)
        await until(lambda: bool(hung.stopped))
        await leaving.stopping.leave(connection, timeout_seconds=0)
        await Caller(provider).work(connection)
        assert (provider.stopped, await count(connection)) == ([{"id": 1}], 0)


async def test_a_failed_call_is_repeated_later(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(dsn) as connection:
        provider = Provider()
        provider.failures = 1
        caller = Caller(provider)
        stream_id = await add(connection)
        await caller.work(connection)
        assert await count(connection) == 1
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert str(stream_id) in record.getMessage()
        await pass_time(connection, minutes=20)
        await caller.work(connection)
        assert (len(provider.stopped), await count(connection)) == (2, 0)


async def test_a_call_that_fails_for_a_day_is_given_up(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(dsn) as connection:
        provider = Provider()
        provider.failures = 2
        caller = Caller(provider)
        await add(connection)
        await caller.work(connection)
        await pass_time(connection, days=2)
        await caller.work(connection)
        assert (len(provider.stopped), await count(connection)) == (2, 0)
        assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


async def test_calls_that_nobody_can_make_are_forgotten_after_a_week(dsn: str) -> None:
    async with connected(dsn) as connection:
        await add(connection, generator="elsewhere")
        await Caller(Provider()).work(connection)
        assert await count(connection) == 1
        await pass_time(connection, days=8)
        await Caller(Provider()).work(connection)
        assert await count(connection) == 0


async def test_results_survive_a_lost_connection(dsn: str) -> None:
    provider = Provider()
    caller = Caller(provider)
    async with connected(dsn) as connection:
        await add(connection)
        await caller.stopping.work(connection)
        await caller.result.wait()
    with pytest.raises(Exception, match="closed"):
        await caller.stopping.work(connection)
    async with connected(dsn) as connection:
        await caller.stopping.work(connection)
        assert (await count(connection), len(provider.stopped)) == (0, 1)


async def test_two_workers_share_the_calls(dsn: str) -> None:
    async with connected(dsn) as first, connected(dsn) as second:
        for number in range(8):
            await add(first, number)
        async with first.transaction():
            taken = await stop_calls.take(first, ["model"], 3, 60)
            others = await stop_calls.take(second, ["model"], 8, 60)
        assert len(taken) == 3
        assert {call.state["id"] for call in (*taken, *others)} == set(range(8))
        assert len(others) == 5
