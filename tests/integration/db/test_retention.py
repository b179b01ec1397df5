"""What clients and workers get at the retention horizon, and where the partitions end."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from tests.support.cluster import Author, Cluster, RunningPod, echo
from tests.support.databases import execute
from tests.support.follower import following, frames_after, numbers, texts
from tests.support.logbook import connected, until
from tests.support.past import KEPT_DAYS, day, id_at, maintained, old_stream, state

from baton.db import partitions, stream_creation, stream_ending, stream_queue
from baton.db.postgres import Connection
from baton.db.stream_creation import NewStream
from baton.schema.retention_policy import DAY_SECONDS

GONE_DAYS = KEPT_DAYS + 1
CALLS = (("GET", ""), ("GET", "?wait=5"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", ""))


async def answers(cluster: Cluster, pod: RunningPod, stream_id: object) -> set[tuple[int, str]]:
    """Return the status and code of every request about a stream."""
    found = set()
    for method, path in CALLS:
        answer = await cluster.client.request(method, f"{pod.url}/v1/streams/{stream_id}{path}")
        found.add((answer.status_code, answer.json()["code"]))
    return found


async def maintain(cluster: Cluster) -> list[str]:
    async with cluster.pool.acquire() as connection:
        return await maintained(connection)


async def old_author(cluster: Cluster, days_ago: int = GONE_DAYS) -> Author:
    """A running stream of a past day, which the test writes."""
    async with cluster.pool.acquire() as connection:
        return Author(cluster.pool, await old_stream(connection, days_ago, batches=0, ended=False), epoch=1)


async def test_every_request_for_an_expired_stream_gets_410(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await old_author(cluster)
    await author.write(b'{"type":"text","delta":"a"}', end=True)
    await maintain(cluster)
    assert await answers(cluster, pod, author.id) == {(410, "stream_expired")}
    headers = {"last-event-id": "1"}
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events", headers=headers)
    assert answer.status_code == 410
    first_kept = partitions.name_of(await day_of(cluster, KEPT_DAYS))[-8:]
    date = f"{first_kept[:4]}-{first_kept[4:6]}-{first_kept[6:]}"
    assert answer.json()["detail"].endswith(f"has expired: those created before {date} (UTC) are deleted.")
    later = UUID(int=author.id.int + (DAY_SECONDS * 1000 << 80))
    assert await answers(cluster, pod, later) == {(404, "stream_not_found")}


async def day_of(cluster: Cluster, days_ago: int) -> float:
    async with cluster.pool.acquire() as connection:
        return await day(connection, days_ago)


async def test_a_stream_that_runs_below_the_horizon_is_served(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await old_author(cluster)
    await author.write_texts([1, 2])
    await maintain(cluster)
    async with following(cluster.client, pod.url, author.id) as follower:
        await follower.events(3)
        await author.write(end=True)
        await follower.rest()
    assert follower.frames == author.frames
    assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")).json()["status"] == "completed"
    await maintain(cluster)
    # That pod may keep what it has sent for some seconds more.
    assert await answers(cluster, await cluster.pod(), author.id) == {(410, "stream_expired")}


async def test_a_follower_of_an_expired_stream_is_disconnected_and_then_gets_410(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await cluster.pod(relay_window_bytes=4096)
    author = await old_author(cluster)
    await author.write_texts([1] * 200, padding=20_000, notify=False)
    await author.write(end=True)
    async with following(cluster.client, pod.url, author.id) as follower:
        (first,) = await follower.events(1)
        await maintain(cluster)
        await follower.rest()
    got = numbers(follower.frames)
    assert got == list(range(first["seq"], len(got) + 1))
    assert len(got) < len(author.lines)
    assert "hole" not in caplog.text
    answer = await cluster.client.get(
        f"{pod.url}/v1/streams/{author.id}/events", headers={"last-event-id": str(got[-1])}
    )
    assert (answer.status_code, answer.json()["code"]) == (410, "stream_expired")


async def test_clients_of_kept_streams_notice_nothing(cluster: Cluster) -> None:
    """Clients replay, follow and create while the drop of a partition waits for a long transaction."""
    pod = await cluster.pod(relay_window_bytes=4096)
    gone, kept, live = await old_author(cluster), await old_author(cluster, KEPT_DAYS), await cluster.author()
    await gone.write(end=True)
    await kept.write_texts([3] * 100, padding=2000, notify=False)
    await kept.write(end=True)
    name = partitions.name_of(await day_of(cluster, GONE_DAYS))
    async with cluster.pool.acquire() as report, following(cluster.client, pod.url, live.id) as follower:
        async with report.transaction():
            await report.fetchval("SELECT count(*) FROM baton.batch")
            running = asyncio.create_task(maintain(cluster))
            await until_pending(cluster, name)
            assert await frames_after(cluster.client, pod.url, kept.id) == kept.frames
            for _ in range(20):
                await live.write_texts([2])
                assert len(await follower.events(2)) == 2
            await cluster.create(pod)
            assert not running.done()
        assert f"Dropped partition {name}." in await running
        await live.write(end=True)
        await follower.rest()
    assert follower.frames == live.frames
    assert await frames_after(cluster.client, pod.url, kept.id, 150) == kept.frames[150:]


async def until_pending(cluster: Cluster, name: str) -> None:
    async def pending() -> bool:
        async with cluster.pool.acquire() as connection:
            return await state(connection, name) == "pending"

    await until(pending)


async def test_the_key_of_an_expired_stream_creates_a_new_one(cluster: Cluster) -> None:
    pod = await cluster.pod()
    headers, author = {"idempotency-key": "k"}, await old_author(cluster)
    first = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=headers)
    await cluster.pool.execute("UPDATE baton.idempotency_key SET stream_id = $1", author.id)
    await author.write(end=True)
    again = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, str(author.id))
    await maintain(cluster)
    new = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=headers)
    assert new.status_code == 201
    assert len({first.json()["id"], again.json()["id"], new.json()["id"]}) == 3


# Where they end


async def lose_partitions(cluster: Cluster) -> None:
    """Drop the partitions of today and the next two days once a worker has created the last one."""
    names = [partitions.name_of(await day_of(cluster, days_ago)) for days_ago in (0, -1, -2)]

    async def all_there() -> bool:
        return bool(await cluster.pool.fetchval("SELECT to_regclass($1) IS NOT NULL", names[-1]))

    await until(all_there)
    for name in names:
        await cluster.pool.execute(f"DROP TABLE {name}")


async def test_everything_continues_after_partitions_ran_out(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo}, worker_heartbeat_seconds=0.05, partition_days_ahead=2)
    await lose_partitions(cluster)
    limits = stream_creation.Limits(queue_timeout=0.01)
    overdue, _ = await stream_creation.create(cluster.pool, NewStream("nobody", None, {}, "fail", limits=limits))
    await until(lambda: f"Stream {overdue.id} cannot be ended" in caplog.text)
    # It delays no other stream: only the log delays those.
    stuck = await cluster.create(pod, input=["a", "b"])
    await until(lambda: "run `baton maintain`" in caplog.text)
    async with following(cluster.client, pod.url, stuck) as follower:
        await follower.next_block()
        assert len(await maintain(cluster)) == 3
        assert texts(await follower.rest()) == ["a", "b"]
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{overdue.id}?wait=10")
    assert answer.json()["error"]["code"] == "queue_timeout"
    assert pod.pod.ready


async def test_streams_without_a_partition_do_not_stop_older_ones_from_ending(dsn: str) -> None:
    async with connected(dsn) as connection:
        for _ in range(100):
            await queued(connection, await day(connection, 0))
        older = await queued(connection, await day(connection, 1))
        await connection.execute(
            "ANALYZE baton.stream"
        )  # so few are not looked up by an index, in which they are sorted
        await connection.execute(f"DROP TABLE {partitions.name_of(await day(connection, 0))}")
        for item in await stream_queue.overdue(connection, 0.0):
            await stream_ending.end(connection, stream_queue.end_of(item))
        ended = "SELECT id FROM baton.stream WHERE status = 'failed'"
        assert await connection.fetchval(ended) == older


async def queued(connection: Connection, moment: float) -> UUID:
    """Insert a queued stream that was created at that moment."""
    stream_id = id_at(moment)
    await connection.execute(
        "INSERT INTO baton.stream (id, generator, input, on_worker_lost) VALUES ($1, 'nobody', 'null', 'fail')",
        stream_id,
    )
    return stream_id


async def test_a_pod_reports_how_far_partitions_reach(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At any time of day, the end of tomorrow is further away than this, and its beginning is nearer.
    monkeypatch.setattr("baton.db.partitions.LEAST_SECONDS", DAY_SECONDS)
    pod = await cluster.pod()
    metric = "baton_partitions_end_timestamp_seconds"
    await until(lambda: pod.shard.metrics.partitions_end is not None)
    assert pod.metric(metric) == await day_of(cluster, -2)
    assert "The log's partitions end" not in caplog.text
    await cluster.pool.execute(f"DROP TABLE {partitions.name_of(await day_of(cluster, -1))}")
    short = await cluster.pod()
    await until(lambda: "The log's partitions end in" in caplog.text)
    assert "Run `baton maintain`" in caplog.text
    assert short.metric(metric) == await day_of(cluster, -1)
    assert short.pod.ready


async def test_a_pod_looks_again_after_a_failure(
    postgres: str, cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.database_watch.LOOK_SECONDS", 0.01)
    pod = await cluster.pod()
    database = urlsplit(cluster.dsn).path[1:]
    await execute(postgres, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    await execute(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    await until(lambda: "The pod cannot measure the database" in caplog.text)
    await execute(postgres, f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    pod.shard.metrics.partitions_end = None
    await until(lambda: pod.shard.metrics.partitions_end is not None)
    assert not pod.pod.broken


@pytest.mark.parametrize("path", ["", "/events", "/events?last_event_id=1"])
async def test_a_stream_deleted_during_a_request_is_not_found(cluster: Cluster, path: str) -> None:
    pod = await cluster.pod()
    author = await old_author(cluster)
    await author.write_texts([1])
    await author.write(end=True)
    async with cluster.pool.acquire() as connection:
        async with connection.transaction():
            # The row is read, and then the log waits.
            await connection.execute("LOCK TABLE baton.batch")
            url = f"{pod.url}/v1/streams/{author.id}{path}"
            asking = asyncio.create_task(cluster.client.get(url))
            await until_waiting(cluster)
            await connection.execute("DELETE FROM baton.stream")
            await connection.execute("DELETE FROM baton.batch")
        answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found")


async def until_waiting(cluster: Cluster) -> None:
    async def waits() -> bool:
        statement = "SELECT true FROM pg_locks WHERE relation = 'baton.batch'::regclass AND NOT granted"
        return bool(await cluster.pool.fetchval(statement))

    await until(waits)
