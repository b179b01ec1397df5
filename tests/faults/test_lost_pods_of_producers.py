"""Producers and readers that use the protocol's clients, for minutes, while a pod is killed every two seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.cluster import Cluster
from tests.support.losing_pods import losing_pods

pytest.importorskip("durable_streams", reason="The group `clients` is not installed here.")

from tests.clients.durable_streams_node import scripts_in
from tests.clients.writing_and_losing_pods import write_and_read

SECONDS = 90


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 6)
async def test_many_killed_pods_lose_and_repeat_nothing(cluster: Cluster, tmp_path: Path) -> None:
    node = scripts_in(tmp_path)
    async with losing_pods(cluster.dsn, 4) as pods, pods.losing(every_seconds=2):
        pods.balancer.loses = 0.02
        await write_and_read(node, pods.url, 300, SECONDS, by_both_ways=True)
        assert pods.kills > 10
