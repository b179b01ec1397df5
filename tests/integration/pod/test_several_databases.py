"""Tests for pods and workers that share several databases."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from tests.support.cluster import Cluster, RunningPod, echo
from tests.support.databases import execute
from tests.support.logbook import until

from baton.db import placements
from baton.db.placements import Placement
from baton.db.postgres import connect
from baton.errors import ConfigurationError
from baton.pod import placement
from baton.stream_ids import number_of

GENERATORS = {"echo": echo}


async def workers(many: Cluster) -> None:
    """Start a worker for each database."""
    for entry in (many.databases or {}).values():
        await many.worker(GENERATORS, databases={}, database_url=entry["url"])


async def pod(many: Cluster, **given: Any) -> RunningPod:
    return await many.pod(**{"default_generator": "echo", "generators": "echo=tests.support.cluster:echo"} | given)


async def created(many: Cluster, at: RunningPod, *, key: str | None = None, **body: Any) -> tuple[int, Any]:
    headers = {} if key is None else {"idempotency-key": key}
    answer = await many.client.post(f"{at.url}/v1/streams", json={"input": "hello"} | body, headers=headers)
    return answer.status_code, answer.json()


async def whole(many: Cluster, at: RunningPod, stream_id: str) -> Any:
    answer = await many.client.get(f"{at.url}/v1/streams/{stream_id}?wait=20")
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextlib.asynccontextmanager
async def away(entry: dict[str, Any], server: str) -> AsyncIterator[None]:
    """Make a database refuse all connections, and end the ones that are open."""
    name = urlsplit(entry["url"]).path[1:]
    await execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        yield
    finally:
        await execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def key_at(number: int, weights: dict[int, float]) -> str:
    """A key whose home is the database with this number."""
    return next(
        key
        for key in (f"key-{index}" for index in range(1000))
        if placement.home(placement.name_of_key("", key), weights) == number
    )


async def record(databases: dict[str, dict[str, Any]], *lists: tuple[float, dict[int, float]]) -> None:
    """Put lists of weights, each in force for some seconds already, in the place of those that the databases have."""
    now = datetime.now(UTC)
    made = [Placement(uuid.uuid4(), weights, now - timedelta(seconds=seconds)) for seconds, weights in lists]
    for entry in databases.values():
        connection = await connect(entry["url"], name="test")
        await connection.execute("DELETE FROM baton.placement")
        for item in made:
            await placements.write(connection, item)
        await connection.close()


async def test_streams_are_spread_and_any_pod_has_all_of_them(many: Cluster) -> None:
    await workers(many)
    one, other = await pod(many), await pod(many)
    ids = [(await created(many, one))[1]["id"] for _ in range(24)]
    shares = Counter(number_of(UUID(stream_id)) for stream_id in ids)
    assert shares.keys() == {0, 1}
    for stream_id in ids[:6]:
        read = await whole(many, other, stream_id)
        assert (read["status"], read["text"]) == ("completed", "hello")
        async with many.client.stream("GET", f"{other.url}/v1/streams/{stream_id}/events") as events:
            assert '"done"' in (await events.aread()).decode()
    listed: list[str] = []
    address = "/v1/streams?limit=7"
    while address is not None:
        page = (await many.client.get(f"{other.url}{address}")).json()
        listed += [stream["id"] for stream in page["data"]]
        address = page["next"]
    assert listed == sorted(ids, reverse=True)
    for stream_id in ids[:4]:
        assert (await many.client.post(f"{other.url}/v1/streams/{stream_id}/cancel")).status_code == 200
        assert (await many.client.delete(f"{one.url}/v1/streams/{stream_id}")).status_code == 204
        assert (await many.client.get(f"{other.url}/v1/streams/{stream_id}")).status_code == 404


async def test_a_key_creates_one_stream_whichever_pod_gets_it(many: Cluster) -> None:
    pods = [await pod(many), await pod(many)]
    keys = [f"key-{index}" for index in range(12)]
    tries = [(key, at) for key in keys for at in (*pods, *pods)]
    results = await asyncio.gather(*(created(many, at, key=key) for key, at in tries))
    by_key: dict[str, set[str]] = {key: set() for key in keys}
    for (key, _), (status, stream) in zip(tries, results, strict=True):
        assert status in {200, 201}
        by_key[key].add(stream["id"])
    assert all(len(ids) == 1 for ids in by_key.values())
    assert {number_of(UUID(stream_id)) for ids in by_key.values() for stream_id in ids} == {0, 1}


async def test_the_streams_of_a_chat_are_in_one_database(many: Cluster) -> None:
    await workers(many)
    at = await pod(many)
    for chat in ("a", "b", "c", "d"):
        ids = []
        for _ in range(3):
            status, stream = await created(many, at, metadata={"chat": chat})
            assert status == 201
            ids.append(stream["id"])
            await whole(many, at, stream["id"])
        assert len({number_of(UUID(stream_id)) for stream_id in ids}) == 1
        listed = (await many.client.get(f"{at.url}/v1/streams?metadata.chat={chat}")).json()["data"]
        assert [stream["id"] for stream in listed] == ids[::-1]
        read = (await many.client.get(f"{at.url}/v1/conversations/{chat}")).json()
        assert [answer["id"] for answer in read["answers"]] == ids


async def test_a_database_that_is_away_takes_only_its_own_streams_with_it(many: Cluster, postgres: str) -> None:
    databases: Any = many.databases
    await workers(many)
    at = await pod(many, log_poll_seconds=0.2, pod_heartbeat_seconds=0.5)
    ids = [(await created(many, at))[1]["id"] for _ in range(16)]
    for stream_id in ids:
        await whole(many, at, stream_id)
    weights = {0: 1.0, 1: 1.0}
    async with away(databases["b"], postgres):
        for stream_id in ids:
            answer = await many.client.get(f"{at.url}/v1/streams/{stream_id}")
            assert answer.status_code == (503 if number_of(UUID(stream_id)) else 200), answer.text
        for _ in range(8):
            status, stream = await created(many, at)
            assert status == 201, stream
            assert number_of(UUID(stream["id"])) == 0
        assert (await created(many, at, key=key_at(0, weights)))[0] == 201
        status, refusal = await created(many, at, key=key_at(1, weights))
        assert status == 503
        assert "database" not in str(refusal)
        assert (await many.client.get(f"{at.url}/v1/streams")).status_code == 503, "a list must not hide streams"
        ready = await many.client.get(f"{at.url}/readyz")
        assert ready.status_code == 200
        assert (await many.client.get(f"{at.url}/console/overview")).status_code == 200
        assert (await many.client.get(f"{at.url}/console/streams")).status_code == 200
    await until(lambda: all(shard.takes_streams for shard in at.pod.shards))
    for stream_id in ids:
        assert (await whole(many, at, stream_id))["text"] == "hello"
    assert (await created(many, at, key=key_at(1, weights)))[0] == 201


async def test_a_pod_starts_beside_a_database_that_is_away(many: Cluster, postgres: str) -> None:
    databases: Any = many.databases
    async with away(databases["b"], postgres):
        at = await pod(many)
        (first, second) = at.pod.shards
        assert (first.is_open, second.is_open) == (True, False)
        status, stream = await created(many, at)
        assert status == 201
        assert number_of(UUID(stream["id"])) == 0
        missing = await many.client.get(f"{at.url}/v1/streams/{UUID(int=(0x8001 << 64) | (0b10 << 62))}")
        assert missing.status_code == 503
        readiness = (await many.client.get(f"{at.url}/readyz")).json()
        assert readiness["databases"] == {"a": "ready", "b": "not ready"}
    await until(lambda: second.ready)
    key = key_at(1, {0: 1, 1: 1})
    status, stream = await created(many, at, key=key)
    assert (status, number_of(UUID(stream["id"]))) == (201, 1)


async def test_a_pod_does_not_start_without_any_database(many: Cluster, postgres: str) -> None:
    databases: Any = many.databases
    async with away(databases["a"], postgres), away(databases["b"], postgres):
        with pytest.raises(ConfigurationError, match="No database answers"):
            await pod(many)


async def test_swapped_urls_keep_a_pod_from_starting(many: Cluster) -> None:
    databases: Any = many.databases
    swapped = {
        "a": databases["a"] | {"url": databases["b"]["url"]},
        "b": databases["b"] | {"url": databases["a"]["url"]},
    }
    with pytest.raises(ConfigurationError, match="leads to the database with the number"):
        await pod(many, databases=swapped)


async def test_streams_from_before_the_second_database_are_found(many: Cluster) -> None:
    databases: Any = many.databases
    async with Cluster(databases["a"]["url"]) as alone:
        before = await pod(alone)
        old = await alone.create(before, input="hello", metadata={"chat": "old"})
        _, keyed = await created(alone, before, key=key_at(1, {0: 1, 1: 1}))
        await alone.stop_pod(before)
    # The second database takes new streams since a moment ago.
    await record(databases, (1e9, {0: 1}), (1, {0: 1, 1: 1}))
    await workers(many)
    at = await pod(many)
    assert (await whole(many, at, old))["status"] == "completed"
    status, again = await created(many, at, key=key_at(1, {0: 1, 1: 1}))
    assert (status, again["id"]) == (200, keyed["id"])
    status, new = await created(many, at, metadata={"chat": "old"})
    assert status == 201
    listed = (await many.client.get(f"{at.url}/v1/conversations/old")).json()
    assert [item["id"] for item in listed["answers"]] + [(listed["active"] or {}).get("id")] in (
        [old, new["id"]],
        [old, new["id"], None],
    )


async def test_a_database_is_added_and_drained_while_pods_run(many: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.db.placements.READ_SECONDS", 0.05)
    databases: Any = many.databases
    await record(databases, (10, {0: 1, 1: 0}))
    pods = [await pod(many), await pod(many)]

    async def creates() -> Counter[int]:
        results = [await created(many, at, key=uuid.uuid4().hex) for at in pods for _ in range(6)]
        results += [await created(many, at) for at in pods for _ in range(6)]
        assert {status for status, _ in results} == {201}
        return Counter(number_of(UUID(stream["id"])) for _, stream in results)

    async def all_follow(weights: dict[int, float]) -> None:
        await until(lambda: all(at.pod.shards._placements.weights() == weights for at in pods))

    await all_follow({0: 1, 1: 0})
    assert (await creates()).keys() == {0}
    await record(databases, (100, {0: 1, 1: 0}), (1, {0: 1, 1: 1}))
    await all_follow({0: 1, 1: 1})
    assert (await creates()).keys() == {0, 1}
    await record(databases, (100, {0: 1, 1: 0}), (50, {0: 1, 1: 1}), (1, {0: 0, 1: 1}))
    await all_follow({0: 0, 1: 1})
    assert (await creates()).keys() == {1}


async def test_ids_of_a_removed_database_have_expired_and_others_never_existed(many: Cluster) -> None:
    databases: Any = many.databases
    await record(databases, (100, {0: 1, 1: 1, 2: 1}), (1, {0: 1, 1: 1}))
    at = await pod(many)

    async def status(number: int) -> int:
        stream_id = UUID(int=(0x019A5E2C0000 << 80) | ((0x8000 | number) << 64) | (0b10 << 62) | 7)
        return (await many.client.get(f"{at.url}/v1/streams/{stream_id}/events")).status_code

    assert await status(1) == 404
    assert await status(2) == 410
    assert await status(3) == 404


async def test_a_pod_that_does_not_know_a_database_asks_for_another_try(many: Cluster) -> None:
    databases: Any = many.databases
    await record(databases, (100, {0: 1}), (1, {0: 1, 1: 1, 2: 1}))
    at = await pod(many)
    key = key_at(2, {0: 1, 1: 1, 2: 1})
    assert (await created(many, at, key=key))[0] == 503
    stream_id = UUID(int=(0x019A5E2C0000 << 80) | (0x8002 << 64) | (0b10 << 62) | 7)
    assert (await many.client.get(f"{at.url}/v1/streams/{stream_id}")).status_code == 503
    assert (await created(many, at))[0] == 201


async def test_metrics_of_several_databases_carry_their_names(many: Cluster) -> None:
    at = await pod(many)
    await until(lambda: all(shard.listener.state.value == "listening" for shard in at.pod.shards))
    assert {name: at.metric("baton_listener_up", database=name) for name in ("a", "b")} == {"a": 1, "b": 1}
