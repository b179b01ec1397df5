"""LiteLLM as a generator: the real library, a fake provider, real workers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clients.chat_completions import BILLED, calls, says
from tests.support.cluster import Cluster
from tests.support.logbook import ended, events, until
from tests.support.provider_server import ProviderServer, Reply, refusal

from baton import Generator
from baton.adapters import litellm
from baton.db import stream_creation
from baton.db.stream_creation import NewStream

# The library's own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

TOOL = {"type": "function", "name": "search", "parameters": {"type": "object", "properties": {}}}


def asks(server: ProviderServer, **options: Any) -> Generator:
    return litellm.generator("openai/test", api_base=f"{server.url}/v1", api_key="key", max_retries=0, **options)


async def answer(cluster: Cluster, generator: Generator, given: Any = "Hello") -> list[dict[str, Any]]:
    """Return what a stream of one generator got."""
    await cluster.worker({"model": generator})
    stream, _ = await stream_creation.create(cluster.pool, NewStream("model", given, {}, "retry"))
    async with cluster.pool.acquire() as connection:
        await ended(connection, stream.id)
        return await events(connection, stream.id)


async def test_text_reasoning_and_usage(cluster: Cluster) -> None:
    async with ProviderServer(says("Hel", "lo.", reasoning="They greet. ")) as server:
        found = await answer(cluster, asks(server))
    assert [event["type"] for event in found] == ["reasoning", "text", "text", "usage", "done"]
    assert found[0]["delta"] == "They greet. "
    assert "".join(event["delta"] for event in found[1:3]) == "Hello."
    assert found[3] == {"type": "usage", **BILLED}
    assert found[-1]["finish_reason"] == "stop"


async def test_the_client_runs_the_tools_that_it_sent(cluster: Cluster) -> None:
    async with ProviderServer(calls("call_1", "search", query="bees")) as server:
        found = await answer(cluster, asks(server), {"input": "Search.", "tools": [TOOL], "temperature": 0.5})
        body = server.requests[0].body
    assert (found[0]["id"], found[0]["name"], found[0]["run_by"]) == ("call_1", "search", "client")
    arguments = "".join(event["arguments_delta"] for event in found if event["type"] == "tool_call")
    assert (arguments, found[-1]["finish_reason"]) == ('{"query": "bees"}', "tool_calls")
    assert (body["tools"][0]["function"]["name"], body["temperature"]) == ("search", 0.5)


async def test_a_client_cannot_choose_address_key_or_model(cluster: Cluster) -> None:
    theirs = {"api_base": "http://127.0.0.1:9", "base_url": "http://127.0.0.1:9", "api_key": "theirs", "model": "other"}
    async with ProviderServer(says("Hello.")) as server:
        found = await answer(cluster, asks(server), {"messages": [{"role": "user", "content": "Hi"}], **theirs})
        [request] = server.requests
    assert found[-1]["status"] == "completed"
    assert (request.headers["authorization"], request.body["model"]) == ("Bearer key", "test")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (refusal(429, {"message": "slow down"}), "provider_rate_limited"),
        (refusal(401, {"message": "who are you"}), "provider_auth_failed"),
        (refusal(500, {"message": "oh"}), "provider_error"),
        (refusal(400, {"message": "too long", "code": "context_length_exceeded"}), "provider_context_length"),
        (refusal(400, {"message": "no"}), "provider_invalid_request"),
    ],
)
async def test_errors_of_the_provider_have_their_names(cluster: Cluster, reply: Reply, code: str) -> None:
    async with ProviderServer(reply) as server:
        found = await answer(cluster, asks(server))
    assert (found[-1]["status"], found[-1]["error"]["code"]) == ("failed", code)


async def test_a_break_within_the_answer_ends_it(cluster: Cluster) -> None:
    async with ProviderServer(says("Hel", ending="abort")) as server:
        found = await answer(cluster, asks(server))
    assert found[0] == {"type": "text", "delta": "Hel"}
    assert (found[-1]["status"], found[-1]["error"]["code"]) == ("failed", "provider_cut_off")


async def test_a_cancel_ends_the_call_of_the_model(cluster: Cluster) -> None:
    pod = await cluster.pod()
    async with ProviderServer(says("Hel", ending="hang")) as server:
        await cluster.worker({"model": asks(server)})
        stream, _ = await stream_creation.create(cluster.pool, NewStream("model", "Hello", {}, "retry"))

        async with cluster.pool.acquire() as connection:

            async def begun() -> bool:
                return bool(await events(connection, stream.id))

            await until(begun)
            await cluster.client.post(f"{pod.url}/v1/streams/{stream.id}/cancel")
            assert (await ended(connection, stream.id)).status == "cancelled"
        await server.disconnected.wait()


async def test_a_lost_worker_restarts_the_answer(cluster: Cluster) -> None:
    async with ProviderServer(says("Hel", ending="hang"), says("Hello.")) as server:
        first = await cluster.worker({"model": asks(server)}, lease_seconds=0.8, worker_heartbeat_seconds=0.1)
        stream, _ = await stream_creation.create(cluster.pool, NewStream("model", "Hello", {}, "retry"))
        async with cluster.pool.acquire() as connection:

            async def begun() -> bool:
                return bool(await events(connection, stream.id))

            await until(begun)
            await cluster.kill(first)
            await cluster.worker({"model": asks(server)}, lease_seconds=0.8, worker_heartbeat_seconds=0.1)
            await ended(connection, stream.id)
            found = await events(connection, stream.id)
    kinds = [event["type"] for event in found]
    assert kinds == ["text", "reset", "text", "usage", "done"]
    assert found[2]["delta"] == "Hello."
