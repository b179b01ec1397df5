"""The servers that stand in for providers, through the provider's own SDK."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from tests.support.logbook import until
from tests.support.openai_server import Item, OpenAIServer
from tests.support.pacing import Pace
from tests.support.vllm_server import VllmServer

WORDS = ["Grüß", " Gott", " 🏃", ", all", " of", " you"]
REASON, CALL = Item(["Hm", "…"], "reasoning"), Item(['{"q"', ": 1}"], "function_call", "search")
BACKGROUND: dict[str, Any] = {"background": True, "store": True, "stream": True, "model": "m", "input": "Hello"}


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


async def test_a_background_response_is_generated_whether_or_not_it_is_read() -> None:
    async with OpenAIServer(REASON, Item(WORDS), CALL, pace=Pace(allowed=4)) as server, client_of(server.url) as client:
        stream = await client.responses.create(**BACKGROUND)
        events = []
        async for event in stream:
            events.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await until(lambda: not server.readers)
        server.pace.release()
        await until(lambda: server.only.status == "completed")
        cursor = events[-1].sequence_number
        rest = await client.responses.retrieve(server.only.id, stream=True, starting_after=cursor)
        events += [event async for event in rest]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == "".join(WORDS)
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == text
        assert last.response.usage.output_tokens == server.tokens == 10
        assert (server.started, server.cursors) == (1, [cursor])


async def test_a_cancel_stops_a_background_response_and_may_be_repeated() -> None:
    async with OpenAIServer(Item(WORDS), pace=Pace(allowed=2)) as server, client_of(server.url) as client:
        stream = await client.responses.create(**BACKGROUND)
        await until(lambda: server.tokens == 2)
        for _ in range(2):
            assert (await client.responses.cancel(server.only.id)).status == "cancelled"
        server.pace.release()
        assert [event.type async for event in stream][-1] == "response.output_text.delta"
        assert (server.tokens, server.live) == (2, [])


async def test_what_openai_refuses() -> None:
    async with OpenAIServer(Item(WORDS)) as server, client_of(server.url) as client:
        with pytest.raises(openai.BadRequestError, match="requires store"):
            await client.responses.create(**BACKGROUND | {"store": False})
        async for _ in await client.responses.create(**BACKGROUND | {"background": False}):
            pass
        with pytest.raises(openai.BadRequestError, match="completed"):
            await client.responses.cancel(server.only.id)
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.retrieve(server.only.id, stream=True)
        server.forget()
        for call in (client.responses.cancel("resp_1"), client.responses.retrieve("resp_1", stream=True)):
            with pytest.raises(openai.NotFoundError):
                await call


async def test_vllm_continues_a_message_exactly_after_its_text() -> None:
    async with VllmServer("".join(WORDS), size=4) as server, client_of(server.url) as client:
        messages: list[Any] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Grüß G"}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True, extra_body=flags)
        chunks = [chunk async for chunk in stream]
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "ott 🏃, all of you"
        )
        assert server.prefixes == ["Grüß G"]
        with pytest.raises(openai.BadRequestError, match="Cannot set both"):
            await client.chat.completions.create(
                model="m", messages=messages, stream=True, extra_body={"continue_final_message": True}
            )
