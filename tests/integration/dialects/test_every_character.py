"""Every character of Unicode arrives as itself, in every dialect, at the parsers of real clients.

Among them are those that end a line somewhere (CR, LF, NEL, U+2028, U+2029), NUL, the byte order mark, and what looks
like a frame of server-sent events. Lone surrogates are no characters.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import pytest
from openai import AsyncOpenAI
from tests.support.cluster import Cluster, RunningPod

from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

SURROGATES = range(0xD800, 0xE000)
HOSTILE = (
    *(
        "\n\ndata: {}\n\n",
        "\r\rid: 7\r",
        "\r\n\r\nevent: x\r\n",
        "\n\n: comment\n\nretry: 1\n\n",
        "\n\ndata: [DONE]\n\n",
    ),
    *(
        "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e",
        "\0",
        "\ufeff",
        "\x1b[2J",
        "[DONE]",
        '"}\n\n',
        "\\u2028",
        "\\ud83d",
        "\\",
    ),
)
PIECE = 61  # characters in an event


def sample() -> Iterator[str]:
    """The characters that anybody is likely to treat in a way of their own, and some of each thousand."""
    special = {*range(0x300), *range(0x2000, 0x2070), *range(0xFE00, 0xFF10), *range(0xFFE0, 0x10010)}
    ends = {plane + offset for plane in range(0, 0x110000, 0x10000) for offset in (0, 0xFFFE, 0xFFFF)}
    chosen = special | ends | {0xD7FF, 0xE000} | set(range(0, 0x110000, 997))
    yield from map(chr, sorted(chosen - set(SURROGATES)))


def everything() -> Iterator[str]:
    yield from (chr(point) for point in range(0x110000) if point not in SURROGATES)


def pieces(volume: str) -> Iterator[str]:
    """The hostile ones by themselves, and all characters, each at every place of a piece now and then."""
    yield from HOSTILE
    text = "".join(everything() if volume == "all" else sample())
    yield from (text[first : first + PIECE] for first in range(0, len(text), PIECE))


async def alphabet(request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
    """Yield the characters as reasoning, as the arguments of a call, and as text."""
    volume = "all" if b"all" in orjson.dumps(request.input) else "sample"
    for piece in pieces(volume):
        yield {"type": "reasoning", "delta": piece}
    yield {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": ""}
    for piece in pieces(volume):
        yield {"type": "tool_call", "index": 0, "arguments_delta": piece}
    for piece in pieces(volume):
        yield piece


@dataclass
class Told:
    """What a client has put together."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def check(self, volume: str) -> None:
        whole = "".join(pieces(volume))
        for name in ("reasoning", "arguments", "text"):
            # Not by an assertion of the two: to tell how they differ would take minutes.
            found = "".join(getattr(self, name))
            same = next((at for at, pair in enumerate(zip(found, whole, strict=False)) if pair[0] != pair[1]), None)
            assert found == whole or not (name, len(found), len(whole), same)


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    await cluster.worker({"replay": alphabet}, flush_interval_milliseconds=5)
    return await cluster.pod()


@pytest.mark.parametrize("volume", ["sample", pytest.param("all", marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_every_character_in_every_dialect(cluster: Cluster, pod: RunningPod, volume: str) -> None:
    limits = httpx2.Timeout(300)
    async with (
        httpx2.AsyncClient(base_url=pod.url, timeout=limits, trust_env=False) as client,
        AsyncOpenAI(base_url=f"{pod.url}/v1", api_key="none", timeout=300, max_retries=0) as sdk,
    ):
        stream_id = await cluster.create(pod, input=volume)
        (await natively(client, stream_id)).check(volume)
        (await in_a_snapshot(client, stream_id)).check(volume)
        (await at_once(client, stream_id)).check(volume)
        (await as_text(client, stream_id, volume)).check(volume)
        (await as_ui_messages(client, stream_id)).check(volume)
        (await as_response_events(sdk, volume)).check(volume)
        (await as_response(sdk, stream_id)).check(volume)
        (await as_chunks(sdk, volume)).check(volume)
        (await as_completion(sdk, volume)).check(volume)


async def natively(client: httpx2.AsyncClient, stream_id: str) -> Told:
    told = Told()
    parts = {"text": told.text, "reasoning": told.reasoning}
    number = 0
    async with client.sse(f"/v1/streams/{stream_id}/events") as source:
        async for message in source:
            if not message.data:
                continue
            number += 1
            assert message.id == str(number)
            event = orjson.loads(message.data)
            if event["type"] == "tool_call":
                told.arguments.append(event["arguments_delta"])
            elif event["type"] != "done":
                parts[event["type"]].append(event["delta"])
    return told


async def in_a_snapshot(client: httpx2.AsyncClient, stream_id: str) -> Told:
    async with client.sse(f"/v1/streams/{stream_id}/events?snapshot=true", max_event_size=None) as source:
        found = [orjson.loads(message.data) async for message in source if message.data]
    assert [event["type"] for event in found] == ["snapshot", "done"]
    return summed(found[0])


async def at_once(client: httpx2.AsyncClient, stream_id: str) -> Told:
    return summed((await client.get(f"/v1/streams/{stream_id}")).json())


async def as_text(client: httpx2.AsyncClient, stream_id: str, volume: str) -> Told:
    answer = await client.get(f"/v1/streams/{stream_id}/events", headers={"accept": "text/plain"})
    # It tells the text only.
    rest = list(pieces(volume))
    return Told([answer.content.decode()], rest, rest)


async def as_ui_messages(client: httpx2.AsyncClient, stream_id: str) -> Told:
    told = Told()
    parts = {"text-delta": told.text, "reasoning-delta": told.reasoning}
    whole = ""
    async with client.sse(f"/v1/ai-sdk/chat/run_{stream_id.replace('-', '')}/stream", max_event_size=None) as source:
        async for message in source:
            if message.data in {"", "[DONE]"}:
                continue
            chunk = orjson.loads(message.data)
            if chunk["type"] == "tool-input-delta":
                told.arguments.append(chunk["inputTextDelta"])
            elif chunk["type"].startswith("tool-input-"):
                whole = chunk.get("input", whole)
            elif chunk["type"] in parts:
                parts[chunk["type"]].append(chunk["delta"])
    assert whole in {"", "".join(told.arguments)}
    return told


async def as_response_events(sdk: AsyncOpenAI, volume: str) -> Told:
    told = Told()
    final: Any = None
    async for event in await sdk.responses.create(model="replay", input=volume, stream=True):
        if event.type == "response.output_text.delta":
            told.text.append(event.delta)
        elif event.type == "response.reasoning_summary_text.delta":
            told.reasoning.append(event.delta)
        elif event.type == "response.function_call_arguments.delta":
            told.arguments.append(event.delta)
        elif event.type == "response.completed":
            final = event.response
    put_together(final).check(volume)
    return told


async def as_response(sdk: AsyncOpenAI, stream_id: str) -> Told:
    return put_together(await sdk.responses.retrieve(f"resp_{stream_id.replace('-', '')}"))


async def as_chunks(sdk: AsyncOpenAI, volume: str) -> Told:
    told = Told()
    asked: Any = [{"role": "user", "content": volume}]
    async for chunk in await sdk.chat.completions.create(model="replay", messages=asked, stream=True):
        delta: Any = chunk.choices[0].delta
        told.text.append(delta.content or "")
        told.reasoning.append(getattr(delta, "reasoning_content", None) or "")
        told.arguments.extend(call.function.arguments for call in delta.tool_calls or ())
    return told


async def as_completion(sdk: AsyncOpenAI, volume: str) -> Told:
    asked: Any = [{"role": "user", "content": volume}]
    completion = await sdk.chat.completions.create(model="replay", messages=asked)
    message: Any = completion.choices[0].message
    return Told(
        [message.content], [message.reasoning_content], [call.function.arguments for call in message.tool_calls]
    )


def summed(content: dict[str, Any]) -> Told:
    return Told([content["text"]], [content["reasoning"]], [content["tool_calls"][0]["arguments"]])


def put_together(response: Any) -> Told:
    told = Told()
    for item in response.output:
        if item.type == "message":
            told.text.append(item.content[0].text)
        elif item.type == "reasoning":
            told.reasoning.append(item.summary[0].text)
        else:
            told.arguments.append(item.arguments)
    return told


def test_the_sample_has_the_special_characters_and_all_are_complete() -> None:
    assert {"\0", "\r", "\n", "\x85", "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff", "\U0010ffff"} <= set(sample())
    assert count(everything()) == 0x110000 - len(SURROGATES)


def count(found: Iterable[str]) -> int:
    return sum(1 for _ in found)
