"""Workers of several databases, one of which is away, comes back, hangs, or does not fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from tests.faults.servers import BreakablePostgres, free_port
from tests.support.databases import execute, named_database, number_databases
from tests.support.logbook import (
    ANSWER,
    answer,
    claims_in,
    connected,
    ended,
    events,
    queue,
    text,
    until,
    until_tail,
    working_for,
)

from baton.chaos.proxy import Proxy
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

Entries = dict[str, dict[str, Any]]

NOWHERE = "postgresql://127.0.0.1:1/nowhere"


class Held:
    """Yields a word, and the rest when the test lets it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        yield "who"
        if request.input == "held":
            await self.go.wait()
        for word in (" goes", " there"):
            yield word


@pytest.fixture
async def shaky(databases: Entries) -> AsyncIterator[Proxy]:
    """The way to the database `b`, whose entry leads through it."""
    async with Proxy(databases["b"]["url"]) as proxy:
        databases["b"]["url"] = proxy.dsn
        yield proxy


@pytest.fixture
async def crashing(dsn: str, breakable: BreakablePostgres) -> AsyncIterator[Entries]:
    """Two databases, of which `b` is on a server that may be stopped."""
    await execute(breakable.dsn, "CREATE DATABASE baton_test TEMPLATE baton_template")
    entries = {
        "a": {"url": dsn, "number": 0},
        "b": {"url": named_database(breakable.dsn, "baton_test"), "number": 1},
    }
    await number_databases(entries)
    yield entries
    await execute(breakable.dsn, "DROP DATABASE baton_test WITH (FORCE)")


async def run_one(url: str, stream_id: Any = None) -> None:
    """Run a stream to its end."""
    stream_id = stream_id or await queue(url)
    async with connected(url) as connection:
        assert (await ended(connection, stream_id)).status == "completed"
        found = await events(connection, stream_id)
        assert text(found) == ANSWER
        assert "reset" not in {event["type"] for event in found}


async def test_a_database_that_is_away_at_the_start_is_served_when_it_is_back(
    databases: Entries, caplog: pytest.LogCaptureFixture
) -> None:
    direct = databases["b"]["url"]
    stream_id = await queue(direct)
    async with Proxy(direct) as proxy:
        databases["b"]["url"] = proxy.dsn
        proxy.lead_to(NOWHERE)
        async with working_for(databases, answer) as workers:
            await run_one(databases["a"]["url"])
            assert claims_in(workers) == {"a": True, "b": False}
            await until(lambda: "The database 'b' is away" in caplog.text)
            proxy.lead_to(direct)
            await run_one(direct, stream_id)
            assert claims_in(workers) == {"a": True, "b": True}


async def test_a_worker_leaves_while_a_database_is_still_away(databases: Entries) -> None:
    databases["b"]["url"] = f"postgresql://127.0.0.1:{free_port()}/x"
    async with working_for(databases, answer) as workers:
        workers.leave()
        async with connected(databases["a"]["url"]) as connection:
            await until(lambda: _has_no_workers(connection))


async def _has_no_workers(connection: Any) -> bool:
    return not await connection.fetchval("SELECT count(*) FROM baton.worker")


async def test_a_wrong_database_that_comes_later_is_never_used(
    databases: Entries, caplog: pytest.LogCaptureFixture
) -> None:
    direct = databases["b"]["url"]
    async with connected(direct) as connection:
        stream_id = await queue(direct)
        await connection.execute("UPDATE baton.database_identity SET number = 7")
        async with Proxy(direct) as proxy:
            databases["b"]["url"] = proxy.dsn
            proxy.lead_to(NOWHERE)
            async with working_for(databases, answer) as workers:
                proxy.lead_to(direct)
                await until(lambda: "The database 'b' cannot be used: BATON_DATABASES: the url of 'b'" in caplog.text)
                await run_one(databases["a"]["url"])
                assert claims_in(workers) == {"a": True, "b": False}
        assert await connection.fetchval("SELECT status FROM baton.stream WHERE id = $1", stream_id) == "queued"


async def test_a_database_that_dies_pauses_its_own_streams_only(
    crashing: Entries, breakable: BreakablePostgres
) -> None:
    held = Held()
    url = crashing["b"]["url"]
    stream_id = await queue(url, given="held")
    async with working_for(crashing, held) as workers:
        async with connected(url) as connection:
            await until_tail(connection, stream_id, 1)
        await asyncio.to_thread(breakable.stop)
        try:
            await until(lambda: claims_in(workers) == {"a": True, "b": False})
            held.go.set()
            await run_one(crashing["a"]["url"])
        finally:
            await asyncio.to_thread(breakable.start)
        # No other worker has watched the lease, so the stream is still this one's.
        await run_one(url, stream_id)
        await run_one(url)
        assert claims_in(workers) == {"a": True, "b": True}


async def test_a_database_that_hangs_takes_no_slot_from_the_others(databases: Entries, shaky: Proxy) -> None:
    ids = [await queue(databases["a"]["url"]) for _ in range(5)]
    async with working_for(databases, answer, worker_concurrency=1, lease_seconds=600) as workers:
        await until(lambda: all(claims_in(workers).values()))
        shaky.stall()
        ids += [await queue(databases["a"]["url"]) for _ in range(5)]
        for stream_id in ids:
            await run_one(databases["a"]["url"], stream_id)
        shaky.resume()
        await run_one(databases["b"]["url"])
