"""Workers that are killed around their end hook."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.support import end_hook
from tests.support.cluster import Cluster
from tests.support.end_hook import GATE, TARGET, saved, unlike
from tests.support.logbook import connected, until
from tests.support.processes import Running, environment, running

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def hooked_worker(cluster: Cluster) -> AsyncIterator[Running]:
    """A worker process with the hook of `end_hook`."""
    env = environment(
        BATON_DATABASE_URL=cluster.dsn,
        BATON_ON_END=TARGET,
        BATON_GENERATORS="echo=tests.support.cluster:echo",
        BATON_WORKER_HEARTBEAT_SECONDS="0.1",
        BATON_LEASE_SECONDS="0.8",
        BATON_QUEUE_POLL_SECONDS="0.1",
    )
    async with running("worker", env=env, cwd=Path(__file__).parents[2]) as worker:
        await worker.said("is ready for")
        yield worker


async def all_ended(cluster: Cluster, count: int) -> bool:
    ended: int = await cluster.pool.fetchval(
        "SELECT count(*) FROM baton.stream WHERE status IN ('completed', 'failed', 'cancelled')"
    )
    return ended == count


async def test_what_is_saved_are_the_answers_that_ended_under_every_kill(cluster: Cluster) -> None:
    """Workers die in the hook, at its commit and after it, one after another, at random moments."""
    await cluster.pool.execute(end_hook.TABLE)
    pod = await cluster.pod(generators={"echo": "no:where"})
    moments = random.Random(7)
    created = 0
    for _ in range(5):
        async with hooked_worker(cluster) as worker:
            ids = [
                await cluster.create(pod, generator="echo", input=["a", "b"], on_worker_lost="retry") for _ in range(40)
            ]
            created += len(ids)
            await asyncio.sleep(moments.uniform(0, 0.4))
            worker.process.kill()
        assert await unlike(cluster.pool) == []
    async with hooked_worker(cluster):
        await until(lambda: all_ended(cluster, created))
    assert await unlike(cluster.pool) == []


async def test_a_worker_killed_in_its_hook_leaves_nothing_behind(cluster: Cluster) -> None:
    await cluster.pool.execute(end_hook.TABLE)
    pod = await cluster.pod(generators={"echo": "no:where"})
    async with connected(cluster.dsn) as holder:
        await holder.execute("SELECT pg_advisory_lock($1)", GATE)

        async def waits() -> bool:
            return bool(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE objid = $1 AND NOT granted", GATE))

        async with hooked_worker(cluster) as worker:
            stream = await cluster.create(
                pod, generator="echo", input=["a", "b"], on_worker_lost="retry", metadata={"hook": "wait"}
            )
            await until(waits)
            worker.process.kill()
    assert await saved(cluster.pool) == []
    async with hooked_worker(cluster):
        await until(lambda: all_ended(cluster, 1))
    assert [item[0] for item in await saved(cluster.pool)] == [UUID(stream)]
    assert await unlike(cluster.pool) == []
