"""Pods and workers that are asked to leave, one by one and all in turn."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.servers import free_port
from tests.faults.test_connections import deaf, fat
from tests.faults.test_leases import row
from tests.faults.viewers import Viewer, counted
from tests.support.cluster import Author, Cluster, Tap, ended
from tests.support.follower import following
from tests.support.logbook import DEADLINE_SECONDS, pod_waits_for_the_log, until
from tests.support.processes import SERVES, Running, environment, running

from baton.worker.workers import Workers

FOLDER = Path(__file__).parent
RETRY = re.compile(rb": baton\nretry: \d+\n\n")


@contextlib.asynccontextmanager
async def leaver(cluster: Cluster, generators: dict[str, Any], **settings: Any) -> AsyncIterator[Any]:
    """A worker and the task in which it runs."""
    worker = Workers(cluster.settings(**settings), generators)
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: worker.ready.is_set() or task.done())
        yield worker, task
    finally:
        await ended(task)


async def test_a_leaving_worker_finishes_short_streams_and_hands_over_the_rest(
    cluster: Cluster,
) -> None:
    pod = await cluster.pod()
    taps = {name: Tap() for name in ("ends", "retry", "fail", "late")}
    # What makes the others begin at once is that they are told, and no lease that runs out.
    patient = {"lease_seconds": 600, "queue_poll_seconds": 60, "worker_heartbeat_seconds": 0.1}
    names = dict.fromkeys(taps, "no:where")
    pod = await cluster.pod(generators=names)
    async with leaver(cluster, taps, **patient, worker_drain_seconds=2) as (worker, task):
        ids = {
            name: await cluster.create(pod, generator=name, on_worker_lost="fail" if name == "fail" else "retry")
            for name in ("ends", "retry", "fail")
        }
        viewers = {name: Viewer(cluster.client, pod.url, stream_id) for name, stream_id in ids.items()}
        for name, viewer in viewers.items():
            taps[name].let("so far")
            await viewer.has(1)
        worker.leave()
        ids["late"] = await cluster.create(pod, generator="late")
        taps["ends"].end()
        assert (await viewers["ends"].end())["status"] == "completed"
        assert not task.done()
        end = await viewers["fail"].end()
        assert (end["error"]["code"], viewers["fail"].text) == ("worker_left", "so far")
        await asyncio.wait_for(task, DEADLINE_SECONDS)
        assert taps["retry"].cancelled.is_set()
        assert taps["fail"].cancelled.is_set()
        assert not taps["late"].started.is_set()
    assert (await row(cluster, ids["retry"])).status == (await row(cluster, ids["late"])).status == "queued"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.worker") == 0
    successor = {name: Tap() for name in ("retry", "late")}
    await cluster.worker(successor, **patient)
    late = Viewer(cluster.client, pod.url, ids["late"])
    for name, viewer in (("retry", viewers["retry"]), ("late", late)):
        successor[name].let("anew")
        successor[name].end()
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "anew"
    assert (await row(cluster, ids["retry"])).attempts == 1


async def test_a_stream_handed_over_starts_at_once_on_another_worker(cluster: Cluster) -> None:
    pod = await cluster.pod()
    patient = {"lease_seconds": 600, "queue_poll_seconds": 60, "worker_heartbeat_seconds": 60}
    first, second = Tap(), Tap()
    async with leaver(cluster, {"replay": first}, **patient, worker_drain_seconds=0) as (worker, task):
        viewer = Viewer(cluster.client, pod.url, await cluster.create(pod))
        first.let("so far")
        await viewer.has(1)
        await cluster.worker({"replay": second}, **patient)
        worker.leave()
        await asyncio.wait_for(second.started.wait(), DEADLINE_SECONDS)
        await asyncio.wait_for(task, DEADLINE_SECONDS)
        second.let("anew")
        second.end()
        assert (await viewer.end())["status"] == "completed"
    assert [event["type"] for event in viewer.events] == ["text", "reset", "text", "done"]


async def test_a_worker_asked_twice_leaves_at_once(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    async with leaver(cluster, {"replay": tap}, worker_drain_seconds=3600) as (worker, task):
        stream_id = await cluster.create(pod)
        await tap.started.wait()
        worker.leave()
        beats = await cluster.pool.fetchval("SELECT heartbeat FROM baton.worker")
        await until(lambda: _beaten(cluster, beats + 2))
        assert not task.done()
        worker.leave()
        await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert (await row(cluster, stream_id)).status == "queued"


async def _beaten(cluster: Cluster, beats: int) -> bool:
    return bool(await cluster.pool.fetchval("SELECT heartbeat FROM baton.worker") >= beats)


@pytest.mark.slow
async def test_a_pod_with_many_clients_exits_within_ten_seconds_of_a_signal(cluster: Cluster) -> None:
    author = await cluster.author()
    await author.write_texts([1, 2, 3])
    env = environment(BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0")
    async with running("serve", env=env) as pod, contextlib.AsyncExitStack() as stack:
        url = (await pod.said(SERVES))[2]
        followers = []
        for _ in range(200):
            follower = await stack.enter_async_context(following(cluster.client, url, author.id))
            followers.append(follower)
        for follower in followers:
            await follower.events(6)
        pod.signal(signal.SIGTERM)
        for follower in followers:
            assert await follower.rest() == author.frames
            # Told to come back, and ended in order: a cut connection would have raised.
            assert RETRY.fullmatch(follower.comments[-1])
        assert await pod.ends(10) == 0


@contextlib.asynccontextmanager
async def stuck_pod(cluster: Cluster, author: Author) -> AsyncIterator[tuple[Running, str]]:
    """A pod process that follows a stream from its tail, and whose reads of the log wait for a lock from then on."""
    env = environment(
        BATON_DATABASE_URL=cluster.dsn,
        BATON_ALLOW_ANONYMOUS="true",
        BATON_PORT="0",
        BATON_DRAIN_SECONDS="0",
        BATON_LOG_POLL_SECONDS="60",
        BATON_RELAY_WINDOW_BYTES="65536",
    )
    async with running("serve", env=env) as pod:
        url = (await pod.said(SERVES))[2]
        async with (
            following(cluster.client, url, author.id, len(author.lines)) as follower,
            cluster.pool.acquire() as connection,
            connection.transaction(),
        ):
            await follower.next_block()
            await connection.execute("LOCK TABLE baton.batch")
            yield pod, url


def faults_of(pod: Running) -> list[str]:
    return [line for line in pod.lines if "Traceback" in line or "has not been started" in line]


async def test_a_client_behind_the_window_is_sent_away_while_its_query_waits(cluster: Cluster) -> None:
    author = await fat(cluster, batches=4)
    async with (
        stuck_pod(cluster, author) as (pod, url),
        following(cluster.client, url, author.id) as follower,
    ):
        await until(lambda: pod_waits_for_the_log(cluster.pool))
        pod.signal(signal.SIGTERM)
        assert await follower.rest() == []
        assert RETRY.fullmatch(follower.comments[-1])
        assert await pod.ends() == 0
    assert faults_of(pod) == []


async def test_a_request_whose_query_outlasts_the_pod_is_sent_to_another(cluster: Cluster) -> None:
    author = await fat(cluster, batches=1)
    async with stuck_pod(cluster, author) as (pod, url):
        asked = asyncio.create_task(cluster.client.get(f"{url}/v1/streams/{author.id}"))
        await until(lambda: pod_waits_for_the_log(cluster.pool))
        pod.signal(signal.SIGTERM)
        answer = await asked
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "is shutting down" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
        assert "x-baton-pod" in answer.headers
        assert await pod.ends() == 0
    assert faults_of(pod) == []


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
async def test_a_client_that_reads_nothing_is_cut_off_when_the_pod_leaves(cluster: Cluster, signals: int) -> None:
    author = await fat(cluster, batches=60)
    env = environment(
        BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0", BATON_DRAIN_SECONDS="0"
    )
    async with running("serve", env=env) as pod:
        url = (await pod.said(SERVES))[2]
        async with deaf(url, author.id), following(cluster.client, url, author.id) as follower:
            await follower.events(600)
            for _ in range(signals):
                pod.signal(signal.SIGTERM)
                await pod.said("Shutting down")
            assert await pod.ends() == 0
    assert faults_of(pod) == []
    # Both were sent away, one of them without taking leave.
    assert sum("is closed: drained" in line for line in pod.lines) == 2


@contextlib.asynccontextmanager
async def fleet(cluster: Cluster) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        yield Fleet(cluster, stack, free_port())


class Fleet:
    """Pods on one port, and workers, as processes."""

    def __init__(self, cluster: Cluster, stack: contextlib.AsyncExitStack, port: int) -> None:
        self._cluster = cluster
        self._stack = stack
        self._port = port
        self._started = 0
        self.url = f"http://127.0.0.1:{port}"

    async def start(self, command: str) -> Running:
        self._started += 1
        env = environment(
            BATON_DATABASE_URL=self._cluster.dsn,
            BATON_ALLOW_ANONYMOUS="true",
            BATON_PORT=str(self._port),
            BATON_POD_NAME=f"pod-{self._started}",
            BATON_GENERATORS="counting=answers:counting",
            BATON_DRAIN_SECONDS="0.5",
            BATON_WORKER_DRAIN_SECONDS="0.5",
            BATON_RECONNECT_MILLISECONDS="100",
        )
        process = await self._stack.enter_async_context(running(command, env=env, cwd=FOLDER))
        await process.said(SERVES if command == "serve" else "is ready for")
        return process

    async def replace(self, command: str, old: Running) -> None:
        """Start another one, and let the old one go."""
        await self.start(command)
        old.signal(signal.SIGTERM)
        assert await old.ends(20) == 0


@pytest.mark.slow
async def test_a_rolling_restart_of_everything_loses_and_repeats_nothing(cluster: Cluster) -> None:
    async with fleet(cluster) as processes:
        pods = [await processes.start("serve") for _ in range(2)]
        workers = [await processes.start("worker") for _ in range(2)]
        count = 250
        viewers = []
        for _ in range(20):
            body = {"generator": "counting", "input": {"count": count, "pause": 0.02}}
            created = await cluster.client.post(f"{processes.url}/v1/streams", json=body)
            viewers += [Viewer(cluster.client, processes.url, created.json()["id"]) for _ in range(2)]
        for viewer in viewers:
            await viewer.has(3)
        for command, old in (*(("serve", pod) for pod in pods), *(("worker", worker) for worker in workers)):
            await processes.replace(command, old)
        for viewer in viewers:
            assert (await viewer.end(60))["status"] == "completed"
            assert viewer.text == counted(count)
        assert {pod for viewer in viewers for pod in viewer.pods} > {"pod-1", "pod-2"}


async def test_a_worker_process_leaves_with_exit_code_0(cluster: Cluster) -> None:
    async with fleet(cluster) as processes:
        worker = await processes.start("worker")
        pod = await cluster.pod(generators={"counting": "no:where"})
        stream_id = await cluster.create(pod, generator="counting", input={"count": 1000, "pause": 0.05})
        viewer = Viewer(cluster.client, pod.url, stream_id)
        await viewer.has(2)
        worker.signal(signal.SIGTERM)
        assert await worker.ends() == 0
        assert (await row(cluster, stream_id)).status == "queued"
        await ended(viewer.task)
