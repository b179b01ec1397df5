"""Helpers for tests of workers: a stream's log and row, and the checks of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from baton.db import event_log, stream_creation, stream_queue, streams, worker_rows
from baton.db.postgres import Connection, Pool, pool
from baton.db.stream_creation import NewStream
from baton.db.stream_queue import Claim
from baton.db.streams import Stream
from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded
from baton.settings import Settings
from baton.snapshot import Snapshot
from baton.worker.worker import Worker
from baton.worker.workers import Workers

# How long a test waits before it fails. It is long, for slow machines under load.
DEADLINE_SECONDS = 60
ANSWER = "who goes there"


async def until(condition: Callable[[], bool | Awaitable[bool]], within_seconds: float = DEADLINE_SECONDS) -> None:
    """Poll for a condition that has no signal."""
    async with asyncio.timeout(within_seconds):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


async def queue(
    dsn: str,
    *,
    generator: str = "test",
    on_worker_lost: str = "retry",
    may_continue: bool = False,
    given: Any = None,
    tenant: str = "",
) -> UUID:
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        new = NewStream(generator, given, {}, on_worker_lost, tenant, may_continue=may_continue)
        return (await stream_creation.create(opened, new))[0].id


async def queue_many(connection: Connection, count: int, *, on_worker_lost: str = "retry") -> list[UUID]:
    rows = await connection.fetch(
        "INSERT INTO baton.stream (generator, input, on_worker_lost) "
        "SELECT 'test', convert_to(i::text, 'UTF8'), $2 FROM generate_series(1, $1) AS i RETURNING id",
        count,
        on_worker_lost,
    )
    return [row[0] for row in rows]


async def until_after(connection: Connection | Pool, stream_id: UUID, milliseconds: int = 1) -> None:
    """Wait until the database's clock is this far beyond a stream's id, so that the ids of later streams are greater.

    Ids are ordered by their millisecond, and streams of the same one are in no order.
    """
    goal = (stream_id.int >> 80) + milliseconds

    async def reached() -> bool:
        return bool(
            await connection.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000 >= $1::bigint", goal)
        )

    await until(reached)


async def claimed(connection: Connection, count: int = 1) -> list[UUID]:
    """Streams under epoch 1, in ascending order."""
    ids = await queue_many(connection, count)
    await connection.execute("UPDATE baton.stream SET status = 'running', epoch = 1 WHERE id = ANY ($1)", ids)
    return sorted(ids)


async def claim_as(connection: Connection, worker_id: UUID, generators: list[str], limit: int) -> list[Claim]:
    """Claim as a registered worker; unregistered ones get nothing."""
    await employ(connection, worker_id)
    place = await worker_rows.place(connection, worker_id)
    return await stream_queue.claim(connection, worker_id, generators, limit, place=place)


async def employ(connection: Connection, worker_id: UUID) -> None:
    """Give a worker a row."""
    await connection.execute(
        "INSERT INTO baton.worker (id, name, generators, concurrency) VALUES ($1, 'test', '{}', 1) "
        "ON CONFLICT DO NOTHING",
        worker_id,
    )


async def row(connection: Connection, stream_id: UUID) -> Stream:
    found = await streams.get(connection, stream_id)
    assert found is not None
    return found


async def events(connection: Connection, stream_id: UUID) -> list[dict[str, Any]]:
    """Return all events of a stream. Check that its log has no gap and no repeat, and ends as its row says."""
    found: list[dict[str, Any]] = []
    rows = await connection.fetch("SELECT * FROM baton.batch WHERE stream_id = $1 ORDER BY first_seq", stream_id)
    for batch in rows:
        assert batch["first_seq"] == len(found) + 1
        lines = batch["events"].split(b"\n")
        assert batch["last_seq"] == len(found) + len(lines)
        found += map(orjson.loads, lines)
        assert batch["terminal"] == (found[-1]["type"] == "done")
    assert [event["type"] for event in found[:-1]].count("done") == 0
    stream = await row(connection, stream_id)
    if stream.ended:
        assert found
        assert found[-1]["status"] == stream.status
        assert found[-1].get("error", {}).get("code") == stream.error_code
        assert found[-1]["finish_reason"] == stream.finish_reason
    else:
        assert not found or found[-1]["type"] != "done"
    return found


def snapshot(found: list[dict[str, Any]]) -> Snapshot:
    return Snapshot.of([orjson.dumps(event).decode() for event in found], len(found))


def text(found: list[dict[str, Any]]) -> str:
    """The text that a client shows for them; a `reset` clears it."""
    return snapshot(found).text


async def ended(connection: Connection, stream_id: UUID) -> Stream:
    """Wait for a stream's end."""

    async def has_ended() -> bool:
        return (await row(connection, stream_id)).ended

    await until(has_ended)
    return await row(connection, stream_id)


async def tail(connection: Connection, stream_id: UUID) -> int:
    return (await event_log.read_tail(connection, stream_id)).last_seq


async def until_tail(connection: Connection, stream_id: UUID, least: int) -> None:
    async def reached() -> bool:
        return await tail(connection, stream_id) >= least

    await until(reached)


async def answer(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Yield three words."""
    for word in ("who", " goes", " there"):
        yield word


QUICK: dict[str, Any] = {
    "flush_interval_milliseconds": 5,
    "worker_heartbeat_seconds": 0.05,
    "queue_poll_seconds": 0.05,
    "lease_seconds": 0.3,
    "partition_days_ahead": 1,
}


def settings(dsn: str, **changes: Any) -> Settings:
    """Settings with short intervals."""
    return Settings.load(database_url=dsn, **(QUICK | changes))


@asynccontextmanager
async def working(
    dsn: str, generators: Mapping[str, Generator] | Generator = answer, **changes: Any
) -> AsyncIterator[Worker]:
    """Run a worker in this process; it is cancelled at the end, without a drain."""
    named = generators if isinstance(generators, Mapping) else {"test": generators}
    workers = Workers(settings(dsn, **changes), named)
    (worker,) = workers.all
    task = asyncio.create_task(workers.run())
    ready = asyncio.create_task(worker.ready.wait())
    try:
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_SECONDS)
        assert worker.ready.is_set() or task.result() is None
        yield worker
    finally:
        ready.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def working_for(
    databases: Mapping[str, Any], generators: Mapping[str, Generator] | Generator = answer, **changes: Any
) -> AsyncIterator[Workers]:
    """Run the workers of several databases in this process; they are cancelled at the end, without a drain."""
    named = generators if isinstance(generators, Mapping) else {"test": generators}
    workers = Workers(Settings.load(databases=dict(databases), **(QUICK | changes)), named)
    task = asyncio.create_task(workers.run())
    try:
        await until(lambda: workers.ready.is_set() or task.done())
        if task.done():
            task.result()
        yield workers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def claims_in(workers: Workers) -> dict[str, bool]:
    """Whether each of the workers claims streams, by its database."""
    return {worker.database: worker.claims for worker in workers.all}


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def has_events(pool: Pool, stream_id: str) -> bool:
    """Return whether something of a stream is in the log."""
    found: bool = await pool.fetchval("SELECT EXISTS (SELECT FROM baton.batch WHERE stream_id = $1)", UUID(stream_id))
    return found


async def pod_waits_for_the_log(pool: Pool) -> bool:
    """Return whether a query of a pod waits for a lock of the log's table."""
    return bool(
        await pool.fetchval(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted "
            "AND relation = 'baton.batch'::regclass AND application_name = 'baton pod'"
        )
    )
