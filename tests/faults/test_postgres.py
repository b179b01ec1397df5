"""Postgres that crashes, throws out sessions, is full, slow, or has lost something."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from tests.faults.servers import BreakablePostgres
from tests.faults.viewers import Viewer, counted
from tests.support.cluster import Author, Cluster, Tap, echo, text
from tests.support.databases import execute
from tests.support.follower import following
from tests.support.logbook import until

from baton.chaos.proxy import Proxy
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

FILL = "SELECT pg_notify('fill', repeat('x', 7900) || i) FROM generate_series(1, 4) AS i"
DAMAGED = b'data: {"type":"error","error":{"code":"log_damaged","message":"Part of the stream is missing."}}\n\n'


async def counting(request: GenerationRequest, /) -> AsyncIterator[Yielded]:
    for number in range(request.input):
        yield f"{number} "
        await asyncio.sleep(0.01)


async def log_of(cluster: Cluster, stream_id: str) -> list[dict[str, Any]]:
    rows = await cluster.pool.fetch("SELECT data FROM baton.event WHERE stream_id = $1 ORDER BY seq", UUID(stream_id))
    return [orjson.loads(row["data"]) for row in rows]


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster, *, count: int = 200) -> AsyncIterator[list[Viewer]]:
    """Two pods, two workers, ten streams with a viewer on each pod; in the end all of it must have arrived."""
    pods = [await cluster.pod(reconnect_milliseconds=50) for _ in range(2)]
    for _ in range(2):
        await cluster.worker({"replay": counting}, worker_concurrency=5)  # type: ignore[dict-item]
    ids = [await cluster.create(pods[0], input=count) for _ in range(10)]
    viewers = [Viewer(cluster.client, pod.url, stream_id) for stream_id in ids for pod in pods]
    for viewer in viewers:
        await viewer.has(1)
    yield viewers
    for viewer, stream_id in zip(viewers, [item for item in ids for _ in pods], strict=True):
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == counted(count)
        assert viewer.events == await log_of(cluster, stream_id)
        assert "reset" not in {event["type"] for event in viewer.events}


async def test_a_postgres_crash_loses_no_sent_event_and_ends_no_stream(
    breakable: BreakablePostgres, breakable_cluster: Cluster
) -> None:
    async with under_load(breakable_cluster):
        await breakable.crash()


async def test_terminated_backends_lose_and_repeat_nothing(breakable_cluster: Cluster) -> None:
    async with under_load(breakable_cluster) as viewers:
        chance = random.Random(7)
        while not all(viewer.task.done() for viewer in viewers):
            await asyncio.sleep(chance.uniform(0.02, 0.3))
            victims = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'baton %'"
            for row in await _fetch(breakable_cluster, victims):
                if chance.random() < 0.3:
                    await _fetch(breakable_cluster, f"SELECT pg_terminate_backend({row['pid']})")


async def _fetch(cluster: Cluster, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(cluster.dsn)
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def full_queue(cluster: Cluster) -> AsyncIterator[None]:
    """Fill the notify queue of the whole server: a session that listens and stays in a transaction pins it."""
    pinning = await asyncpg.connect(cluster.dsn)
    try:
        await pinning.execute("LISTEN nothing")
        await pinning.execute("BEGIN")
        await pinning.execute("SELECT 1")
        with contextlib.suppress(asyncpg.ProgramLimitExceededError):
            while True:
                await cluster.pool.execute(FILL)
        yield
    finally:
        await pinning.close()


@pytest.mark.slow
async def test_streams_work_while_the_notify_queue_is_full(
    breakable_cluster: Cluster,
) -> None:
    cluster, tap = breakable_cluster, Tap()
    pod = await cluster.pod(log_poll_seconds=0.2)
    await cluster.worker({"replay": tap})
    async with full_queue(cluster):
        stream_id = await cluster.create(pod)
        viewer = Viewer(cluster.client, pod.url, stream_id)
        tap.let("one ")
        await viewer.has(1)
        tap.let("two")
        await viewer.has(2)
        answer = await cluster.client.post(f"{pod.url}/v1/streams/{stream_id}/cancel")
        assert answer.status_code == 202
        assert (await viewer.end())["status"] == "cancelled"
        assert viewer.text == "one two"
        assert (await cluster.client.delete(f"{pod.url}/v1/streams/{stream_id}")).status_code == 204
        # Pods and workers can be started nevertheless.
        another = await cluster.pod(log_poll_seconds=0.2)
        await cluster.worker({"echo": echo})
        viewer = Viewer(cluster.client, another.url, await cluster.create(another, generator="echo", input=["hello"]))
        assert (await viewer.end())["status"] == "completed"
    heard = pod.metric("baton_notifications_received_total")
    # And no longer than it is full: with no help from outside, notifications arrive again.
    await cluster.worker({"again": counting})  # type: ignore[dict-item]
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, generator="again", input=300))
    await until(lambda: pod.metric("baton_notifications_received_total") > heard)
    assert (await viewer.end())["status"] == "completed"


async def test_a_slow_disk_slows_streams_and_loses_no_event(
    breakable: BreakablePostgres, breakable_cluster: Cluster
) -> None:
    # commit_delay does nothing while fewer than commit_siblings others are at work: hence none.
    for name, value in (("commit_delay", "100000"), ("commit_siblings", "0")):
        await execute(breakable.dsn, f"ALTER SYSTEM SET {name} = {value}")
    await execute(breakable.dsn, "SELECT pg_reload_conf()")
    try:
        async with under_load(breakable_cluster, count=100):
            assert await breakable_cluster.pool.fetchval("SHOW commit_siblings") == "0"
    finally:
        await execute(breakable.dsn, "ALTER SYSTEM RESET ALL")
        await execute(breakable.dsn, "SELECT pg_reload_conf()")


@pytest.mark.parametrize("terminal", [False, True], ids=["middle", "end"])
async def test_a_flush_with_an_unknown_outcome_is_stored_once(cluster: Cluster, terminal: bool) -> None:
    pod, tap = await cluster.pod(), Tap()
    async with Proxy(cluster.dsn) as proxy:
        await cluster.worker({"replay": tap, "echo": echo}, database_url=proxy.dsn)
        await Viewer(cluster.client, pod.url, await cluster.create(pod, generator="echo", input=["a", "b"])).end()
        stream_id = await cluster.create(pod)
        viewer = Viewer(cluster.client, pod.url, stream_id)
        # The statements of flushes are prepared by then, so that the reply that is held is that of a commit.
        tap.let("one ")
        await viewer.has(1)
        proxy.hold_replies()
        tap.let("two ")
        if terminal:
            tap.end()

        async def committed() -> bool:
            return len(await log_of(cluster, stream_id)) >= 2

        await until(committed)
        await until(lambda: proxy.holding > 0)
        proxy.cut()
        proxy.resume()
        if not terminal:
            tap.let("three")
            tap.end()
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == ("one two " if terminal else "one two three")
        assert viewer.events == await log_of(cluster, stream_id)


async def _with_hole(cluster: Cluster) -> Author:
    """A stream whose third batch is gone."""
    author = await cluster.author()
    await author.write_texts([2, 2], padding=3000)
    author.lose(text(5, 3000), text(6, 3000))
    await author.write_texts([2], padding=3000)
    return author


@pytest.mark.parametrize("window_bytes", [4096, 1 << 20], ids=["hole behind the window", "hole in the window"])
async def test_a_gap_in_the_log_is_reported_and_then_refused(cluster: Cluster, window_bytes: int) -> None:
    pod = await cluster.pod(relay_window_bytes=window_bytes, log_poll_seconds=0.05)
    author = await _with_hole(cluster)
    url = f"{pod.url}/v1/streams/{author.id}/events"
    if window_bytes == 4096:
        async with following(cluster.client, pod.url, author.id) as follower:
            assert await follower.rest() == author.frames[:4]
            # Without an id: it is no event, and moves no cursor.
            assert follower.comments[-1] == DAMAGED
    for _ in range(5):
        # A pod remembers it, so that a client does not come back for ever.
        answer = await cluster.client.get(url, headers={"last-event-id": "4"})
        assert (answer.status_code, answer.json()["code"]) == (500, "log_damaged")
        reads = pod.metric("baton_log_reads_total")
        await until(lambda: not pod.shard.relays._relays or pod.metric("baton_subscribers") == 0)
        assert pod.metric("baton_log_reads_total") <= reads + 1


@pytest.mark.parametrize("kept", [0, 2], ids=["nothing left", "the end lost"])
async def test_a_missing_log_of_an_ended_stream_is_reported(cluster: Cluster, kept: int) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write_texts([1, 1, 1])
    await author.write(text(4), end=True)
    await cluster.pool.execute("DELETE FROM baton.batch WHERE first_seq > $1", kept)
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events")
    assert (answer.status_code, answer.json()["code"]) == (500, "log_damaged")
    # What is left is no answer either.
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")
    assert (answer.status_code, answer.json()["code"]) == (500, "log_damaged")


async def test_subscribers_of_a_live_relay_get_an_error_at_a_gap(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    async with following(cluster.client, pod.url, author.id) as follower:
        assert (await follower.next_event())["seq"] == 1
        author.lose(text(2))
        await author.write(text(3))
        assert await follower.rest() == author.frames[:1]
        assert follower.comments[-1] == DAMAGED
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events", headers={"last-event-id": "1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "log_damaged")
