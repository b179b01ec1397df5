"""Steps in a worker: what is kept of them, under which fence, and what the next run of the stream gets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from tests.support.logbook import connected, ended, events, queue, text, until, until_tail, working

import baton
from baton.chaos.proxy import Proxy
from baton.db import stream_ending, stream_queue
from baton.db.fence import Fence
from baton.db.postgres import Connection, connect, pool
from baton.errors import GENERATOR_FAULT
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.worker.records import Records
from baton.worker.run import Run
from baton.worker.worker import Worker

SLOW: dict[str, Any] = {"lease_seconds": 600}
WAITS = """
SELECT count(*) > 0 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO baton.step%' AND pid <> pg_backend_pid()
"""


class Agent:
    """A generator with one step, which can be held in its tool and after the step."""

    def __init__(self) -> None:
        self.calls = 0
        self.runs = 0
        self.keys: list[str] = []
        self.results: list[Any] = []
        self.cancelled = 0
        self.tool_cancelled = 0
        self.in_tool = asyncio.Event()
        self.after_step = asyncio.Event()
        self.go_on = asyncio.Event()

    async def tool(self, question: str) -> Any:
        self.calls += 1
        self.keys.append(baton.idempotency_key())
        self.after_step.clear()
        self.in_tool.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.tool_cancelled += 1
            raise
        return (question, self.calls)

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.runs += 1
        try:
            result = await request.step("tool", self.tool, "q")
            self.results.append(result)
            self.after_step.set()
            await self.ending()
            yield f"{result} of run {self.runs}"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def ending(self) -> None:
        """Do what comes between the step and the end."""


class Lasting(Agent):
    """Its first run waits after the step, until its worker is no more."""

    async def ending(self) -> None:
        if self.runs == 1:
            await asyncio.Event().wait()


async def kept(connection: Connection) -> list[tuple[str, int, bytes]]:
    rows = await connection.fetch("SELECT name, occurrence, result FROM baton.step ORDER BY name, occurrence")
    return [tuple(row) for row in rows]


def running(worker: Worker, stream_id: UUID) -> Run:
    return worker.slots.runs[stream_id]


@contextlib.asynccontextmanager
async def in_tool(dsn: str, agent: Agent, **changes: Any) -> AsyncIterator[tuple[Worker, Connection, UUID]]:
    """A worker whose agent's tool is running."""
    async with connected(dsn) as connection, working(dsn, agent, **SLOW | changes) as worker:
        stream_id = await queue(dsn)
        await agent.in_tool.wait()
        yield worker, connection, stream_id


async def test_a_step_is_kept_before_it_returns_and_not_run_by_the_next_worker(dsn: str) -> None:
    agent = Lasting()
    agent.go_on.set()
    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, agent):
            await agent.after_step.wait()
            assert await kept(connection) == [("tool", 0, b'["q",1]')]
        async with working(dsn, agent):
            assert (await ended(connection, stream_id)).status == "completed"
        assert text(await events(connection, stream_id)) == "['q', 1] of run 2"
        assert agent.results == [["q", 1], ["q", 1]]
        assert (agent.runs, agent.calls) == (2, 1)


async def test_a_run_that_ends_in_its_tool_calls_it_again_with_the_same_key(dsn: str) -> None:
    agent = Agent()
    async with in_tool(dsn, agent) as (_, connection, stream_id):
        pass
    assert agent.tool_cancelled == 1
    async with connected(dsn) as connection, working(dsn, agent):
        agent.go_on.set()
        await ended(connection, stream_id)
    assert agent.calls == 2
    assert len(set(agent.keys)) == 1


async def test_steps_survive_a_reset(dsn: str) -> None:
    agent = Lasting()
    agent.go_on.set()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "half"
        async for item in agent(request):
            yield item

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, generate):
            await agent.after_step.wait()
            await until_tail(connection, stream_id, 1)
        async with working(dsn, generate):
            await ended(connection, stream_id)
        found = await events(connection, stream_id)
    assert "reset" in [event["type"] for event in found]
    assert text(found) == "half['q', 1] of run 2"
    assert agent.calls == 1


async def test_many_steps_at_once_are_each_kept_once(dsn: str) -> None:
    calls: list[int] = []
    results: list[list[Any]] = []
    again = asyncio.Event()

    def tool(number: int) -> int:
        calls.append(number)  # in threads, of which each adds its own
        return number * 10 + calls.count(number)

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        numbers = [*range(10), *range(10)] if not results else [*reversed(range(10)), *range(10)]
        results.append(await asyncio.gather(*(request.step("n", tool, number) for number in numbers)))
        again.set()
        if len(results) == 1:
            await asyncio.Event().wait()
        yield "end"

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, generate):
            await again.wait()
            assert len(await kept(connection)) == 20
        async with working(dsn, generate):
            await ended(connection, stream_id)
    assert len(calls) == 20
    assert results[1] == [*reversed(results[0][:10]), *results[0][10:]]
    # Each number is 1 and then 2 times its own: occurrences are in order of the calls.
    assert [sorted(pair) for pair in zip(results[0][:10], results[0][10:], strict=True)] == [
        [number * 10 + 1, number * 10 + 2] for number in range(10)
    ]


async def test_the_first_run_reads_no_steps_and_a_later_one_reads_them_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    opened: list[str] = []

    async def spying(*given: Any, name: str, **options: Any) -> Connection:
        opened.append(name)
        connection = await connect(*given, name=name, **options)
        connection.add_query_logger(lambda record: statements.append(record.query))
        return connection

    monkeypatch.setattr("baton.worker.records.connect", spying)
    runs = 0
    stuck = asyncio.Event()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        nonlocal runs
        runs += 1
        await asyncio.gather(*(request.step("n", lambda: 1) for _ in range(3)))
        if runs == 1:
            stuck.set()
            await asyncio.Event().wait()
        yield "end"

    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        async with working(dsn, generate):
            await stuck.wait()
            assert opened == ["baton worker records"]
        assert ["INSERT" in statement for statement in statements] == [True] * 3
        statements.clear()
        async with working(dsn, generate):
            await ended(connection, stream_id)
        assert [statement.split()[0] for statement in statements] == ["SELECT"]


async def test_a_generator_without_steps_opens_no_connection_for_them(dsn: str) -> None:
    async with connected(dsn) as connection, working(dsn):
        await ended(connection, await queue(dsn))
        names = await connection.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'baton worker%' "
            "AND datname = current_database()"
        )
    assert sorted(name for (name,) in names) == [
        "baton worker append",
        "baton worker control",
        "baton worker heartbeat",
        "baton worker listen",
        "baton worker notify",
    ]


async def test_its_connection_is_closed_with_the_worker(dsn: str) -> None:
    agent = Agent()
    agent.go_on.set()
    async with connected(dsn) as connection:
        async with working(dsn, agent):
            await ended(connection, await queue(dsn))
        left = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'baton worker records'"
        await until(lambda: connection.fetchval(left + " AND datname = current_database()"))


# The fence


async def test_a_zombies_result_is_refused_and_its_run_abandoned(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent()
    async with in_tool(dsn, agent) as (worker, connection, stream_id):
        run = running(worker, stream_id)
        await take_away(connection, run.outbox.fence)
        agent.go_on.set()
        await until(lambda: agent.cancelled == 1)
        # Nothing of it was kept or given to the generator, and the next run calls the tool again.
        await ended(connection, stream_id)
        assert agent.results == [["q", 2]]
        assert text(await events(connection, stream_id)) == "['q', 2] of run 2"
    assert (agent.calls, agent.runs) == (2, 2)
    assert f"Stream {stream_id} is lost to this worker" in caplog.text


async def test_a_result_that_comes_during_a_takeover_is_refused(dsn: str) -> None:
    agent = Agent()
    async with in_tool(dsn, agent) as (worker, connection, stream_id), connected(dsn) as taker:
        transaction = taker.transaction()
        await transaction.start()
        await take_away(taker, running(worker, stream_id).outbox.fence)
        agent.go_on.set()
        await until(lambda: connection.fetchval(WAITS))
        await transaction.commit()
        await until(lambda: agent.cancelled == 1)
        await ended(connection, stream_id)
    assert agent.results == [["q", 2]]


async def test_a_takeover_waits_for_a_result_in_flight_and_the_next_run_has_it(dsn: str) -> None:
    agent = Lasting()
    async with in_tool(dsn, agent) as (worker, connection, stream_id), connected(dsn) as taker:
        await connection.execute(
            "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$"
        )
        await connection.execute("CREATE TRIGGER gate BEFORE INSERT ON baton.step FOR EACH ROW EXECUTE FUNCTION gate()")
        await connection.execute("SELECT pg_advisory_lock(1)")
        fence = running(worker, stream_id).outbox.fence
        agent.go_on.set()
        await until(lambda: connection.fetchval(WAITS))
        taking = asyncio.create_task(take_away(taker, fence))
        waiting = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
        await until(lambda: connection.fetchval(waiting, taker.get_server_pid()))
        await connection.execute("SELECT pg_advisory_unlock(1)")
        await taking
        await agent.after_step.wait()
        running(worker, stream_id).abandon()  # as its next append or heartbeat would
        await ended(connection, stream_id)
    assert agent.calls == 1
    assert agent.results[-1] == ["q", 1]


async def take_away(connection: Connection, fence: Fence) -> None:
    """Give a stream back to the queue, as the reaper does with a dead worker's."""
    assert await stream_queue.requeue(connection, fence) is not None


async def test_a_result_after_the_end_is_refused_quietly(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    tasks: list[asyncio.Task[Any]] = []
    go_on = asyncio.Event()
    caplog.set_level(logging.WARNING)

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        tasks.append(asyncio.create_task(request.step("late", go_on.wait)))
        yield "end"

    async with connected(dsn) as connection, working(dsn, generate, **SLOW) as worker:
        stream_id = await queue(dsn)
        assert (await ended(connection, stream_id)).status == "completed"
        await until(lambda: not worker.slots.runs)
        go_on.set()
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert await kept(connection) == []
    assert "is lost to this worker" not in caplog.text


# The database is away


async def test_a_result_is_kept_when_the_database_is_back_and_the_tool_not_run_again(dsn: str) -> None:
    agent = Agent()
    async with Proxy(dsn) as proxy, connected(dsn) as connection:
        async with working(proxy.dsn, agent, **SLOW):
            stream_id = await queue(dsn)
            await agent.in_tool.wait()
            proxy.stall()
            proxy.cut()
            agent.go_on.set()
            await until(lambda: proxy.accepted > 5)  # which the worker has without it
            assert (agent.results, await kept(connection)) == ([], [])
            proxy.resume()
            assert (await ended(connection, stream_id)).status == "completed"
        assert text(await events(connection, stream_id)) == "['q', 1] of run 1"
    assert (agent.calls, agent.runs) == (1, 1)


async def test_a_result_whose_reply_was_lost_is_kept_once(dsn: str) -> None:
    agent = Agent()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        await request.step("first", lambda: 1)  # so that the statement is prepared: one reply to hold
        async for item in agent(request):
            yield item

    async with Proxy(dsn) as proxy, connected(dsn) as connection:
        async with working(proxy.dsn, generate, **SLOW):
            stream_id = await queue(dsn)
            await agent.in_tool.wait()
            proxy.hold_replies()
            agent.go_on.set()
            await until(lambda: keeps(connection, 2))
            assert agent.results == []
            proxy.cut()
            proxy.resume()
            assert (await ended(connection, stream_id)).status == "completed"
        assert text(await events(connection, stream_id)) == "['q', 1] of run 1"
    assert (agent.calls, agent.runs) == (1, 1)


async def keeps(connection: Connection, count: int) -> bool:
    return len(await kept(connection)) == count


async def test_a_cancelled_statement_costs_only_its_connection(dsn: str) -> None:
    records = Records(dsn)
    async with connected(dsn) as connection:
        sleeping = asyncio.create_task(records.run(lambda opened: opened.execute("SELECT pg_sleep(60)")))
        sleeps = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        await until(lambda: connection.fetchval(sleeps))
        sleeping.cancel()
        await asyncio.gather(sleeping, return_exceptions=True)
        assert await records.run(lambda opened: opened.fetchval("SELECT 1")) == 1
    records.close()
    assert await records.run(lambda opened: opened.fetchval("SELECT 2")) == 2
    records.close()


# Limits and ends


async def test_a_stream_is_not_silent_while_its_step_runs(dsn: str) -> None:
    agent = Lasting()
    async with in_tool(dsn, agent, idle_timeout_seconds=1800) as (worker, _, stream_id):
        run = running(worker, stream_id)
        run.last_event_at -= 3600
        worker.slots.enforce_limits()
        assert (run.steps.running, run.silent_seconds) == (1, 0)
        agent.go_on.set()
        await agent.after_step.wait()
        # Silence is counted from the end of the step.
        worker.slots.enforce_limits()
        assert (run.steps.running, run.silent_seconds < 1800) == (0, True)
        assert worker.slots.runs[stream_id] is run
        assert agent.cancelled == 0


async def test_a_step_ends_at_the_streams_longest_duration(dsn: str) -> None:
    agent = Agent()
    async with in_tool(dsn, agent) as (worker, connection, stream_id):
        running(worker, stream_id).started_at -= 100_000
        worker.slots.enforce_limits()
        assert (await ended(connection, stream_id)).error_code == "max_duration"
    assert agent.tool_cancelled == 1


async def test_a_cancelled_stream_cancels_its_tool(dsn: str) -> None:
    agent = Agent()
    async with in_tool(dsn, agent) as (_, connection, stream_id):
        await connection.execute("UPDATE baton.stream SET cancel_requested_at = now() WHERE id = $1", stream_id)
        assert (await ended(connection, stream_id)).status == "cancelled"
        assert await kept(connection) == []
    assert agent.tool_cancelled == 1


async def test_a_blocking_function_does_not_hold_the_worker_up(dsn: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def tool() -> str:
        entered.set()
        return "done" if leave.wait(60) else "too late"

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield await request.step("tool", tool) if request.input else "at once"

    async with connected(dsn) as connection, working(dsn, generate, **SLOW):
        blocked = await queue(dsn, given=True)
        await until(entered.is_set)
        assert (await ended(connection, await queue(dsn))).status == "completed"
        leave.set()
        await ended(connection, blocked)
        assert text(await events(connection, blocked)) == "done"


async def test_an_error_in_a_step_ends_the_stream_as_it_would_outside(dsn: str) -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if request.input == "refused":
            await request.step("tool", refused)
        await request.step("tool", lambda: "x" * 2000)
        yield "never"

    def refused() -> None:
        raise baton.GenerationError("no_stock", "Sold out.")

    async with connected(dsn) as connection, working(dsn, generate, max_event_bytes=1024):
        stream = await ended(connection, await queue(dsn, given="refused"))
        assert (stream.error_code, stream.error_message) == ("no_stock", "Sold out.")
        stream = await ended(connection, await queue(dsn))
        assert (stream.error_code, stream.error_message) == ("generator_error", GENERATOR_FAULT)
        assert await kept(connection) == []


async def test_an_erased_stream_leaves_no_state_and_no_results(dsn: str) -> None:
    agent = Lasting()
    agent.go_on.set()
    async with (
        connected(dsn) as connection,
        working(dsn, agent, **SLOW),
        pool(dsn, size=1, timeout_seconds=10) as opened,
    ):
        erased, other = await queue(dsn), UUID(int=1)
        await agent.after_step.wait()
        await connection.execute("INSERT INTO baton.step VALUES ($1, 'other', '', 0, '')", other)
        for stream_id in (erased, other):
            await connection.execute(
                "INSERT INTO baton.stream_state (stream_id, after_seq, state) VALUES ($1, 0, '')", stream_id
            )
        assert await stream_ending.erase(opened, erased)
        for table in ("step", "stream_state"):
            assert [row[0] for row in await connection.fetch(f"SELECT stream_id FROM baton.{table}")] == [other]
