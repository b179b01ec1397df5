"""What becomes of the events of OpenAI's two APIs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.provider_server import ProviderServer, Reply, data_frames, event_frames
from tests.unit.generators.generation import Heard, hear

from baton.generators.openai import build
from baton.settings import Settings


async def responses(*events: dict[str, Any]) -> Heard:
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return await _hear("responses", Reply(event_frames(*numbered)))


async def chat(*chunks: dict[str, Any]) -> Heard:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return await _hear("chat", Reply(data_frames(*({**head, **chunk} for chunk in chunks), done=True)))


async def _hear(api: str, reply: Reply, given: Any = "Say hello.") -> Heard:
    async with ProviderServer(reply) as server:
        generator = build(Settings.load(openai_api=api, openai_base_url=f"{server.url}/v1", openai_model="a-model"))
        try:
            return await hear(generator, given)
        finally:
            await generator.aclose()


def added(output_index: int, **item: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": output_index, "item": item}


def arguments(output_index: int, delta: str) -> dict[str, Any]:
    return {
        "type": "response.function_call_arguments.delta",
        "item_id": f"fc_{output_index}",
        "output_index": output_index,
        "delta": delta,
    }


def ended(kind: str = "completed", **response: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"id": "r", "status": kind, **response}}


def text(delta: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": delta}


def choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": None}


def call(index: int | None, call_id: str | None, name: str | None, piece: str) -> dict[str, Any]:
    part: dict[str, Any] = {"index": index, "function": {"arguments": piece}}
    if call_id:
        part |= {"id": call_id, "type": "function"}
        part["function"]["name"] = name
    return choice({"tool_calls": [part]})


async def test_responses_text_and_usage() -> None:
    heard = await responses(
        {"type": "response.created", "response": {"id": "r", "status": "in_progress"}},
        {"type": "keepalive"},
        {"type": "response.something_new", "delta": "?"},
        added(0, type="message", id="m", role="assistant"),
        text("Grüß"),
        text(" Gott 🏃"),
        ended(
            usage={
                "input_tokens": 11,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 18,
            }
        ),
    )
    assert heard.error is None
    assert (heard.text, heard.finish_reason) == ("Grüß Gott 🏃", "stop")
    assert heard.usage == {
        "input_tokens": 11,
        "output_tokens": 7,
        "total_tokens": 18,
        "cached_tokens": 4,
        "cache_write_tokens": 0,
        "reasoning_tokens": 2,
    }
    assert [event["type"] for event in heard.events] == ["text", "text", "usage", "finish"]


async def test_responses_usage_without_details() -> None:
    heard = await responses(text("x"), ended(usage={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}))
    assert heard.usage == {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


async def test_responses_reasoning() -> None:
    part = {"type": "response.reasoning_summary_part.added", "item_id": "i", "output_index": 0}
    delta = {"type": "response.reasoning_summary_text.delta", "item_id": "i", "output_index": 0}
    heard = await responses(
        {"type": "response.reasoning_text.delta", "delta": "Hm. ", "output_index": 0, "content_index": 0},
        {**part, "summary_index": 0},
        {**delta, "summary_index": 0, "delta": "One."},
        {**part, "summary_index": 1},
        {**delta, "summary_index": 1, "delta": "Two."},
        text("Done."),
        ended(),
    )
    assert (heard.reasoning, heard.text) == ("Hm. One.\n\nTwo.", "Done.")


async def test_responses_refusal_is_text() -> None:
    heard = await responses(
        {"type": "response.refusal.delta", "delta": "I cannot.", "output_index": 0, "content_index": 0},
        ended(),
    )
    assert heard.text == "I cannot."


async def test_responses_parallel_tool_calls() -> None:
    """Their output indices count other items too; ours do not."""
    heard = await responses(
        added(0, type="reasoning", id="rs"),
        added(1, type="function_call", id="fc_1", call_id="call_a", name="weather", arguments=""),
        arguments(1, '{"city":'),
        added(3, type="function_call", id="fc_3", call_id="call_b", name="clock", arguments=""),
        arguments(3, '{"zone":"'),
        arguments(1, '"Oslo"}'),
        arguments(3, 'CET"}'),
        {"type": "response.function_call_arguments.done", "output_index": 3, "arguments": '{"zone":"CET"}'},
        added(4, type="function_call", id="fc_4", call_id="call_c", name="ping", arguments=""),
        {"type": "response.function_call_arguments.done", "output_index": 4, "arguments": "{}"},
        added(5, type="custom_tool_call", id="ct", call_id="call_d", name="shell", input=""),
        {"type": "response.custom_tool_call_input.delta", "output_index": 5, "delta": "ls"},
        arguments(9, "of a call that never began"),
        ended(),
    )
    assert heard.calls == [
        ("call_a", "weather", '{"city":"Oslo"}'),
        ("call_b", "clock", '{"zone":"CET"}'),
        ("call_c", "ping", "{}"),
        ("call_d", "shell", "ls"),
    ]
    assert heard.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        (None, "length"),
    ],
)
async def test_responses_incomplete(details: Any, reason: str) -> None:
    heard = await responses(text("x"), ended("incomplete", incomplete_details=details))
    assert (heard.finish_reason, heard.error) == (reason, None)


async def test_responses_failed_reports_usage_and_nothing_else() -> None:
    heard = await responses(
        text("x"),
        ended(
            "failed",
            error={"code": "server_error", "message": f"at {'a' * 40}"},
            usage={"input_tokens": 5, "output_tokens": 1, "total_tokens": 6},
        ),
    )
    assert heard.usage["total_tokens"] == 6
    assert heard.code == "provider_error"
    assert str(heard.error) == "The model provider reported an error during the answer (server_error)."


async def test_chat_text_and_usage() -> None:
    heard = await chat(
        choice({"role": "assistant", "content": ""}),
        choice({"content": "Grüß"}),
        choice({"content": " Gott 🏃"}),
        choice({}, "stop"),
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 7,
                "total_tokens": 18,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        },
    )
    assert heard.error is None
    assert [event["type"] for event in heard.events] == ["text", "text", "usage", "finish"]
    assert heard.text == "Grüß Gott 🏃"
    assert heard.usage == {
        "input_tokens": 11,
        "output_tokens": 7,
        "total_tokens": 18,
        "cached_tokens": 4,
        "reasoning_tokens": 2,
    }


async def test_chat_always_asks_for_usage() -> None:
    reply = Reply(data_frames(choice({"content": "x"}, "stop"), done=True))
    async with ProviderServer(reply) as server:
        generator = build(Settings.load(openai_api="chat", openai_base_url=f"{server.url}/v1", openai_model="a-model"))
        given = {"input": "hi", "stream_options": {"include_usage": False, "include_obfuscation": False}}
        await hear(generator, given)
        refused = await hear(generator, {"temperature": 1})
        await generator.aclose()
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "hi"}]
    assert (refused.code, str(refused.error)) == ("invalid_input", 'The input needs "messages".')


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_chat_reasoning_of_compatible_servers(field: str) -> None:
    heard = await chat(choice({field: "Hm", "content": None}), choice({field: "."}), choice({"content": "x"}, "stop"))
    assert (heard.reasoning, heard.text) == ("Hm.", "x")


async def test_chat_refusal_is_text() -> None:
    heard = await chat(choice({"refusal": "I cannot."}), choice({}, "stop"))
    assert heard.text == "I cannot."


async def test_chat_parallel_tool_calls() -> None:
    heard = await chat(
        call(0, "call_a", "weather", ""),
        call(0, None, None, '{"city":'),
        call(1, "call_b", "clock", ""),
        call(1, None, None, '{"zone":"'),
        call(0, None, None, '"Oslo"}'),
        call(1, None, None, 'CET"}'),
        choice({}, "tool_calls"),
    )
    assert heard.calls == [("call_a", "weather", '{"city":"Oslo"}'), ("call_b", "clock", '{"zone":"CET"}')]
    assert heard.finish_reason == "tool_calls"


@pytest.mark.parametrize("index", [0, None])
async def test_chat_tool_calls_that_all_have_one_index(index: int | None) -> None:
    heard = await chat(
        call(index, "call_a", "weather", '{"city":"Oslo"}'),
        call(index, "call_b", "clock", '{"zone":'),
        call(index, "call_b", "clock", '"CET"}'),
        choice({}, "tool_calls"),
    )
    assert heard.calls == [("call_a", "weather", '{"city":"Oslo"}'), ("call_b", "clock", '{"zone":"CET"}')]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
    ],
)
async def test_chat_finish_reasons(given: str, reason: str) -> None:
    heard = await chat(choice({"content": "x"}), choice({}, given))
    assert heard.finish_reason == reason
