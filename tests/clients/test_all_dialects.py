"""One run, followed in all dialects at once, from two pods."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
from openai import AsyncOpenAI
from tests.clients.pods import ANSWER, WORDS
from tests.support.cluster import Cluster, Tap
from tests.support.follower import frames_after, texts
from tests.support.logbook import until


async def test_all_dialects_send_the_same_text(cluster: Cluster) -> None:
    tap = Tap()
    one, other = await cluster.pod(), await cluster.pod()
    await cluster.worker({"tap": tap}, flush_interval_milliseconds=5)
    async with AsyncOpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0) as first:
        chunks = await first.chat.completions.create(
            model="tap", messages=[{"role": "user", "content": "go"}], metadata={"chat": "42"}, stream=True
        )
        digits = (await anext(chunks)).id.removeprefix("chatcmpl-")
        followers = [
            asyncio.create_task(told)
            for told in (
                chat(chunks),
                native(cluster.client, other.url, digits),
                responses(other.url, digits),
                ai_sdk(cluster.client, one.url, "42"),
                plain(cluster.client, other.url, digits),
            )
        ]
        tap.let(*WORDS[:300])
        await until(lambda: one.metric("baton_subscribers") + other.metric("baton_subscribers") == len(followers))
        tap.let(*WORDS[300:])
        tap.end()
        found = await asyncio.gather(*followers)
    assert found == [ANSWER] * len(followers)


async def chat(chunks: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def native(client: httpx2.AsyncClient, url: str, stream_id: str) -> str:
    return "".join(texts(await frames_after(client, url, stream_id)))


async def responses(url: str, digits: str) -> str:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        events = [event async for event in await client.responses.retrieve(f"resp_{digits}", stream=True)]
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.response.output_text == deltas
    return deltas


async def ai_sdk(client: httpx2.AsyncClient, url: str, chat_id: str) -> str:
    answer = await client.get(f"{url}/v1/ai-sdk/chat/{chat_id}/stream")
    blocks = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block.startswith("data: {")]
    chunks = [orjson.loads(block) for block in blocks]
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


async def plain(client: httpx2.AsyncClient, url: str, stream_id: str) -> str:
    return (await client.get(f"{url}/v1/streams/{stream_id}/events", headers={"accept": "text/plain"})).text
