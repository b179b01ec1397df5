"""The workers of one process: each database has one, and they share slots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import generate_latest
from tests.support.logbook import (
    ANSWER,
    QUICK,
    answer,
    claims_in,
    connected,
    ended,
    events,
    queue,
    row,
    text,
    until,
    until_tail,
    working_for,
)
from tests.support.processes import environment, running

from baton.errors import ConfigurationError, DatabaseUnreachable
from baton.generators import GenerationRequest
from baton.generators.preset import Preset
from baton.generators.protocol import Yielded
from baton.settings import Settings
from baton.worker.workers import Workers

Entries = dict[str, dict[str, Any]]


class Turns:
    """Runs one stream at a time, as the test lets it. `started` has the inputs of the streams, in their order."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.running = self.most = 0
        self._go = asyncio.Semaphore(0)

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.started.append(request.input)
        self.running += 1
        self.most = max(self.most, self.running)
        yield "a"
        await self._go.acquire()
        self.running -= 1

    async def next(self) -> None:
        """End a stream, and wait until the next one has begun."""
        count = len(self.started)
        self._go.release()
        await until(lambda: len(self.started) > count)

    def finish(self) -> None:
        for _ in range(100):
            self._go.release()


async def end_of(entry: dict[str, Any], stream_id: Any) -> str:
    """Wait for a stream's end, and return its text."""
    async with connected(entry["url"]) as connection:
        assert (await ended(connection, stream_id)).status == "completed"
        return text(await events(connection, stream_id))


async def test_one_process_runs_the_streams_of_all_databases(databases: Entries) -> None:
    ids = {name: await queue(entry["url"]) for name, entry in databases.items()}
    async with working_for(databases) as workers:
        for name, entry in databases.items():
            assert await end_of(entry, ids[name]) == ANSWER
        assert claims_in(workers) == {"a": True, "b": True}
        exposed = generate_latest(workers.metrics.registry).decode()
        for name in databases:
            assert f'baton_worker_claiming{{database="{name}"}} 1.0' in exposed
        assert "baton_inter_token_seconds_count 4.0" in exposed
        assert 'baton_time_to_first_token_seconds_count{generator="test",model=""} 2.0' in exposed
        # Each row has the tokens of its own database, so that sums over all rows are right.
        for entry in databases.values():
            async with connected(entry["url"]) as connection:
                await until(lambda connection=connection: _has_tokens(connection, 3))  # type: ignore[misc]


async def _has_tokens(connection: Any, count: int) -> bool:
    return bool(await connection.fetchval("SELECT tokens = $1 FROM baton.worker", count))


async def test_a_worker_serves_only_the_databases_that_it_is_given(databases: Entries) -> None:
    left = await queue(databases["a"]["url"])
    taken = await queue(databases["b"]["url"])
    async with working_for(databases, worker_databases="b") as workers:
        assert await end_of(databases["b"], taken) == ANSWER
        assert claims_in(workers) == {"b": True}
        async with connected(databases["a"]["url"]) as connection:
            assert (await row(connection, left)).status == "queued"
            assert await connection.fetchval("SELECT count(*) FROM baton.worker") == 0


async def test_a_database_with_a_long_queue_leaves_the_next_slot_to_another(
    databases: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.worker.places.PATIENCE_SECONDS", 60)  # for slow machines
    turns = Turns()
    urls = [entry["url"] for entry in databases.values()]
    last = [await queue(urls[0], given="a") for _ in range(6)][-1]
    # A heartbeat during a claim makes it find nothing.
    rare = {"worker_heartbeat_seconds": 60, "lease_seconds": 600}
    async with working_for(databases, turns, worker_concurrency=1, **rare) as workers:
        await until(lambda: turns.started == ["a"])
        await until(lambda: all(claims_in(workers).values()))
        other = await queue(urls[1], given="b")
        slots = workers.all[1].slots.share._slots
        await until(lambda: slots._since is None and bool(slots._wants))  # it has looked, and found no slot
        await turns.next()
        assert turns.started == ["a", "b"]
        turns.finish()
        assert await end_of(databases["a"], last) == "a"
        assert await end_of(databases["b"], other) == "a"
    assert turns.most == 1


async def test_a_generators_limit_counts_over_all_databases(databases: Entries) -> None:
    turns = Turns()
    ids = [(entry, await queue(entry["url"], given=name)) for name, entry in databases.items() for _ in range(3)]
    async with working_for(databases, Preset(turns, "test", {"max_concurrency": 1})):
        for _ in range(5):
            await until(lambda: turns.running == 1)
            await turns.next()
        turns.finish()
        for entry, stream_id in ids:
            await end_of(entry, stream_id)
    assert turns.most == 1


async def test_leaving_hands_streams_over_in_all_databases(databases: Entries) -> None:
    turns = Turns()
    ids = {name: await queue(entry["url"]) for name, entry in databases.items()}
    workers = Workers(
        Settings.load(databases=databases, **QUICK | {"lease_seconds": 600, "worker_drain_seconds": 0.2}),
        {"test": turns},
    )
    task = asyncio.create_task(workers.run())
    await until(lambda: turns.running == 2)
    workers.leave()
    await task
    for name, entry in databases.items():
        async with connected(entry["url"]) as connection:
            stream = await row(connection, ids[name])
            assert (stream.status, stream.attempts) == ("queued", 0)
            assert await connection.fetchval("SELECT count(*) FROM baton.worker") == 0


async def test_the_command_serves_all_databases_until_a_signal(databases: Entries) -> None:
    names = environment(
        BATON_DATABASES=json.dumps(databases), BATON_LOG_FORMAT="json", BATON_WORKER_DRAIN_SECONDS="600"
    )
    ids = {name: await queue(entry["url"], generator="replay", may_continue=True) for name, entry in databases.items()}
    async with running("worker", env=names) as worker, contextlib.AsyncExitStack() as stack:
        connections = {
            name: await stack.enter_async_context(connected(entry["url"])) for name, entry in databases.items()
        }
        for name, connection in connections.items():
            await worker.said(f'is ready for .*"database":"{name}"')
            await until_tail(connection, ids[name], 1)
        worker.signal(signal.SIGTERM)
        assert await worker.ends() == 0
        for name, connection in connections.items():
            assert (await row(connection, ids[name])).status == "queued"
            assert await connection.fetchval("SELECT count(*) FROM baton.worker") == 0


async def test_swapped_databases_stop_the_start(databases: Entries) -> None:
    databases["a"]["url"], databases["b"]["url"] = databases["b"]["url"], databases["a"]["url"]
    with pytest.raises(ConfigurationError, match="leads to the database with the number"):
        async with working_for(databases, answer):
            pass


async def test_a_worker_does_not_start_if_no_database_answers() -> None:
    url = "postgresql://127.0.0.1:1/x"
    entries = {name: {"url": url, "number": number} for number, name in enumerate("ab")}
    with pytest.raises(DatabaseUnreachable, match=r"No database answers\. 'a': No Postgres could be reached"):
        async with working_for(entries):
            pass


async def test_only_databases_that_are_named_can_be_served(databases: Entries) -> None:
    with pytest.raises(ConfigurationError, match=r"^BATON_WORKER_DATABASES has a name .* are 'a', 'b'\."):
        Settings.load(databases=databases, worker_databases="a,c")
    with pytest.raises(ConfigurationError, match=r"are none, because it is not set\."):
        Settings.load(database_url=databases["a"]["url"], worker_databases="a")
