"""Clients of plain server-sent events, through pods that are killed."""

from __future__ import annotations

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.balancer import balancer
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster
from tests.support.logbook import until

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)


async def test_eventsource_reconnects_to_another_pod_and_misses_nothing(cluster: Cluster, node: Node) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        created = await cluster.client.post(f"{url}/v1/streams", json={"generator": "tap", "input": None})
        async with node.running("event_source.mjs", created.json()["events_url"], url=url) as client:
            pods.say(*WORDS[:300])
            await client.says("half")
            await pods.kill()
            pods.say(*WORDS[300:])
            pods.finish()
            judge((await client.rest())[-1])


async def test_fetch_event_source_repeats_its_request_and_misses_nothing(cluster: Cluster, node: Node) -> None:
    async with (
        two_pods(cluster) as pods,
        balancer(pods.first, pods.second) as url,
        node.running("fetch_event_source.mjs", "tap", url=url) as client,
    ):
        pods.say(*WORDS[:300])
        await client.says("half")
        await pods.kill()
        pods.say(*WORDS[300:])
        pods.finish()
        judge((await client.rest())[-1])
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


@pytest.mark.parametrize("implementation", ["eventsource", "event-source-polyfill"])
async def test_a_page_with_a_cursor_reconnects_after_the_last_event(
    cluster: Cluster, node: Node, implementation: str
) -> None:
    async with two_pods(cluster) as pods, balancer(pods.first, pods.second) as url:
        created = await cluster.client.post(f"{url}/v1/streams", json={"generator": "tap", "input": None})
        pods.say(*WORDS[:100])

        async def has_passed_the_cursor() -> bool:
            stream = await cluster.client.get(f"{url}/v1/streams/{created.json()['id']}")
            return bool(stream.json()["last_event_id"] >= 2)

        await until(has_passed_the_cursor)
        address = f"{url}{created.json()['events_url']}?last_event_id=2"
        async with node.running("event_source_cursor.mjs", implementation, address) as client:
            pods.say(*WORDS[100:300])
            await client.says("half")
            await pods.kill()
            pods.say(*WORDS[300:])
            pods.finish()
            whole = (await client.rest())[-1]
    assert whole["ids"] == list(range(3, len(WORDS) + 3))


def judge(whole: dict[str, object]) -> None:
    """The words, the usage and the end, each once."""
    assert whole["errors"] == 1
    assert whole["text"] == ANSWER
    assert whole["ids"] == list(range(1, len(WORDS) + 3))
