"""Continuing a partial assistant message."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.provider_server import refusal
from tests.support.vllm_server import VllmServer
from tests.unit.generators.generation import Heard, request

from baton.errors import GenerationError
from baton.generators import SoFar
from baton.generators.accounts import default_account
from baton.generators.prefix import PrefixGenerator, build
from baton.settings import Settings

WHOLE = "First paragraph, with Grüße 🏃.\n\nSecond paragraph."
CALLED = ({"id": "c", "name": "search", "arguments": "{"},)


@contextlib.asynccontextmanager
async def generator_of(server: VllmServer) -> AsyncIterator[PrefixGenerator]:
    settings = Settings.load(
        openai_api="chat", openai_base_url=f"{server.url}/v1", openai_model="m", provider_max_retries=0
    )
    generator = build(settings, default_account(settings, "openai"))
    try:
        yield generator
    finally:
        await generator.aclose()


async def run(generator: PrefixGenerator, so_far: SoFar | None, given: Any = "Hello") -> Heard:
    """Run it for the first time, or after what another run has left."""
    heard = Heard()
    known = {} if so_far is None else {"run": 2, "so_far": so_far}
    try:
        async for item in generator(request(given, **known)):
            if isinstance(item, dict) and item["type"] == "continue":
                assert not heard.events
                heard.events.append(item)
            else:
                heard.add(item)
    except GenerationError as error:
        heard.error = error
    return heard


@pytest.mark.parametrize("length", [1, 6, 28, 29, 31, 32, 33, len(WHOLE) - 1])
async def test_it_continues_exactly_after_the_text_so_far(length: int) -> None:
    so_far = SoFar(seq=9, text=WHOLE[:length])
    async with VllmServer(WHOLE, size=4) as server, generator_of(server) as generator:
        heard = await run(generator, so_far)
    assert heard.error is None
    assert heard.events[0] == {"type": "continue", "after": 9}
    assert so_far.text + heard.text == WHOLE
    assert server.prefixes == [WHOLE[:length].rstrip()]
    assert server.requests[0].body["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": WHOLE[:length].rstrip()},
    ]
    assert heard.usage["output_tokens"] == server.tokens


async def test_a_first_run_asks_as_ever() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        heard = await run(generator, None)
    assert (heard.text, server.prefixes, heard.of("continue")) == (WHOLE, [None], [])
    assert not {"continue_final_message", "add_generation_prompt"} & server.requests[0].body.keys()


async def test_nothing_so_far_needs_no_new_start() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        server.reasoning = "Hm."
        heard = await run(generator, SoFar(seq=1))
    assert (heard.events[0], heard.text, heard.reasoning) == ({"type": "continue", "after": 1}, WHOLE, "Hm.")


@pytest.mark.parametrize(
    ("so_far", "given"),
    [
        (SoFar(seq=2, text="First", reasoning="Hm."), "Hello"),
        (SoFar(seq=2, reasoning="Hm."), "Hello"),
        (SoFar(seq=2, text="First", tool_calls=CALLED), "Hello"),
        (SoFar(seq=2, text="First"), {"messages": "Hello", "response_format": {"type": "json_object"}}),
        (SoFar(seq=2, text="First"), {"messages": "Hello", "guided_regex": "[a-z]+"}),
        (SoFar(seq=2, text="First"), {"messages": "Hello", "tool_choice": "required"}),
    ],
)
async def test_what_cannot_be_continued_starts_over(so_far: SoFar, given: Any) -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        heard = await run(generator, so_far, given)
    assert (heard.text, server.prefixes, heard.of("continue")) == (WHOLE, [None], [])


async def test_a_call_may_follow_the_continued_text() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        server.calls = True
        heard = await run(generator, SoFar(seq=2, text="First"))
    assert ("First" + heard.text, heard.calls) == (WHOLE, [("call_0", "search", '{"q": 1}')])
    assert heard.finish_reason == "tool_calls"


async def test_a_server_that_refuses_to_continue_is_asked_for_a_new_answer() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        server.refuses_prefixes = True
        heard = await run(generator, SoFar(seq=2, text="First"))
    assert (heard.text, server.prefixes, heard.of("continue")) == (WHOLE, [None], [])


async def test_a_server_that_takes_the_rest_for_reasoning_is_asked_for_a_new_answer() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        server.parses_reasoning = True
        heard = await run(generator, SoFar(seq=2, text="First"))
    assert (heard.text, heard.reasoning, heard.of("continue")) == (WHOLE, "", [])
    assert server.prefixes == ["First", None]


async def test_a_server_that_fails_is_not_asked_for_a_new_answer() -> None:
    async with VllmServer(WHOLE) as server, generator_of(server) as generator:
        server.refusals = [refusal(503, {"message": "Busy."})]
        heard = await run(generator, SoFar(seq=2, text="First"))
    assert (heard.code, heard.events, server.prefixes) == ("provider_error", [], [])


async def test_white_space_that_does_not_come_again_stays_as_it_was() -> None:
    async with VllmServer("First paragraph.Second.") as server, generator_of(server) as generator:
        heard = await run(generator, SoFar(seq=2, text="First paragraph. \n"))
    assert heard.text == "Second."
