"""The Durable Streams protocol's own conformance suite and clients, unmodified, against real pods."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.clients.durable_streams_node import SUITE_SECONDS, conformance, scripts_in
from tests.clients.node import Node
from tests.clients.writing_and_losing_pods import write_and_read
from tests.support.cluster import Cluster
from tests.support.logbook import DEADLINE_SECONDS
from tests.support.losing_pods import losing_pods

# Of version 0.3.6, without forks and subscriptions.
CORE_TESTS = 250
# The suite asks from this origin, creates hundreds of streams, and waits for the end of long polls.
SUITE_SETTINGS = {
    "BATON_ALLOWED_ORIGINS": "https://example.com",
    "BATON_CREATES_PER_SECOND": "10000",
    "BATON_CREATES_BURST": "10000",
    "BATON_LONG_POLL_SECONDS": "2",
}
MESSAGES = 50
SECONDS = 8


@pytest.fixture
def streams_node(node: Node, tmp_path: Path) -> Node:
    """The scripts of this protocol. `node` is there for its check that node is."""
    return scripts_in(tmp_path)


@pytest.mark.timeout(SUITE_SECONDS + DEADLINE_SECONDS)
async def test_two_pods_behind_one_address_pass_the_conformance_suite(cluster: Cluster, streams_node: Node) -> None:
    async with losing_pods(cluster.dsn, 2, SUITE_SETTINGS) as pods:
        found = await conformance(streams_node, pods.url)
        assert len(pods.balancer.requests) == 2, pods.balancer.requests
    assert not found.failures, "\n".join(("failed:", *found.failures))
    assert found.passed == CORE_TESTS


async def test_their_clients_lose_nothing_while_pods_are_killed(cluster: Cluster, streams_node: Node) -> None:
    async with losing_pods(cluster.dsn) as pods, pods.losing(every_seconds=2):
        pods.balancer.loses = 0.02
        await write_and_read(streams_node, pods.url, MESSAGES, SECONDS)
        assert pods.kills > 1
