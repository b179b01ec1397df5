"""The names of `BATON_MODELS`, from a request in each dialect to what the provider is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.cluster import Cluster, RunningPod
from tests.support.doors import DOORS
from tests.support.logbook import until
from tests.support.provider_server import ProviderServer, Reply, data_frames, refusal

from baton.generators import close_generators, load_generators
from baton.worker.worker import Worker

MODELS = {"gpt-5": "openai", "fast": {"generator": "openai", "model": "gpt-5-mini", "temperature": 0}}
HELLO = [{"role": "user", "content": "Hello"}]
UI_HELLO = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]

# Where to ask, and with what, by a model's name.
ASKING: dict[str, tuple[str, Any]] = {
    "native": ("/v1/streams", lambda name: {"generator": name, "input": "Hello"}),
    "native, with a model": ("/v1/streams", lambda name: {"generator": name, "input": {"input": HELLO, "model": "x"}}),
    "Chat Completions": ("/v1/chat/completions", lambda name: {"model": name, "messages": HELLO, "stream": True}),
    "Responses": ("/v1/responses", lambda name: {"model": name, "input": HELLO, "stream": True}),
    "AI SDK": ("/v1/ai-sdk/chat", lambda name: {"model": name, "messages": UI_HELLO}),
    "AI SDK 4": ("/v1/ai-sdk/v4/chat", lambda name: {"model": name, "messages": HELLO}),
    "Anthropic": ("/v1/messages", lambda name: DOORS["anthropic"].creating(name, "Hello")[1]),
    "LangGraph": ("/v1/langgraph/runs/stream", lambda name: DOORS["langgraph"].creating(name, "Hello")[1]),
}


@pytest.mark.parametrize("way", ASKING)
async def test_a_name_means_the_same_model_in_every_dialect(cluster: Cluster, way: str) -> None:
    path, body = ASKING[way]
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    async with ProviderServer(Reply(data_frames({**chunk, "choices": [choice]}, done=True))) as provider:
        given: dict[str, Any] = {"models": MODELS, "openai_api": "chat", "openai_base_url": f"{provider.url}/v1"}
        given["openai_model"] = "another"
        pod = await cluster.pod(**given)
        generators = load_generators(cluster.settings(**given))
        await cluster.worker(generators, **given)
        for name in MODELS:
            headers = {"accept": "text/event-stream"}
            answer = await cluster.client.post(f"{pod.url}{path}", json=body(name), headers=headers)
            assert answer.status_code == 200
            assert '"Hi"' in answer.text
        await close_generators(generators)
    asked = [received.body for received in provider.requests]
    assert [(one["model"], one.get("temperature")) for one in asked] == [("gpt-5", None), ("gpt-5-mini", 0)]
    assert [one["messages"] for one in asked] == [HELLO, HELLO]


@dataclass
class Loaded:
    """A pod and a worker with the same models."""

    cluster: Cluster
    pod: RunningPod
    worker: Worker

    async def create(self, name: str, **body: Any) -> str:
        return await self.cluster.create(self.pod, generator=name, input="Hello", **body)

    async def ended(self, stream_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cluster.client.get(f"{self.pod.url}/v1/streams/{stream_id}?wait=20")).json()
        return found


@asynccontextmanager
async def loaded(cluster: Cluster, models: dict[str, Any], **settings: Any) -> AsyncIterator[Loaded]:
    given = {"models": models, "openai_api": "chat", **settings}
    pod = await cluster.pod(**given)
    generators = load_generators(cluster.settings(**given))
    try:
        yield Loaded(cluster, pod, await cluster.worker(generators, **given))
    finally:
        await close_generators(generators)


def answering(text: str) -> Reply:
    chunk = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-2026"}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    frames = data_frames({**chunk, "choices": [choice]}, done=True)
    return Reply(frames, headers={"x-request-id": "req-7"})


async def test_the_model_that_answered_is_in_the_stream(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "baton")
    busy = refusal(429, {"message": "slow down"}, retry_after_ms="1", x_request_id="req-1")
    async with ProviderServer(busy) as one, ProviderServer(answering("Hi")) as two:
        models = {
            "fast": {"generator": "openai", "model": "gpt-5", "base_url": f"{one.url}/v1", "fallback": ["spare"]},
            "spare": {"generator": "openai", "base_url": f"{two.url}/v1"},
        }
        async with loaded(cluster, models, provider_max_retries=1, enabled_generators="fast,replay") as running:
            described = await running.ended(await running.create("fast"))
            failures = running.worker.metrics.registry.get_sample_value
            labels = {"generator": "fast", "model": "gpt-5", "code": "provider_rate_limited"}
            for then in ("retry", "fallback"):
                assert failures("baton_model_call_failures_total", {**labels, "then": then}) == 1
    found = described["answered_by"]
    waited = [call.pop("waited_seconds") for call in found["attempts"]]
    call = {
        "name": "fast",
        "model": "gpt-5",
        "error": "provider_rate_limited",
        "status": 429,
        "request_id": "req-1",
    }
    assert (described["status"], described["text"]) == ("completed", "Hi")
    assert found == {
        "name": "spare",
        "model": "gpt-5-2026",
        "provider": "openai",
        "response_id": "chatcmpl-7",
        "request_id": "req-7",
        "attempts": [call, call],
    }
    assert waited[1] == 0
    (ended,) = [item for item in caplog.records if "has ended" in item.message]
    assert ended.answered_by["name"] == "spare"  # type: ignore[attr-defined]


async def test_a_custom_generator_says_nothing_about_models(cluster: Cluster) -> None:
    async with loaded(cluster, {"fast": {"generator": "replay", "speed": 1000}}) as running:
        described = await running.ended(await running.create("fast"))
    assert (described["status"], described["answered_by"]) == ("completed", None)


async def test_names_that_a_column_cannot_store(cluster: Cluster) -> None:
    """A client may name any model. What cannot be stored would end no stream that is flushed with it."""
    async with (
        ProviderServer(refusal(400, {})) as server,
        loaded(cluster, {}, openai_base_url=f"{server.url}/v1") as running,
    ):
        given = {"messages": HELLO, "model": "a\0b" + "c" * 300}
        stream_id = await running.cluster.create(running.pod, generator="openai", input=given)
        described = await running.ended(stream_id)
    assert described["error"]["code"] == "provider_invalid_request"
    (call,) = described["answered_by"]["attempts"]
    assert call["model"] == "a\ufffdb" + "c" * 253


async def test_a_wait_for_a_provider_is_not_silence(cluster: Cluster) -> None:
    """The provider's limit has a bound of its own. The stream may be silent for less than that."""
    busy = refusal(429, {}, retry_after_ms="1500")
    async with ProviderServer(busy, answering("Hi")) as server:
        models = {"fast": {"generator": "openai", "base_url": f"{server.url}/v1"}}
        limits = {"idle_timeout_seconds": 0.5, "worker_heartbeat_seconds": 0.05, "lease_seconds": 6}
        async with loaded(cluster, models, **limits) as running:
            stream_id = await running.create("fast")
            await until(lambda: bool(server.requests))
            described = await running.ended(stream_id)
    assert (described["status"], described["text"]) == ("completed", "Hi")


async def test_a_stream_that_waits_for_a_provider_is_cancelled_at_once(cluster: Cluster) -> None:
    async with ProviderServer(refusal(429, {}, retry_after="600")) as server:
        models = {"fast": {"generator": "openai", "base_url": f"{server.url}/v1"}}
        async with loaded(cluster, models, provider_max_wait_seconds=3600) as running:
            stream_id = await running.create("fast")
            await until(lambda: any(run.answer.waiting for run in running.worker.slots.runs.values()))
            await running.cluster.client.post(f"{running.pod.url}/v1/streams/{stream_id}/cancel")
            described = await running.ended(stream_id)
    assert described["status"] == "cancelled"
    assert [call["error"] for call in described["answered_by"]["attempts"]] == ["provider_rate_limited"]
    assert described["answered_by"]["name"] is None


async def test_a_worker_at_a_models_limit_leaves_its_streams_queued(cluster: Cluster) -> None:
    async with ProviderServer(Reply(ending="hang"), answering("Hi")) as server:
        models = {
            "fast": {"generator": "openai", "base_url": f"{server.url}/v1", "max_concurrency": 1},
            "other": {"generator": "replay", "speed": 1000},
        }
        async with loaded(cluster, models) as running:
            first = await running.create("fast")
            await until(lambda: bool(server.requests))
            second = await running.create("fast")
            other = await running.ended(await running.create("other"))
            assert other["status"] == "completed"
            described = await running.cluster.client.get(f"{running.pod.url}/v1/streams/{second}")
            assert (described.json()["status"], len(server.requests)) == ("queued", 1)
            await running.cluster.client.post(f"{running.pod.url}/v1/streams/{first}/cancel")
            assert (await running.ended(second))["text"] == "Hi"
