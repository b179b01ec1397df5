"""What becomes of deliveries when the LISTEN connection dies, hangs, or was never to be had."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import asyncpg
import pytest
from tests.faults.servers import BreakablePostgres
from tests.support.cluster import Cluster, RunningPod, echo, text
from tests.support.follower import following
from tests.support.logbook import until
from tests.support.processes import SERVES, environment, running

from baton.chaos.proxy import Proxy
from baton.db.listener import ListenerState
from baton.db.notification_delivery import check_delivery
from baton.errors import ConfigurationError

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


async def state(cluster: Cluster, pod: RunningPod) -> tuple[int, str, float]:
    ready = await cluster.client.get(f"{pod.url}/readyz")
    return ready.status_code, ready.json()["listener"], pod.metric("baton_listener_up")


async def hears(cluster: Cluster, pod: RunningPod) -> None:
    """See that a notification arrives at the pod."""
    before = pod.metric("baton_notifications_received_total")
    await cluster.pool.execute("SELECT pg_notify('baton_events', '')")
    await until(lambda: pod.metric("baton_notifications_received_total") > before)


async def test_delivery_continues_behind_a_black_hole_before_it_is_noticed(cluster: Cluster) -> None:
    async with Proxy(cluster.dsn) as proxy:
        pod = await cluster.pod(listen_database_url=proxy.dsn, listen_probe_seconds=60)
        author = await cluster.author()
        async with following(cluster.client, pod.url, author.id) as follower:
            await author.write(text(1))
            assert (await follower.next_event())["seq"] == 1
            proxy.blackhole()
            heard = pod.metric("baton_notifications_received_total")
            await author.write(text(2))
            assert (await follower.next_event())["seq"] == 2
            assert pod.metric("baton_notifications_received_total") == heard
            assert await state(cluster, pod) == (200, "listening", 1)
            await author.write(end=True)
            assert await follower.rest() == author.frames


async def test_a_black_hole_is_reported_and_listening_recovers_with_the_network(cluster: Cluster) -> None:
    async with Proxy(cluster.dsn) as proxy:
        pod = await cluster.pod(listen_database_url=proxy.dsn, listen_probe_seconds=0.3)
        author = await cluster.author()
        async with following(cluster.client, pod.url, author.id) as follower:
            await hears(cluster, pod)
            proxy.blackhole()
            await until(lambda: pod.shard.listener.state is ListenerState.DEGRADED)
            assert await state(cluster, pod) == (200, "degraded", 0)
            await author.write(text(1))
            assert (await follower.next_event())["seq"] == 1
            proxy.resume()
            await until(lambda: pod.shard.listener.state is ListenerState.LISTENING)
            assert await state(cluster, pod) == (200, "listening", 1)
            await hears(cluster, pod)
            await author.write(end=True)
            assert await follower.rest() == author.frames


@pytest.mark.parametrize("end", ["killed backend", "reset connection"])
async def test_notifications_missed_while_not_listening_are_caught_up_on(cluster: Cluster, end: str) -> None:
    async with Proxy(cluster.dsn) as proxy:
        # Without a safety poll, so that only the catching up can find it.
        pod = await cluster.pod(listen_database_url=proxy.dsn, log_poll_seconds=60)
        author = await cluster.author()
        async with following(cluster.client, pod.url, author.id) as follower:
            await author.write(text(1))
            assert (await follower.next_event())["seq"] == 1
            proxy.refuse()
            if end == "killed backend":
                query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
                assert await cluster.pool.fetch(query + " AND datname = current_database()", "baton pod listen")
            else:
                proxy.cut()
            await until(lambda: pod.shard.listener.state is ListenerState.DEGRADED)
            await author.write(text(2))
            proxy.resume()
            assert (await follower.next_event())["seq"] == 2
            await author.write(end=True)
            assert await follower.rest() == author.frames


async def test_nothing_starts_if_the_first_connection_fails(cluster: Cluster) -> None:
    for given in ({"listen_database_url": NOBODY}, {"database_url": NOBODY}):
        with pytest.raises(ConfigurationError, match=r"No Postgres could be reached at 127\.0\.0\.1:1"):
            await cluster.pod(**given)
        with pytest.raises(ConfigurationError, match=r"No Postgres could be reached at 127\.0\.0\.1:1"):
            await cluster.worker({"replay": echo}, **given)


@pytest.mark.slow
async def test_a_standby_is_reported_at_startup(breakable: BreakablePostgres) -> None:
    await check_delivery(breakable.dsn, breakable.dsn)
    with breakable.standby(), pytest.raises(ConfigurationError, match="target_session_attrs=primary"):
        await check_delivery(breakable.dsn, breakable.dsn)
    await check_delivery(breakable.dsn, breakable.dsn)


STOPPABLE_POD = """
import baton.db.listener
baton.db.listener.USER_TIMEOUT_SECONDS = {seconds}
from baton.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [5, 0])
async def test_a_suspended_pod_stops_blocking_the_notify_queue(
    breakable: BreakablePostgres, breakable_cluster: Cluster, seconds: int
) -> None:
    cluster = breakable_cluster
    env = environment(
        BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0", BATON_LISTEN_PROBE_SECONDS="60"
    )
    code = STOPPABLE_POD.format(seconds=seconds)
    async with running("-c", code, "serve", env=env, command=sys.executable) as pod:  # type: ignore[arg-type]
        url = (await pod.said(SERVES))[2]
        # Its session alone is not enough: stopped before it has sent LISTEN, it would never hold up the queue.
        await until(lambda: _reports_listening(cluster, url))
        assert await _listens(cluster.pool)
        os.kill(pod.process.pid, signal.SIGSTOP)
        # More than the kernel keeps for a socket, so that the server must wait for the pod to read.
        pinned = await _fill(cluster.pool)
        try:
            await asyncio.wait_for(until(lambda: _emptier(cluster.pool, pinned)), 12)
            freed = True
        except TimeoutError:
            freed = False
        # Without the setting nobody frees it: that is what makes the difference.
        assert freed == (seconds > 0)
        assert await _listens(cluster.pool) == (seconds == 0)
        os.kill(pod.process.pid, signal.SIGCONT)
        await until(lambda: _listens(cluster.pool))


async def _reports_listening(cluster: Cluster, url: str) -> bool:
    found: bool = (await cluster.client.get(f"{url}/readyz")).json()["listener"] == "listening"
    return found


async def _listens(pool: asyncpg.Pool[asyncpg.Record]) -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'baton pod listen')"
    return await pool.fetchval(query) is True


async def _fill(pool: asyncpg.Pool[asyncpg.Record]) -> float:
    """Send notifications until the kernel takes no more of them and they stay in the queue; return how full it is."""
    usage = 0.0
    while await _listens(pool):
        await pool.execute("SELECT pg_notify('baton_events', repeat('x', 7900) || i) FROM generate_series(1, 8) AS i")
        usage = await _usage(pool)
        if usage > 0.5:
            try:
                await asyncio.wait_for(until(lambda pinned=usage: _emptier(pool, pinned)), 1)  # type: ignore[misc]
            except TimeoutError:
                break
    return usage


async def _usage(pool: asyncpg.Pool[asyncpg.Record]) -> float:
    return float(await pool.fetchval("SELECT pg_notification_queue_usage()"))


async def _emptier(pool: asyncpg.Pool[asyncpg.Record], pinned: float) -> bool:
    await pool.execute("SELECT pg_notify('baton_events', '')")
    return await _usage(pool) < pinned / 2
