"""The names of `BATON_MODELS`, from a request in each dialect to what the provider is asked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cluster import Cluster
from tests.support.provider_server import ProviderServer, Reply, data_frames

from baton.generators import close_generators, load_generators

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
