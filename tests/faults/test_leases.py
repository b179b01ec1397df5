"""Dead workers, workers that only seem dead, and workers that do not know yet that they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from tests.faults.viewers import Viewer, counted
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.cluster import Cluster, Tap, ended
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.chaos.proxy import Proxy
from baton.db import streams
from baton.db.streams import Stream
from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded
from baton.worker.workers import Workers

QUEUE = "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('replay', 'null', 'retry') RETURNING id"


@contextlib.asynccontextmanager
async def mortal(cluster: Cluster, generator: Generator, **settings: Any) -> AsyncIterator[Workers]:
    """A worker in this process that hands nothing over at its end: it is simply no more."""
    worker = Workers(cluster.settings(**QUICK | settings), {"replay": generator})
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: worker.ready.is_set() or task.done())
        yield worker
    finally:
        await ended(task)


async def row(cluster: Cluster, stream_id: str) -> Stream:
    found = await streams.get(cluster.pool, UUID(stream_id))
    assert found is not None
    return found


async def log_of(cluster: Cluster, stream_id: str) -> list[dict[str, Any]]:
    rows = await cluster.pool.fetch("SELECT data FROM baton.event WHERE stream_id = $1 ORDER BY seq", UUID(stream_id))
    return [orjson.loads(row["data"]) for row in rows]


# Ten seconds are promised of a machine that is not overwhelmed.
@pytest.mark.slow
@pytest.mark.parametrize("within_seconds", [DEADLINE_SECONDS, 10])
async def test_viewers_learn_of_a_killed_worker_within_ten_seconds_by_default(
    cluster: Cluster, within_seconds: float
) -> None:
    pod = await cluster.pod()
    given = {"generator": "counting", "input": {"count": 10_000, "pause": 0.02}}
    async with worker_process(cluster.dsn, "counting") as first:
        retried = await cluster.create(pod, **given, on_worker_lost="retry")
        failed = await cluster.create(pod, **given, on_worker_lost="fail")
        one, two = (Viewer(cluster.client, pod.url, stream_id) for stream_id in (retried, failed))
        await asyncio.gather(one.has(5), two.has(5))
        async with worker_process(cluster.dsn, "counting"):
            first.signal(signal.SIGKILL)
            await first.ends()
            async with asyncio.timeout(within_seconds):
                await until(lambda: {"type": "reset", "reason": "worker_lost"} in one.events)
                end = await two.end()
            assert (end["status"], end["error"]["code"]) == ("failed", "worker_lost")
            assert counted(10_000).startswith(two.text)
            assert two.text
            before = len(one.events)
            await one.has(before + 5)
            assert counted(10_000).startswith(one.text)
    await ended(one.task)


async def test_a_stream_that_kills_its_workers_is_tried_max_attempts_times(cluster: Cluster) -> None:
    pod = await cluster.pod()
    attempts: list[int] = []

    async def deadly(request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        attempts.append(request.attempt)
        yield "poison"
        await asyncio.Event().wait()

    stream_id = await cluster.create(pod)
    viewer = Viewer(cluster.client, pod.url, stream_id)
    for attempt in (1, 2):
        async with mortal(cluster, deadly, max_attempts=2):
            await until(lambda attempt=attempt: len(attempts) == attempt)  # type: ignore[misc]
            await viewer.has(1 if attempt == 1 else 3)
    async with mortal(cluster, deadly, max_attempts=2):
        end = await viewer.end()
    assert end["error"]["code"] == "worker_lost"
    assert "tried 2 times" in end["error"]["message"]
    assert attempts == [1, 2]
    assert [event["type"] for event in viewer.events] == ["text", "reset", "text", "done"]


async def test_a_zombie_writes_nothing_and_its_generator_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    pod = await cluster.pod()
    log = tmp_path / "fates"
    given = {"count": 200, "pause": 0.02, "log": str(log)}
    async with worker_process(cluster.dsn, "counting", **QUICK) as zombie:
        stream_id = await cluster.create(pod, generator="counting", input=given)
        viewer = Viewer(cluster.client, pod.url, stream_id)
        await viewer.has(5)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        async with worker_process(cluster.dsn, "counting", **QUICK):
            await until(lambda: any(event["type"] == "reset" for event in viewer.events))
            os.kill(zombie.process.pid, signal.SIGCONT)
            await zombie.said("declared dead|is lost to this worker")
            await until(lambda: log.exists() and "attempt 1 cancelled" in log.read_text())
            assert (await viewer.end())["status"] == "completed"
    assert viewer.text == counted(200)
    assert log.read_text().splitlines() == ["attempt 1 cancelled", "attempt 2 ended"]
    assert viewer.events == await log_of(cluster, stream_id)
    query = "SELECT epoch FROM baton.batch WHERE stream_id = $1 ORDER BY first_seq"
    epochs = [record["epoch"] for record in await cluster.pool.fetch(query, UUID(stream_id))]
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 3}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "stalled"])
async def test_an_outage_of_three_times_the_lease_ends_no_healthy_stream(cluster: Cluster, fault: str) -> None:
    taps = [Tap(), Tap()]
    settings = QUICK | {"lease_seconds": 1.2}
    async with Proxy(cluster.dsn) as near, Proxy(cluster.dsn) as far:
        pod = await cluster.pod(database_url=near.dsn, database_timeout_seconds=5)
        ids = []
        for tap, proxy in zip(taps, (near, far), strict=True):
            await cluster.worker({"replay": tap}, **settings, database_url=proxy.dsn, worker_concurrency=1)
            ids.append(await cluster.create(pod, on_worker_lost="fail"))
            await tap.started.wait()
        viewers = [Viewer(cluster.client, pod.url, stream_id) for stream_id in ids]
        for tap, viewer in zip(taps, viewers, strict=True):
            tap.let("before ")
            await viewer.has(1)
        for proxy in (near, far):
            proxy.stall()
            if fault == "cut":
                proxy.cut()
        for tap in taps:
            tap.let("meanwhile ")
        await asyncio.sleep(3 * settings["lease_seconds"])
        # Who is back first must not take the other for dead.
        beats = await cluster.pool.fetchval("SELECT sum(heartbeat) FROM baton.worker")
        near.resume()
        await until(lambda: _more(cluster, beats))
        far.resume()
        for tap, viewer, stream_id in zip(taps, viewers, ids, strict=True):
            tap.let("after")
            tap.end()
            assert (await viewer.end())["status"] == "completed"
            assert viewer.text == "before meanwhile after"
            assert (await row(cluster, stream_id)).epoch == 1


async def test_a_claim_whose_reply_was_lost_is_handed_back(cluster: Cluster) -> None:
    pod, tap = await cluster.pod(), Tap()
    async with Proxy(cluster.dsn) as proxy:
        rare = {"worker_heartbeat_seconds": 60, "lease_seconds": 600}
        await cluster.worker({"replay": tap}, **QUICK | rare | {"database_url": proxy.dsn})
        async with cluster.pool.acquire() as connection, connection.transaction():
            # It is there for others when the claim, which waits for the lock, goes on.
            await connection.execute("LOCK TABLE baton.stream IN EXCLUSIVE MODE")
            stream_id = str(await connection.fetchval(QUEUE))
            await until(lambda: _claim_waits(cluster))
            proxy.hold_replies()
        await until(lambda: _is(cluster, stream_id, "running"))
        await until(lambda: proxy.holding > 0)
        assert not tap.started.is_set()
        proxy.cut()
        proxy.resume()
        tap.let("hello")
        tap.end()
        viewer = Viewer(cluster.client, pod.url, stream_id)
        assert (await viewer.end())["status"] == "completed"
    assert [event["type"] for event in viewer.events] == ["text", "done"]
    found = await row(cluster, stream_id)
    assert (found.attempts, found.epoch) == (1, 3)


async def _claim_waits(cluster: Cluster) -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%SKIP LOCKED%')"
    return await cluster.pool.fetchval(query) is True


async def _more(cluster: Cluster, beats: int) -> bool:
    return bool(await cluster.pool.fetchval("SELECT sum(heartbeat) FROM baton.worker") > beats)


async def _is(cluster: Cluster, stream_id: str, status: str) -> bool:
    return bool((await row(cluster, stream_id)).status == status)


@pytest.mark.slow
async def test_after_all_processes_were_suspended_none_is_declared_dead(cluster: Cluster) -> None:
    pod = await cluster.pod(generators={"counting": "no:where"})
    settings = QUICK | {"lease_seconds": 1.2, "worker_concurrency": 1}
    given = {"generator": "counting", "input": {"count": 100, "pause": 0.02}, "on_worker_lost": "fail"}
    async with (
        worker_process(cluster.dsn, "counting", **settings) as first,
        worker_process(cluster.dsn, "counting", **settings) as second,
    ):
        viewers = [Viewer(cluster.client, pod.url, await cluster.create(pod, **given)) for _ in range(2)]
        for viewer in viewers:
            await viewer.has(3)
        for worker in (first, second):
            worker.signal(signal.SIGSTOP)
        await asyncio.sleep(2 * settings["lease_seconds"])
        beats = await cluster.pool.fetchval("SELECT sum(heartbeat) FROM baton.worker")
        first.signal(signal.SIGCONT)
        await until(lambda: _more(cluster, beats + 1))
        second.signal(signal.SIGCONT)
        for viewer in viewers:
            assert (await viewer.end())["status"] == "completed"
            assert viewer.text == counted(100)
        assert not any("is dead" in line for worker in (first, second) for line in worker.lines)


@pytest.mark.slow
async def test_silently_dead_connections_cost_a_worker_no_stream(cluster: Cluster) -> None:
    pod, tap = await cluster.pod(), Tap()
    settings = QUICK | {"lease_seconds": 3}
    async with Proxy(cluster.dsn) as proxy:
        await cluster.worker({"replay": tap}, **settings, database_url=proxy.dsn)
        viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, on_worker_lost="fail"))
        tap.let("before ")
        await viewer.has(1)
        await cluster.worker({"other": Tap()}, **settings)
        beats = "SELECT min(heartbeat) FROM baton.worker"
        proxy.blackhole()
        proxy.resume()
        # It is found out, and repaired, before the lease is over, which the other one watches.
        goal = 1 + await cluster.pool.fetchval(beats) + settings["lease_seconds"] / settings["worker_heartbeat_seconds"]

        async def outlived() -> bool:
            return bool(await cluster.pool.fetchval(beats) >= goal)

        await until(outlived)
        tap.let("after")
        tap.end()
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "before after"
