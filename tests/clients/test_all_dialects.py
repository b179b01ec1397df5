"""One answer, followed in all dialects and by all clients at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import httpx
import httpx2
import orjson
import pytest
from bench.packages import INSTALL_SECONDS
from langgraph_sdk import get_client
from openai import APIError, AsyncOpenAI
from tests.clients import durable_streams_python
from tests.clients.balancer import balancer
from tests.clients.browsing import EXPECTED, browsing, needs_chromium
from tests.clients.node import Node
from tests.clients.pods import ANSWER, WORDS, two_pods
from tests.support.cluster import Cluster, Tap
from tests.support.follower import frames_after, texts
from tests.support.logbook import until
from tools.js_client import build

from baton import Client

# What a killed pod does to each client: nothing but a pause, a replay on request, or an error without a way back.
DOORS: Final[Mapping[str, str]] = {
    "Anthropic": "replayed",
    "EventSource": "resumed",
    "baton-stream": "resumed",
    "Responses": "resumed",
    "LangGraph": "resumed",
    "AG-UI": "replayed",
    "useChat": "replayed",
    "batonChatTransport": "resumed",
    "AI SDK 4": "replayed",
    "plain text": "cut",
}
HALF: Final = 300


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


@needs_chromium
@pytest.mark.timeout(INSTALL_SECONDS + 120)
async def test_a_killed_pod_costs_no_client_its_answer(cluster: Cluster, node: Node) -> None:
    """Each client resumes exactly, gets the answer again on request, or reports the cut."""
    package = node.folder / "baton-stream"
    package.mkdir()
    build(package)
    async with two_pods(cluster, allowed_origins="*") as pods, balancer(pods.first, pods.second) as url:
        half = WORDS[HALF - 1]
        async with node.running("all_doors.mjs", url, half, url=url) as script, browsing(expected=EXPECTED) as page:
            created = await script.says("created")
            assert set(created["doors"]) == DOORS.keys()
            stream_id, texts_so_far = created["id"], {name: Growing() for name in PYTHON}
            in_page = asyncio.create_task(page.evaluate(IN_PAGE, [url, stream_id]))
            in_python = [asyncio.create_task(read(url, stream_id, texts_so_far[name])) for name, read in PYTHON.items()]
            viewers = len(DOORS) + len(PYTHON) + 2
            await until(lambda: subscribers(cluster.client, pods.first, viewers))
            pods.say(*WORDS[:HALF])
            for _ in DOORS:
                await script.says("half")
            await until(lambda: all(half in texts_so_far[name].text for name in GROWING))
            await page.wait_for_function("half => Object.values(window.texts).every((t) => t.includes(half))", arg=half)
            await pods.kill()
            pods.say(*WORDS[HALF:])
            # A chat that is asked for after its end is not replayed to the AI SDK.
            await until(lambda: subscribers(cluster.client, pods.second, viewers - 1))
            pods.finish()
            said = [await script.says("end") for _ in DOORS]
            await asyncio.gather(*in_python)
            assert await in_page == {"EventSource": ANSWER, "baton-stream": ANSWER}
    ends = {end["door"]: end for end in said}
    assert {door: end["how"] for door, end in ends.items()} == DOORS
    whole = dict.fromkeys(DOORS, ANSWER) | {"plain text": "".join(WORDS[:HALF])}
    assert {door: end["text"] for door, end in ends.items()} == whole
    assert {name: growing.text for name, growing in texts_so_far.items()} == dict.fromkeys(PYTHON, ANSWER)


class Growing:
    """What a client has of the answer."""

    text = ""


async def subscribers(client: httpx2.AsyncClient, url: str, wanted: int) -> bool:
    metrics = (await client.get(f"{url}/metrics")).text
    return f"baton_subscribers {wanted}.0" in metrics.splitlines()


async def by_client(url: str, stream_id: str, growing: Growing) -> None:
    async with Client(url) as client:
        async for received in client.follow(UUID(stream_id)):
            if received.event["type"] == "text":
                growing.text += received.event["delta"]


async def by_langgraph(url: str, stream_id: str, growing: Growing) -> None:
    async with get_client(url=f"{url}/v1/langgraph") as client:
        async for part in client.runs.join_stream("42", stream_id, stream_mode="messages-tuple"):
            if part.event == "messages" and part.data[0]["type"] == "AIMessageChunk":
                growing.text += part.data[0]["content"]


async def by_responses(url: str, stream_id: str, growing: Growing) -> None:
    last: Any = {}
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        while True:
            try:
                response = f"resp_{stream_id.replace('-', '')}"
                async for event in await client.responses.retrieve(response, stream=True, **last):
                    last = {"starting_after": event.sequence_number}
                    if event.type == "response.output_text.delta":
                        growing.text += event.delta
                return
            except (APIError, httpx.HTTPError):
                await asyncio.sleep(0.1)


async def by_durable_streams(url: str, stream_id: str, growing: Growing) -> None:
    events = await durable_streams_python.read(f"{url}/v1/stream/{stream_id}", "sse", "events")
    growing.text = "".join(event["delta"] for event in events if event["type"] == "text")


PYTHON: Final = {
    "baton.Client": by_client,
    "LangGraph": by_langgraph,
    "Responses": by_responses,
    "Durable Streams": by_durable_streams,
}
GROWING: Final = PYTHON.keys() - {"Durable Streams"}  # which is read by a loop that returns all at the end
IN_PAGE: Final = """async ([url, id]) => {
  const texts = (window.texts = { EventSource: "", "baton-stream": "" });
  const { follow } = await import(`${url}/client.js`);
  const add = (name, event) => (texts[name] += event.type === "text" ? event.delta : "");
  const source = new EventSource(`${url}/v1/streams/${id}/events`);
  const ended = new Promise((resolve) => {
    source.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      add("EventSource", event);
      if (event.type === "done") resolve(source.close());
    };
  });
  for await (const event of follow({ url, id })) add("baton-stream", event);
  await ended;
  return texts;
}"""
