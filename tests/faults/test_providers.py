"""A worker that is killed while a provider generates: what viewers get, and what the provider is asked."""

from __future__ import annotations

import json
import signal
from contextlib import AbstractAsyncContextManager

import pytest
from tests.faults.viewers import Viewer
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.cluster import Cluster
from tests.support.logbook import until
from tests.support.openai_server import Item, OpenAIServer
from tests.support.pacing import Pace
from tests.support.processes import Running

from baton.db import stream_creation
from baton.db.stream_creation import NewStream

pytestmark = pytest.mark.clients  # the official SDK, against fake providers

WORDS = [f"word{number} " for number in range(120)]
MODELS = {"model": {"generator": "openai", "resume": "reattach"}}


def process(cluster: Cluster, server: OpenAIServer) -> AbstractAsyncContextManager[Running]:
    """A worker that asks this server."""
    return worker_process(cluster.dsn, models=json.dumps(MODELS), openai_base_url=f"{server.url}/v1", **QUICK)


async def test_a_killed_worker_costs_a_pause_and_no_second_generation(cluster: Cluster) -> None:
    pod = await cluster.pod()
    pace = Pace(interval_seconds=0.02, allowed=len(WORDS) - 20)
    async with OpenAIServer(Item(WORDS), pace=pace) as server, process(cluster, server) as first:
        new = NewStream("model", "Hello", {}, "retry", may_continue=True)
        stream, _ = await stream_creation.create(cluster.pool, new)
        viewer = Viewer(cluster.client, pod.url, str(stream.id))
        await viewer.has(80)
        first.signal(signal.SIGKILL)
        await first.ends()
        await until(lambda: server.tokens == len(WORDS) - 20)  # nobody reads it
        async with process(cluster, server):
            await until(lambda: server.readers == 1)
            pace.release()
            end = await viewer.end()
        assert (end["status"], viewer.text) == ("completed", "".join(WORDS))
        assert [event["type"] for event in viewer.events].count("reset") == 0
        assert end["usage"]["output_tokens"] == server.tokens == len(WORDS)
        (cursor,) = server.cursors
        assert cursor is not None
        assert (server.started, server.cancels) == (1, [])


async def test_a_cancel_reaches_the_provider_after_the_worker_was_killed(cluster: Cluster) -> None:
    pod = await cluster.pod()
    async with OpenAIServer(Item(WORDS), pace=Pace(allowed=20)) as server:
        async with process(cluster, server) as first:
            new = NewStream("model", "Hello", {}, "retry", may_continue=True)
            stream, _ = await stream_creation.create(cluster.pool, new)
            viewer = Viewer(cluster.client, pod.url, str(stream.id))
            await viewer.has(20)
            first.signal(signal.SIGKILL)
            await first.ends()
        answer = await cluster.client.post(f"{pod.url}/v1/streams/{stream.id}/cancel")
        assert answer.status_code == 202
        async with process(cluster, server):
            end = await viewer.end()
            await until(lambda: not server.live)
        server.pace.release()
        assert (end["status"], server.only.status, server.tokens, len(server.cancels)) == (
            "cancelled",
            "cancelled",
            20,
            1,
        )
