"""Several databases of which one crashes: its streams pause, and the others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from tests.faults.servers import BreakablePostgres
from tests.faults.viewers import Viewer, counted
from tests.support.cluster import Cluster, RunningPod
from tests.support.databases import execute, named_database, number_databases

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.pod import placement
from baton.stream_ids import number_of

SETTINGS: dict[str, Any] = {
    "reconnect_milliseconds": 50,
    "log_poll_seconds": 0.3,
    "pod_heartbeat_seconds": 0.5,
    "database_timeout_seconds": 3,
}


async def counting(request: GenerationRequest, /) -> AsyncIterator[Yielded]:
    for number in range(request.input):
        yield f"{number} "
        await asyncio.sleep(0.02)


@pytest.fixture
async def entries(postgres: str, template: str, breakable: BreakablePostgres) -> AsyncIterator[dict[str, Any]]:
    """A database on the server that all tests use, and one on the server that may be broken."""
    name = f"baton_test_{secrets.token_hex(4)}"
    await execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    await execute(breakable.dsn, f"CREATE DATABASE {name} TEMPLATE baton_template")
    made = {
        "sound": {"url": named_database(postgres, name), "number": 0},
        "broken": {"url": named_database(breakable.dsn, name), "number": 1},
    }
    await number_databases(made)
    yield made
    for server in (postgres, breakable.dsn):
        await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.asynccontextmanager
async def two_pods(entries: dict[str, Any]) -> AsyncIterator[tuple[Cluster, list[RunningPod]]]:
    """Two pods and a worker, on both databases."""
    async with Cluster(entries["sound"]["url"], entries) as cluster:
        pods = [await cluster.pod(**SETTINGS) for _ in range(2)]
        generators: Any = {"replay": counting}
        await cluster.workers(generators)
        yield cluster, pods


async def streams_of(cluster: Cluster, pod: RunningPod, count: int) -> dict[int, list[str]]:
    """Create streams until each database has two; return their ids by its number."""
    found: dict[int, list[str]] = {0: [], 1: []}
    while min(map(len, found.values())) < 2:
        stream_id = await cluster.create(pod, input=count)
        found[number_of(UUID(stream_id))].append(stream_id)
    return found


async def test_a_crash_of_one_database_pauses_its_streams_alone(
    breakable: BreakablePostgres, entries: dict[str, Any]
) -> None:
    async with two_pods(entries) as (cluster, pods):
        ids = await streams_of(cluster, pods[0], 150)
        viewers = {
            number: [Viewer(cluster.client, pod.url, stream_id) for stream_id in those for pod in pods]
            for number, those in ids.items()
        }
        for viewer in (*viewers[0], *viewers[1]):
            await viewer.has(5)
        await asyncio.to_thread(breakable.stop)
        try:
            # The streams of the other database end meanwhile.
            for viewer in viewers[0]:
                assert (await viewer.end())["status"] == "completed"
                assert viewer.text == counted(150)
            assert not any(viewer.task.done() for viewer in viewers[1])
            for pod in pods:
                stream_id = await cluster.create(pod, input=3)
                assert number_of(UUID(stream_id)) == 0
                status = (await keyed(cluster, pod, 1)).status_code
                assert status == 503
                assert (await keyed(cluster, pod, 0)).status_code in {200, 201}
        finally:
            await asyncio.to_thread(breakable.start)
        for viewer in viewers[1]:
            assert (await viewer.end())["status"] == "completed"
            assert viewer.text == counted(150)
            assert "reset" not in {event["type"] for event in viewer.events}


async def keyed(cluster: Cluster, pod: RunningPod, home: int) -> Any:
    """Create a stream with a key whose home is this database."""
    names = {key: placement.name_of_key("", key) for key in (f"key-{index}" for index in range(99))}
    key = next(key for key, name in names.items() if placement.home(name, {0: 1, 1: 1}) == home)
    return await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 3}, headers={"idempotency-key": key})


async def test_creates_without_a_name_never_fail_while_one_database_is_down(
    breakable: BreakablePostgres, entries: dict[str, Any]
) -> None:
    async with two_pods(entries) as (cluster, pods):
        stopping = asyncio.Event()

        async def create_all_the_time(pod: RunningPod) -> list[str]:
            ids = []
            while not stopping.is_set():
                ids.append(await cluster.create(pod, input=1))
                await asyncio.sleep(0.01)
            return ids

        creating = [asyncio.create_task(create_all_the_time(pod)) for pod in pods]
        await asyncio.to_thread(breakable.stop)
        await asyncio.to_thread(breakable.start)
        stopping.set()
        for pod, task in zip(reversed(pods), creating, strict=True):
            for stream_id in (await task)[-10:]:
                answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
                assert answer.json()["status"] == "completed"
