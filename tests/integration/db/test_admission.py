"""Held streams: when they go into line, and how many of a tenant's run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import pytest
import yaml
from tests.integration.db.test_fairness import NEW
from tests.support.cluster import Cluster, Tap, echo
from tests.support.logbook import claim_as, connected, until, until_after
from tests.support.manifests import DEPLOY

from baton.db import stream_admission, stream_creation, stream_ending, stream_queue
from baton.db.live_counts import LiveCounts
from baton.db.postgres import Connection
from baton.db.queue_watermark import START
from baton.db.stream_admission import Admitting
from baton.db.stream_ending import End
from baton.outcome import Outcome

ADMITTING: Final = Admitting(["one"], lambda _name: ["one"], START)
HELD: Final = replace(NEW, held=True)


async def add(connection: Connection, count: int = 1, **changes: Any) -> list[UUID]:
    new = replace(HELD, **changes)
    ids = []
    for _ in range(count):
        ids.append((await stream_creation._insert(connection, new, None, None, LiveCounts())).id)
        await until_after(connection, ids[-1])
    return ids


async def claim(connection: Connection, count: int) -> Sequence[stream_queue.Claim]:
    return await claim_as(connection, UUID(int=1), ["one"], count)


async def test_a_stream_waits_for_its_time_and_not_longer(dsn: str) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    async with connected(dsn) as connection:
        (stream_id,) = await add(connection, held=False, start_after=later)
        await connection.execute("UPDATE baton.stream SET created_at = now() - interval '1 hour', queued_at = now()")
        assert await stream_admission.admit(connection, ADMITTING) == 0
        assert await claim(connection, 1) == []
        # Until then it is no load, and no timeout counts.
        assert (await stream_queue.state(connection)).by_generator == {}
        assert await stream_queue.overdue(connection, 60) == []
        passed = "UPDATE baton.stream SET start_after = now() - interval '1 s', held_until = now() - interval '1 s'"
        await connection.execute(passed)
        assert (await stream_queue.state(connection)).total.streams == 1
        assert await stream_admission.admit(connection, ADMITTING) == 1
        assert [item.stream_id for item in await claim(connection, 1)] == [stream_id]


async def test_the_query_of_an_autoscaler_counts_what_a_worker_would_run(dsn: str) -> None:
    """It runs with the privileges that its file names."""
    file = (DEPLOY / "autoscaling/keda-postgresql.yaml").read_text()
    (scaled,) = (document for document in yaml.safe_load_all(file) if document["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    async with connected(dsn) as connection:
        await add(connection, 2, held=False)
        await claim(connection, 1)
        await add(connection, 3)
        await add(connection, 1, held=False, start_after=datetime.now(UTC) + timedelta(days=1))
        _, parked = await add(connection, 2)
        await connection.execute("UPDATE baton.stream SET held_until = 'infinity' WHERE id = $1", parked)
        for grant in re.findall(r"#   ((?:CREATE|GRANT).*);", file):
            await connection.execute(grant.replace("LOGIN PASSWORD '...'", ""))
        await connection.execute("SET ROLE baton_scale")
        # One runs, one is in line, four wait to be admitted. One starts later, and one is parked.
        assert await connection.fetchval(query) == 6
        await connection.execute("RESET ROLE")
        assert (await stream_queue.state(connection)).total.streams == 5
        await connection.execute("DROP OWNED BY baton_scale; DROP ROLE baton_scale")


async def test_a_held_stream_that_nobody_admits_times_out(dsn: str) -> None:
    async with connected(dsn) as connection:
        _, parked = await add(connection, 2)
        await connection.execute("UPDATE baton.stream SET held_until = 'infinity' WHERE id = $1", parked)
        assert (await stream_queue.state(connection)).total.streams == 1
        assert len(await stream_queue.overdue(connection, -1)) == 2


async def test_a_tenant_has_no_more_running_than_its_limit(dsn: str) -> None:
    limited = replace(ADMITTING, most_running=2)
    async with connected(dsn) as connection:
        ids = await add(connection, 5, tenant="a")
        await add(connection, 1, tenant="b")
        await stream_admission.admit(connection, limited)
        claims = await claim(connection, 9)
        assert sorted(item.tenant for item in claims) == ["a", "a", "b"]
        assert await stream_admission.parked_tenants(connection, ["one"]) == ["a"]
        mine = [item for item in claims if item.tenant == "a"]
        assert [item.stream_id for item in mine] == ids[:2]
        # One that is given back keeps its place among those that run.
        await stream_queue.requeue(connection, mine[0].fence)
        await stream_admission.admit(connection, limited, ["a"])
        assert [item.stream_id for item in await claim(connection, 9)] == ids[:1]
        # One that ends makes room for the next.
        assert await stream_ending.end(connection, End.of_claimed(mine[1].fence, Outcome.cancelled()))
        await stream_admission.admit(connection, limited, ["a"])
        assert [item.stream_id for item in await claim(connection, 9)] == ids[2:3]
        await stream_admission.release_parked(connection, ["one"])
        await stream_admission.admit(connection, ADMITTING)
        assert [item.stream_id for item in await claim(connection, 9)] == ids[3:]


async def test_workers_that_admit_at_once_keep_the_limit(dsn: str) -> None:
    limited = replace(ADMITTING, most_running=3)
    async with connected(dsn) as one, connected(dsn) as two, connected(dsn) as three:
        await add(one, 20, tenant="a")
        await add(one, 20, tenant="b")
        for _ in range(4):
            await asyncio.gather(*(stream_admission.admit(each, limited, ["a", "b"]) for each in (one, two, three)))
        rows = await one.fetch(
            "SELECT tenant, count(*) FROM baton.stream WHERE queue_position IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
        assert [tuple(row) for row in rows] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize("killed", [False, True])
async def test_the_limit_holds_while_workers_run_and_die(cluster: Cluster, killed: bool) -> None:
    """However the streams end, all of them run, and never more than two at once."""
    limits = {"max_running_streams_per_tenant": 2, "worker_heartbeat_seconds": 0.05, "lease_seconds": 0.3}
    pod = await cluster.pod(**limits)
    taps = [Tap(), Tap()]
    workers = [await cluster.worker({"one": tap}, **limits) for tap in taps]
    ids = [await cluster.create(pod, generator="one") for _ in range(6)]

    async def running() -> int:
        found: int = await cluster.pool.fetchval(
            "SELECT count(*) FROM baton.stream "
            "WHERE status = 'running' OR (status = 'queued' AND queue_position IS NOT NULL)"
        )
        return found

    async def two_run() -> bool:
        found = await running()
        assert found <= 2
        return found == 2

    await until(two_run)
    if killed:
        await cluster.kill(workers[0])
    for _ in ids:
        for tap in taps:
            tap.end()
    ended = "SELECT count(*) FROM baton.stream WHERE status NOT IN ('queued', 'running')"

    async def all_ended() -> bool:
        assert await running() <= 2
        for tap in taps:
            tap.end()
        count: int = await cluster.pool.fetchval(ended)
        return count == len(ids)

    await until(all_ended)


async def test_a_stream_starts_when_it_was_asked_to(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"one": echo})
    at = datetime.now(UTC) + timedelta(seconds=1)
    stream_id = await cluster.create(pod, generator="one", input=[], start_after=at.isoformat(), priority="high")
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    shown = answer.json()
    assert shown["status"] == "completed"
    assert shown["priority"] == "high"
    assert datetime.fromisoformat(shown["started_at"]) >= at == datetime.fromisoformat(shown["start_after"])
    for wrong in ("2026-01-01", "2026-01-01T00:00:00", "9999-01-01T00:00:00Z", 5, "later"):
        refused = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1, "start_after": wrong})
        assert refused.status_code == 400


async def test_no_stream_is_put_off_while_an_older_worker_would_start_it(cluster: Cluster) -> None:
    await cluster.pool.execute(
        "INSERT INTO baton.worker (name, generators, concurrency, code) VALUES ('old', '{one}', 1, '0023')"
    )
    pod = await cluster.pod()
    at = datetime.now(UTC) + timedelta(hours=1)
    answer = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"input": 1, "generator": "one", "start_after": at.isoformat()}
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "older_code_running")
