"""A cancel reaches the generator on any worker, even if its notification is lost. Unwatched streams end too."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from tests.faults.test_leases import row
from tests.faults.viewers import Viewer
from tests.support.cluster import Cluster, RunningPod, Tap, echo, ended
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.chaos.proxy import Proxy
from baton.db import stream_ending

QUICK: dict[str, Any] = {"worker_heartbeat_seconds": 0.1, "queue_poll_seconds": 0.1, "lease_seconds": 2}


async def cancel(cluster: Cluster, pod: RunningPod, stream_id: str) -> int:
    return (await cluster.client.post(f"{pod.url}/v1/streams/{stream_id}/cancel")).status_code


async def test_a_heartbeat_finds_a_cancel_whose_notification_was_lost(cluster: Cluster) -> None:
    pod, tap = await cluster.pod(), Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pod)
    viewer = Viewer(cluster.client, pod.url, stream_id)
    tap.let("so far")
    await viewer.has(1)
    assert await stream_ending.request_cancel(cluster.pool, UUID(stream_id)) == "running"
    end = await viewer.end()
    assert (end["status"], viewer.text) == ("cancelled", "so far")
    assert tap.cancelled.is_set()


async def test_a_notification_of_a_cancel_reaches_the_streams_worker(cluster: Cluster) -> None:
    pod = await cluster.pod()
    taps = [Tap(), Tap()]
    ids = []
    for tap in taps:
        # The heartbeats are so rare that only the notification can reach it.
        await cluster.worker({"replay": tap}, worker_concurrency=1, worker_heartbeat_seconds=60, lease_seconds=600)
        ids.append(await cluster.create(pod))
        await tap.started.wait()
    viewers = [Viewer(cluster.client, pod.url, stream_id) for stream_id in ids]
    for first, other in ((0, 1), (1, 0)):
        assert await cancel(cluster, pod, ids[first]) == 202
        assert (await viewers[first].end())["status"] == "cancelled"
        assert taps[first].cancelled.is_set()
        assert taps[other].cancelled.is_set() == (first == 1)


async def test_a_queued_stream_is_cancelled_without_a_worker(cluster: Cluster) -> None:
    pod = await cluster.pod()
    stream_id = await cluster.create(pod)
    viewer = Viewer(cluster.client, pod.url, stream_id)
    await until(lambda: bool(viewer.pods))
    assert await cancel(cluster, pod, stream_id) == 200
    assert (await viewer.end())["status"] == "cancelled"
    tap = Tap()
    await cluster.worker({"replay": tap}, **QUICK)
    after = await cluster.create(pod)
    await tap.started.wait()
    assert (await row(cluster, stream_id)).attempts == 0
    await cancel(cluster, pod, after)


async def test_a_cancel_after_the_end_changes_nothing(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo}, **QUICK)
    stream_id = await cluster.create(pod, input=["done"])
    await Viewer(cluster.client, pod.url, stream_id).end()
    before = await row(cluster, stream_id)
    assert await cancel(cluster, pod, stream_id) == 200
    assert await row(cluster, stream_id) == before
    assert before.status == "completed"


async def test_a_stream_lives_while_watched_on_any_pod_and_then_ends(cluster: Cluster) -> None:
    settings = {"watch_interval_seconds": 0.1, "database_timeout_seconds": 1}
    pods = [await cluster.pod(**settings) for _ in range(2)]
    tap = Tap()
    await cluster.worker({"replay": tap}, **QUICK, **settings)
    stream_id = await cluster.create(pods[0], cancel_when_unwatched_seconds=1.0)
    for pod in pods:
        viewer = Viewer(cluster.client, pod.url, stream_id)
        await until(lambda viewer=viewer: bool(viewer.pods))  # type: ignore[misc]
        # Longer than it may be unwatched, and than the worker takes to trust what pods note.
        await _noted_for(cluster, stream_id, 1.6)
        assert (await row(cluster, stream_id)).status == "running"
        await ended(viewer.task)
    await asyncio.wait_for(tap.cancelled.wait(), DEADLINE_SECONDS)
    found = await cluster.client.get(f"{pods[0].url}/v1/streams/{stream_id}?wait=20")
    assert (found.json()["status"], found.json()["finish_reason"]) == ("cancelled", "unwatched")


async def test_an_unwatched_queued_stream_ends_too(cluster: Cluster) -> None:
    settings = {"watch_interval_seconds": 0.1, "database_timeout_seconds": 1}
    pod = await cluster.pod(**settings, generators={"elsewhere": "no:where"})
    await cluster.worker({"replay": echo}, **QUICK, **settings)
    stream_id = await cluster.create(pod, generator="elsewhere", cancel_when_unwatched_seconds=0.3)

    async def unwatched() -> bool:
        return (await row(cluster, stream_id)).finish_reason == "unwatched"

    await until(unwatched)


@pytest.mark.slow
async def test_an_outage_that_stops_pods_from_noting_watchers_cancels_nothing(cluster: Cluster) -> None:
    settings = {"watch_interval_seconds": 0.2, "database_timeout_seconds": 1}
    tap = Tap()
    async with Proxy(cluster.dsn) as near, Proxy(cluster.dsn) as far:
        pod = await cluster.pod(**settings, database_url=near.dsn)
        # It acts on what pods note once it has watched for three seconds: twice the interval and the timeout.
        trusting = {"watch_interval_seconds": 1, "database_timeout_seconds": 1, "database_url": far.dsn}
        await cluster.worker({"replay": tap}, **QUICK, **trusting)
        stream_id = await cluster.create(pod, cancel_when_unwatched_seconds=1.0)
        viewer = Viewer(cluster.client, pod.url, stream_id)
        tap.let("one ")
        await viewer.has(1)
        await _noted_for(cluster, stream_id, 3.5)
        # The worker's connections are lost with the pod's, and come back before the pod has noted anything.
        near.stall()
        far.stall()
        far.cut()
        await until(lambda: _seems_unwatched(cluster, stream_id))
        far.resume()
        await _beaten(cluster, 3)
        near.resume()
        await _noted_for(cluster, stream_id, 2)
        tap.let("two")
        tap.end()
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "one two"


async def _seems_unwatched(cluster: Cluster, stream_id: str) -> bool:
    query = "SELECT watched_at < clock_timestamp() - make_interval(secs => unwatched_timeout) FROM baton.stream"
    return bool(await cluster.pool.fetchval(f"{query} WHERE id = $1", UUID(stream_id)))


async def _beaten(cluster: Cluster, times: int) -> None:
    """Wait until the worker has sent this many more heartbeats, after each of which it checks its streams."""
    beats = "SELECT heartbeat FROM baton.worker"
    goal = await cluster.pool.fetchval(beats) + times

    async def reached() -> bool:
        return bool(await cluster.pool.fetchval(beats) >= goal)

    await until(reached)


async def _noted_for(cluster: Cluster, stream_id: str, seconds: float) -> None:
    """Wait until pods have noted for this long that the stream is watched."""
    query = "SELECT extract(epoch FROM watched_at)::float8 FROM baton.stream WHERE id = $1"
    seen: list[float] = []

    async def long_enough() -> bool:
        noted = await cluster.pool.fetchval(query, UUID(stream_id))
        if noted is not None:
            seen.append(noted)
        return bool(seen) and seen[-1] - seen[0] >= seconds

    await until(long_enough)
