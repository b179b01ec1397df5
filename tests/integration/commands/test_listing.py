"""`baton streams` and `baton workers`: what they print is what the database has."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.cluster import Cluster, Tap
from tests.support.logbook import until

from baton.commands.listing import StreamQuery, list_streams, list_workers
from baton.db import stream_creation, stream_ending, worker_rows
from baton.db.stream_creation import NewStream
from baton.generators.registry import load_generators

ALL = StreamQuery(None, None, 20)


async def printed(
    capsys: pytest.CaptureFixture[str], show: Callable[..., None], *arguments: object, as_json: bool
) -> Any:
    await asyncio.to_thread(show, *arguments, as_json=as_json)
    out = capsys.readouterr().out
    return json.loads(out) if as_json else out


async def test_streams_are_listed_newest_first(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cluster.settings()
    assert await printed(capsys, list_streams, settings, ALL, as_json=False) == "No stream matches.\n"
    assert await printed(capsys, list_streams, settings, ALL, as_json=True) == []
    first, _ = await stream_creation.create(cluster.pool, NewStream("one", None, {}, "fail", tenant="acme"))
    second, _ = await stream_creation.create(cluster.pool, NewStream("two\t\x1b[2J", None, {}, "fail"))
    assert await stream_ending.end_any(cluster.pool, first.id, stream_ending.QUEUE_TIMEOUT)

    header, *rows = (await printed(capsys, list_streams, settings, ALL, as_json=False)).splitlines()
    assert header.split("\t")[:4] == ["stream", "tenant", "generator", "status"]
    assert [row.split("\t")[:4] for row in rows] == [
        [str(second.id), "-", r"two\t\x1b[2J", "queued"],
        [str(first.id), "acme", "one", "failed"],
    ]
    assert rows[1].endswith("\tqueue_timeout")

    for wanted, expected in (
        (StreamQuery("acme", None, 20), [first.id]),
        (StreamQuery(None, "queued", 20), [second.id]),
        (StreamQuery(None, None, 1), [second.id]),
        (StreamQuery("acme", "queued", 20), []),
    ):
        found = await printed(capsys, list_streams, settings, wanted, as_json=True)
        assert [item["id"] for item in found] == list(map(str, expected))


async def test_a_waiting_stream_is_listed_with_its_deadline(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    author = await cluster.author()
    await author.wait("an approval")
    wanted, settings = StreamQuery(None, "waiting", 20), cluster.settings()
    deadline = await cluster.pool.fetchval("SELECT wait_until FROM baton.stream")
    _, row = (await printed(capsys, list_streams, settings, wanted, as_json=False)).splitlines()
    assert row.split("\t")[3] == "waiting"
    assert row.endswith(f"\tuntil {deadline:%Y-%m-%d %H:%M:%S}")
    (item,) = await printed(capsys, list_streams, settings, wanted, as_json=True)
    assert item["wait_until"] == deadline.isoformat()


async def test_workers_are_listed_with_what_they_do(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cluster.settings()
    told = await printed(capsys, list_workers, settings, as_json=False)
    assert told == "No workers. Run `baton worker` to start one.\n"
    await cluster.worker(load_generators(cluster.settings()), worker_name="first", worker_concurrency=3)
    header, row = (await printed(capsys, list_workers, settings, as_json=False)).splitlines()
    assert header.split("\t")[:2] == ["worker", "streams"]
    assert row.split("\t")[:2] == ["first", "0 of 3"]
    (found,) = await printed(capsys, list_workers, settings, as_json=True)
    assert (found["name"], found["generators"], found["running"]) == ("first", ["replay"], 0)
    assert 0 <= found["silent_seconds"] < 60


async def test_a_silent_stream_is_marked_in_the_list(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cluster.settings()
    pod, tap = await cluster.pod(), Tap()
    # Half of a heartbeat is a long silence here.
    worker = await cluster.worker({"replay": tap}, silent_after_seconds=0.05, worker_heartbeat_seconds=0.1)
    first = await cluster.create(pod)
    await tap.started.wait()

    async def listed() -> dict[str, Any]:
        found = await printed(capsys, list_streams, settings, StreamQuery(None, None, 20, silent=True), as_json=True)
        return {item["id"]: item["silent_seconds"] for item in found}

    async def both() -> bool:
        return len(await listed()) == 2

    async def one() -> bool:
        return first in await listed()

    await until(one)
    second = await cluster.create(pod)
    await until(both)
    found = await listed()
    assert list(found) == [first, second]
    assert found[first] > found[second] >= 0.05
    header, *rows = (await printed(capsys, list_streams, settings, ALL, as_json=False)).splitlines()
    place = header.split("\t").index("silent for")
    assert all(row.split("\t")[place].endswith(" s") for row in rows)
    console = (await cluster.client.get(f"{pod.url}/console/streams")).json()["data"]
    assert [item["id"] for item in console if item["silent_seconds"]] == [second, first]
    tap.end()
    tap.end()
    await until(lambda: worker.metrics.running == 0)
    assert await listed() == {}
    assert (await cluster.client.get(f"{pod.url}/v1/streams/{first}")).json()["status"] == "completed"


async def test_a_worker_lists_only_its_longest_silent_streams(cluster: Cluster) -> None:
    async with cluster.pool.acquire() as connection:
        worker_id = await worker_rows.register(connection, "w", ["replay"], 1000)
        silences = {uuid.uuid4(): float(seconds) for seconds in range(worker_rows.MOST_SILENT + 10)}
        await worker_rows.heartbeat(connection, worker_id, 0, silences)
        found = await worker_rows.silences(connection)
        assert len(found) == worker_rows.MOST_SILENT
        assert min(found.values()) >= 10
        await worker_rows.heartbeat(connection, worker_id)
        assert await worker_rows.silences(connection) == {}
