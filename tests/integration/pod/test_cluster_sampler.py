"""The rows that pods write of themselves, and the samples that each pod takes of all rows."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from tests.support.cluster import Cluster, echo
from tests.support.follower import following
from tests.support.logbook import until

from baton.db import pod_rows
from baton.db.pod_rows import MOST_WATCHED, Note
from baton.observability.metrics.numbers import MILLISECONDS_TO_SECONDS

ONE, TWO = UUID(int=1), UUID(int=2)
BUCKETS = len(MILLISECONDS_TO_SECONDS) + 1


def counts(**given: int) -> list[int]:
    """Return how many delays are in each bucket; `b3=7` means seven in the fourth."""
    return [given.get(f"b{number}", 0) for number in range(BUCKETS)]


def note(pod_id: UUID, **changes: object) -> Note:
    given: dict[str, object] = {
        "id": pod_id,
        "name": "pod",
        "version": "1",
        "state": "ready",
        "listener": "listening",
        "subscribers": 0,
        "connections": 0,
        "deliveries": counts(),
        "viewers": {},
    }
    return Note(**given | changes)  # type: ignore[arg-type]


async def test_a_pod_writes_its_row_and_deletes_it_when_it_leaves(cluster: Cluster) -> None:
    async def noted(state: str) -> bool:
        return [item.state for item in await pod_rows.list_all(cluster.pool)] == [state]

    async with Cluster(cluster.dsn) as inner:
        pod = await inner.pod(pod_name="alone", pod_heartbeat_seconds=0.05)
        await until(lambda: noted("ready"))
        (found,) = await pod_rows.list_all(cluster.pool)
        assert (found.id, found.name, found.listener) == (pod.pod.id, "alone", "listening")
        pod.pod.draining = True
        await until(lambda: noted("draining"))
    assert await pod_rows.list_all(cluster.pool) == []


async def test_a_row_that_is_no_longer_written_expires(cluster: Cluster) -> None:
    await pod_rows.note(cluster.pool, note(ONE))
    await pod_rows.note(cluster.pool, note(TWO))
    await cluster.pool.execute("UPDATE baton.pod SET noted_at = noted_at - interval '9 min' WHERE id = $1", ONE)
    await pod_rows.note(cluster.pool, note(TWO))
    assert [item.id for item in await pod_rows.list_all(cluster.pool)] == [ONE, TWO]
    await cluster.pool.execute("UPDATE baton.pod SET noted_at = noted_at - interval '2 min' WHERE id = $1", ONE)
    await pod_rows.note(cluster.pool, note(TWO))
    assert [item.id for item in await pod_rows.list_all(cluster.pool)] == [TWO]


async def test_viewers_are_summed_and_unknown_if_a_pod_follows_too_many(cluster: Cluster) -> None:
    streams = sorted(uuid4() for _ in range(MOST_WATCHED + 1))
    await pod_rows.note(cluster.pool, note(ONE, viewers={streams[0]: 2, streams[-1]: 3}))
    await pod_rows.note(cluster.pool, note(TWO, viewers={streams[-1]: 4}))
    living = await pod_rows.list_all(cluster.pool)
    asked = [streams[0], streams[1], streams[-1]]
    assert await pod_rows.viewers(cluster.pool, asked, living) == dict(zip(asked, (2, 0, 7), strict=True))
    assert await pod_rows.viewers(cluster.pool, asked, living[:1]) == dict(zip(asked, (2, 0, 3), strict=True))
    # It follows more streams than fit into its row, so the row has the newest ones.
    await pod_rows.note(cluster.pool, note(TWO, viewers=dict.fromkeys(streams[1:], 1)))
    living = await pod_rows.list_all(cluster.pool)
    assert await pod_rows.viewers(cluster.pool, asked, living) == {streams[1]: 1, streams[-1]: 4}


async def test_a_viewer_is_counted_at_once_between_two_samples(cluster: Cluster) -> None:
    pod = await cluster.pod(pod_heartbeat_seconds=60)
    stream = (await cluster.author()).id

    async def counted() -> tuple[int, dict[UUID, int]]:
        living = await pod_rows.list_all(cluster.pool)
        return sum(item.subscribers for item in living), await pod_rows.viewers(cluster.pool, [stream], living)

    async def shows(number: int) -> bool:
        return await counted() == (number, {stream: number})

    async with following(cluster.client, pod.url, str(stream)), following(cluster.client, pod.url, str(stream)):
        await until(lambda: shows(2))
    await until(lambda: shows(0))


async def test_a_restarted_pod_replaces_the_row_of_the_killed_one(cluster: Cluster) -> None:
    await pod_rows.note(cluster.pool, note(ONE, name="a", subscribers=3))
    await pod_rows.note(cluster.pool, note(UUID(int=3), name="b"))
    await pod_rows.note(cluster.pool, note(TWO, name="a"))
    assert {item.id for item in await pod_rows.list_all(cluster.pool) if item.replaced} == {ONE}
    # Two live pods of one name are two pods.
    await pod_rows.note(cluster.pool, note(ONE, name="a", subscribers=3))
    assert not [item for item in await pod_rows.list_all(cluster.pool) if item.replaced]


async def test_the_points_have_every_token_that_workers_generated(cluster: Cluster) -> None:
    pod = await cluster.pod(pod_heartbeat_seconds=0.05)
    sampler = pod.shard.sampler
    await until(lambda: len(sampler.points) > 0)
    await cluster.worker({"replay": echo}, worker_heartbeat_seconds=0.05, lease_seconds=10)
    for size in (3, 40):
        stream_id = await cluster.create(pod, input=["x"] * size)
        await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    written = await cluster.pool.fetchval("SELECT sum(tokens) FROM baton.stream")
    assert written == 43
    await until(lambda: sum(point.tokens for point in sampler.points) >= written)
    assert sum(point.tokens for point in sampler.points) == written


@pytest.mark.parametrize("most", [1, 3])
async def test_a_pod_writes_the_viewers_of_each_of_the_newest_streams(cluster: Cluster, most: int) -> None:
    limits = (await cluster.pod()).pod.subscriber_limits
    ids = sorted(uuid4() for _ in range(3))
    for tenant, stream_id in (("a", ids[0]), ("a", ids[2]), ("b", ids[2]), ("b", ids[1])):
        limits.join(tenant, stream_id)
    assert limits.newest(most) == ({ids[2]: 2} if most == 1 else {ids[0]: 1, ids[1]: 1, ids[2]: 2})
