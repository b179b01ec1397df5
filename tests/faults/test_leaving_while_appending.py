"""Pods that are asked to leave while producers append to them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from tests.faults.producers import Producer
from tests.support.cluster import Cluster
from tests.support.logbook import until
from tests.support.processes import SERVES, Running, environment, running

WAITS = """
SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'baton pod append' AND wait_event_type = 'Lock'
"""
LOCK = "SELECT FROM baton.external_stream WHERE stream_id = $1 FOR UPDATE"


@contextlib.asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[tuple[Running, str]]:
    env = environment(
        BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0", BATON_DRAIN_SECONDS="0"
    )
    async with running("serve", env=env) as pod:
        yield pod, (await pod.said(SERVES))[2]


async def opened(cluster: Cluster, url: str, name: str | None, *others: str) -> Producer:
    answer = await cluster.client.post(f"{url}/v1/streams", json={"generator": "external"})
    return Producer(cluster.client, [url, *others], answer.json()["id"], name)


async def texts(pool: asyncpg.Pool[asyncpg.Record], producer: Producer) -> list[str]:
    rows = await pool.fetch(
        "SELECT data->>'delta' FROM baton.event WHERE stream_id = $1 AND type = 'text' ORDER BY seq",
        UUID(producer.stream_id),
    )
    return [row[0] for row in rows]


@pytest.mark.slow
async def test_pods_that_leave_lose_and_double_no_append(cluster: Cluster) -> None:
    """Each pod leaves while 20 producers append. Producers without a name cannot repeat what has no known outcome."""
    async with contextlib.AsyncExitStack() as stack:
        leaving = [await stack.enter_async_context(serving(cluster)) for _ in range(3)]
        _, staying = await stack.enter_async_context(serving(cluster))
        urls = [url for _, url in leaving]
        producers = [await opened(cluster, staying, "p" if number % 2 else None, *urls) for number in range(20)]
        said = 30
        speaking = [asyncio.create_task(producer.say(10_000)) for producer in producers]
        for pod, _ in leaving:
            more = said = said + 10
            await until(lambda: all(producer.said >= more for producer in producers))  # noqa: B023
            pod.signal(signal.SIGTERM)
            assert await pod.ends(10) == 0
        for task in speaking:
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)
        for producer in producers:
            assert (producer.refusal, producer.unknown) == (None, 0)
            found = await texts(cluster.pool, producer)
            # The last append was cut off by its producer.
            assert found in [
                [f"<1.{number}>" for number in range(1, count + 1)] for count in (producer.said, producer.said + 1)
            ]


async def test_an_append_in_flight_is_answered_before_its_pod_ends(cluster: Cluster) -> None:
    async with serving(cluster) as (pod, url), cluster.pool.acquire() as connection:
        producer = await opened(cluster, url, None)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(LOCK, UUID(producer.stream_id))
        speaking = asyncio.create_task(producer.say(1))
        await until(lambda: cluster.pool.fetchval(WAITS))
        pod.signal(signal.SIGTERM)
        await pod.said("Shutting down")
        await transaction.rollback()
        await speaking
        assert await pod.ends() == 0
        assert (producer.refusal, producer.unknown) == (None, 0)
        assert await texts(connection, producer) == ["<1.1>"]  # type: ignore[arg-type]


@pytest.mark.slow
async def test_an_append_that_outlasts_its_pod_is_written_once_by_another(cluster: Cluster) -> None:
    async with serving(cluster) as (pod, url), serving(cluster) as (_, other), cluster.pool.acquire() as connection:
        producer = await opened(cluster, url, "p", other)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(LOCK, UUID(producer.stream_id))
        speaking = asyncio.create_task(producer.say(2))
        await until(lambda: cluster.pool.fetchval(WAITS))
        pod.signal(signal.SIGTERM)
        assert await pod.ends(15) == 0
        await until(lambda: producer.unknown == 1)
        await transaction.rollback()
        await speaking
        assert producer.refusal is None
        assert await texts(connection, producer) == ["<1.1>", "<1.2>"]  # type: ignore[arg-type]
        assert [line for line in pod.lines if "Traceback" in line] == []
