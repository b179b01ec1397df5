"""What bounds a stream in time, each with its own code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.faults.viewers import Viewer
from tests.support.cluster import Cluster, Tap, echo
from tests.support.logbook import DEADLINE_SECONDS, until

QUICK: dict[str, Any] = {"worker_heartbeat_seconds": 0.1, "queue_poll_seconds": 0.1}


async def ends_with(cluster: Cluster, tap: Tap | None, settings: dict[str, Any], **body: Any) -> tuple[Viewer, str]:
    pod = await cluster.pod()
    await cluster.worker({"replay": tap or echo}, **QUICK | settings)
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, **body))
    end = await viewer.end()
    assert (end["status"], end["finish_reason"]) == ("failed", "error")
    return viewer, end["error"]["code"]


@pytest.mark.parametrize("where", ["setting", "stream"])
@pytest.mark.parametrize("limit", ["max_duration", "idle_timeout"])
async def test_a_stream_that_takes_too_long_ends_with_its_code_and_its_text(
    cluster: Cluster, limit: str, where: str
) -> None:
    given = {f"{limit}_seconds": 0.4}
    settings, body = (given, {}) if where == "setting" else ({}, given)
    tap = Tap()
    tap.let("so far")
    viewer, code = await ends_with(cluster, tap, settings, **body)
    assert code == limit
    assert viewer.text == "so far"
    await asyncio.wait_for(tap.cancelled.wait(), DEADLINE_SECONDS)


@pytest.mark.parametrize("where", ["setting", "stream"])
async def test_a_stream_not_claimed_in_time_ends_with_its_code(cluster: Cluster, where: str) -> None:
    given = {"queue_timeout_seconds": 0.4}
    settings, body = (given, {}) if where == "setting" else ({}, given)
    # The pod knows of this generator; the worker, which only watches, does not have it.
    pod = await cluster.pod(generators={"elsewhere": "no:where"})
    await cluster.worker({"replay": echo}, **QUICK | settings)
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, generator="elsewhere", **body))
    end = await viewer.end()
    assert end["error"]["code"] == "queue_timeout"
    assert len(viewer.events) == 1


async def test_an_active_generator_outlives_its_idle_timeout(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    await cluster.worker({"replay": tap}, **QUICK)
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, idle_timeout_seconds=1.0))
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + 2.5:
        tap.let("word ")
        await viewer.has(len(viewer.events) + 1)
        await asyncio.sleep(0.05)
    tap.end()
    assert (await viewer.end())["status"] == "completed"


async def test_waiting_for_a_slow_database_does_not_count_as_idle(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    worker = await cluster.worker({"replay": tap}, **QUICK, buffer_events=1)
    stream_id = await cluster.create(pod, idle_timeout_seconds=0.5)
    viewer = Viewer(cluster.client, pod.url, stream_id)
    tap.let("one ")
    await viewer.has(1)
    async with cluster.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE baton.batch IN SHARE MODE")
        tap.let(*(f"{number} " for number in range(20)))
        (run,) = worker.slots.runs.values()
        await until(lambda: run._waits_for_database)
        # Three times the timeout, in which the heartbeat looks again and again.
        beats = "SELECT heartbeat FROM baton.worker"
        goal = await connection.fetchval(beats) + 15

        async def looked() -> bool:
            return bool(await cluster.pool.fetchval(beats) >= goal)

        await until(looked)
    tap.end()
    end = await viewer.end()
    assert end["status"] == "completed"
    assert viewer.text == "one " + "".join(f"{number} " for number in range(20))
