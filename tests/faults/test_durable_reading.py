"""Readers of the Durable Streams protocol while pods leave and lose their listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tests.support.cluster import Author, Cluster, RunningPod
from tests.support.durable import DurableReader, external
from tests.support.logbook import until

ROUNDS = 3


async def read_all(reader: DurableReader, url: Callable[[], str], *, sse: bool) -> None:
    """Read as the protocol's clients do: after each answer, and after each end of an event stream, again."""
    while not reader.closed:
        await (reader.follow(url()) if sse else reader.poll(url()))


async def write(author: Author, first: int) -> None:
    await author.write(orjson.dumps({"n": first}), orjson.dumps({"n": first + 1}))


def readers(
    cluster: Cluster, path: str, url: Callable[[], str]
) -> tuple[list[DurableReader], list[asyncio.Task[None]]]:
    made = [DurableReader(cluster.client, path) for _ in range(4)]
    tasks = [asyncio.create_task(read_all(reader, url, sse=number % 2 == 0)) for number, reader in enumerate(made)]
    return made, tasks


async def written(author: Author, got: list[DurableReader]) -> None:
    """Wait until every reader has what was written, and check that it has just that."""
    expected: list[Any] = [orjson.loads(line) for line in author.lines]
    await until(lambda: all(len(reader.messages) >= len(expected) for reader in got))
    assert all(reader.messages == expected for reader in got)


async def waiting(pod: RunningPod, count: int) -> None:
    await until(lambda: pod.pod.subscriber_limits.subscribers == count)


async def test_readers_continue_when_their_pod_leaves(cluster: Cluster) -> None:
    author = await external(cluster, "json", "leaving")
    pods = [await cluster.pod(long_poll_seconds=60)]
    got, tasks = readers(cluster, "leaving", lambda: pods[-1].url)
    for number in range(ROUNDS):
        await waiting(pods[-1], len(got))
        await write(author, 10 * number)
        await written(author, got)
        await waiting(pods[-1], len(got))
        # New requests go to the next pod, and what waits on this one is to leave it.
        pods.append(await cluster.pod(long_poll_seconds=60))
        await cluster.stop_pod(pods[-2])
        await write(author, 10 * number + 5)
        await written(author, got)
    await author.write(end=True)
    await asyncio.gather(*tasks)
    author.lines.pop()  # the end is no message
    await written(author, got)
    assert all(set(reader.statuses) <= {200, 204, 503} for reader in got)
    assert [reader.connections for reader in got[::2]] == [ROUNDS + 1] * 2


@pytest.mark.parametrize("notify", [True, False])
async def test_readers_miss_nothing_when_their_pod_loses_its_listener(cluster: Cluster, *, notify: bool) -> None:
    author = await external(cluster, "json", "deaf")
    pod = await cluster.pod(long_poll_seconds=60, log_poll_seconds=0.2)
    got, tasks = readers(cluster, "deaf", lambda: pod.url)
    await waiting(pod, len(got))
    for number in range(ROUNDS):
        lost = await cluster.pool.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'baton pod listen'"
        )
        assert lost == 1 or number
        await author.write(orjson.dumps({"n": number}), notify=notify)
        await written(author, got)
    await author.write(end=True, notify=notify)
    await asyncio.gather(*tasks)
    assert all(reader.closed for reader in got)
