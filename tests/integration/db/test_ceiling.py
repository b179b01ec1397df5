"""As many partitions as Baton allows, and as many sessions as a server takes by default: no lock runs out.

The server's settings are Postgres' defaults. Beside the locks that each session keeps for itself (16) it has room for
some 8,000; one statement that looked into all partitions took up to 1,200 of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg.transaction
import pytest
from tests.support.cluster import Cluster, echo
from tests.support.follower import following, texts
from tests.support.logbook import claim_as, claimed, connected, employ, queue_many
from tests.support.past import day, maintained, old_partition, old_stream

from baton.db import event_log, partitions, retention, stream_ending, worker_rows
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Connection
from baton.db.stream_ending import End
from baton.doctor.examination import examine
from baton.doctor.finding import Thresholds
from baton.errors import StreamExpired
from baton.events import encode_text
from baton.outcome import Outcome
from baton.schema.retention_policy import Policy
from baton.settings import Settings
from baton.worker import reaper

SESSIONS = 80
WORKER = UUID(int=7)
DAYS_AHEAD = 30
KEPT_DAYS = partitions.MOST - DAYS_AHEAD - 1
MODES = ("auto", "force_custom_plan", "force_generic_plan")


async def at_the_ceiling(connection: Connection) -> None:
    await partitions.create_ahead(connection, DAYS_AHEAD)
    async with connection.transaction():
        for days_ago in range(2, KEPT_DAYS + 1):
            await old_partition(connection, days_ago)
    assert len(await partitions.attached(connection)) == partitions.MOST


@contextlib.asynccontextmanager
async def sessions(dsn: str, count: int) -> AsyncIterator[list[Connection]]:
    """As many as are open at once with 20 pods and workers."""
    opened: list[Connection] = []
    try:
        for number in range(count):
            mode = MODES[number % len(MODES)]
            opened.append(await asyncpg.connect(dsn, server_settings={"plan_cache_mode": mode}))
        yield opened
    finally:
        for connection in opened:
            connection.terminate()


async def use_the_log(connection: Connection, own: list[UUID], read: list[UUID]) -> None:
    """All that pods and workers do with the log's rows, for streams of their own and for streams that others read."""
    assert len(await event_log.append(connection, [Append(item, 1, 1, 1, encode_text("x")) for item in own])) == len(
        own
    )
    ending, reset, orphan, erased = own
    outcome = Outcome.completed("stop")
    assert await event_log.append(connection, [Append(ending, 1, 2, 2, outcome.encode(), outcome)])
    for stream_id in [*own, *read]:
        assert await event_log.read(connection, stream_id, 0)
        assert await event_log.read_newest(connection, stream_id, 100)
        assert (await event_log.read_tail(connection, stream_id)).last_seq
    assert len(await event_log.tails(connection, read)) == len(read)
    assert await event_log.tails(connection, []) == {}
    assert await stream_ending.end(connection, End.of_claimed(Fence(reset, 1), outcome))
    given = worker_rows.Orphan(Fence(orphan, 1), 3, "fail")
    await reaper.release(connection, given, max_attempts=3)
    assert (await event_log.read_tail(connection, orphan)).outcome is not None
    await event_log.erase(connection, erased, keep_end=False)


@contextlib.asynccontextmanager
async def holding(
    opened: list[Connection], own: list[list[UUID]], read: list[UUID]
) -> AsyncIterator[list[asyncpg.transaction.Transaction]]:
    """Use the log in a transaction on each connection, all at once; none ends before the block."""
    transactions = [connection.transaction() for connection in opened]
    await asyncio.gather(*[item.start() for item in transactions])
    await asyncio.gather(*[use_the_log(item, ids, read) for item, ids in zip(opened, own, strict=True)])
    yield transactions
    await asyncio.gather(*[item.rollback() for item in transactions])


@pytest.mark.slow
async def test_no_lock_runs_out_at_the_ceiling(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(cluster.dsn) as beside, sessions(cluster.dsn, SESSIONS) as opened:
        await at_the_ceiling(beside)
        assert await beside.fetchval("SHOW max_locks_per_transaction") == "64"
        read = [await old_stream(beside, days) for days in (0, 1, 9, 200, KEPT_DAYS)]
        await employ(beside, WORKER)
        own = [await claimed(beside, 4) for _ in opened]
        await beside.execute("UPDATE baton.stream SET worker_id = $1 WHERE status = 'running'", WORKER)
        waiting = await queue_many(beside, 4)
        # After some executions Postgres may change to plans for any arguments.
        for _ in range(2):
            async with holding(opened, own, read):
                pass
        async with holding(opened, own, read):
            await pods_and_workers_work(cluster)
            await look_after_it(beside, cluster.dsn)
        claims = await claim_as(beside, WORKER, ["test"], 10)
        assert len(claims) == len(waiting)
        gone = partitions.name_of(await day(beside, KEPT_DAYS))
        assert f"Dropped partition {gone}." in await maintained(beside, Policy(DAYS_AHEAD, KEPT_DAYS - 1))
        assert type(await retention.absence(beside, read[-1])) is StreamExpired
        assert "shared memory" not in caplog.text


async def pods_and_workers_work(cluster: Cluster) -> None:
    """A pod's poll finds what nobody notified of, and a worker's stream arrives."""
    pod = await cluster.pod(database_pool_size=2)
    await cluster.worker({"replay": echo}, lease_seconds=600)
    author = await cluster.author(generator="test")
    async with following(cluster.client, pod.url, str(author.id)) as follower:
        await author.write_texts([1, 2], notify=False)
        await author.write(end=True, notify=False)
        assert await follower.rest() == author.frames
    created = await cluster.create(pod, input=["a", "b"])
    async with following(cluster.client, pod.url, created) as follower:
        assert texts(await follower.rest()) == ["a", "b"]


async def look_after_it(connection: Connection, dsn: str) -> None:
    """What workers and people do beside those transactions."""
    assert len(await partitions.create_ahead(connection, DAYS_AHEAD + 30)) == 30
    assert await partitions.missing(connection, DAYS_AHEAD + 31) != []
    settings = Settings.load(database_url=dsn, partition_days_ahead=DAYS_AHEAD, retention_days=KEPT_DAYS)
    diagnosis = await examine(settings, thresholds=Thresholds(sample_seconds=0.01))
    codes = {item.code for item in diagnosis.findings}
    assert {"partitions", "partitions_many", "retention"} <= codes
    assert "check_failed" not in codes
