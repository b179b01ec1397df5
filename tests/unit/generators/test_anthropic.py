"""What becomes of the events of the Messages API."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.provider_server import ProviderServer, Received, Reply, event_frames
from tests.unit.generators.generation import Heard, hear

from baton.generators.anthropic import build
from baton.settings import Settings

START = {
    "type": "message_start",
    "message": {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "a-model",
        "stop_reason": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 20,
            "output_tokens": 1,
        },
    },
}


async def messages(*events: dict[str, Any]) -> Heard:
    return (await ask("Say hello.", *events))[0]


async def ask(given: Any, *events: dict[str, Any]) -> tuple[Heard, list[Received]]:
    async with ProviderServer(Reply(event_frames(*events))) as server:
        generator = build(
            Settings.load(
                anthropic_api_key="sk-ant-test",
                anthropic_base_url=server.url,
                anthropic_model="a-model",
                anthropic_max_tokens=77,
            )
        )
        try:
            return await hear(generator, given), server.requests
        finally:
            await generator.aclose()


async def test_a_cut_off_answer_has_the_reported_usage() -> None:
    heard = await messages(START)
    assert heard.code == "provider_cut_off"
    assert heard.usage["input_tokens"] == 130


def block(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, **piece: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": piece}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def end(reason: str = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    change = {"stop_reason": reason, "stop_sequence": None}
    usage = {"output_tokens": 9, **usage}
    return [{"type": "message_delta", "delta": change, "usage": usage}, {"type": "message_stop"}]


async def test_text_thinking_and_usage() -> None:
    heard = await messages(
        START,
        block(0, type="thinking", thinking="", signature=""),
        {"type": "ping"},
        delta(0, type="thinking_delta", thinking="Hm"),
        delta(0, type="thinking_delta", thinking="."),
        delta(0, type="signature_delta", signature="c2ln"),
        stop(0),
        block(1, type="redacted_thinking", data="eA=="),
        stop(1),
        block(2, type="text", text=""),
        delta(2, type="text_delta", text="Grüß"),
        {"type": "something_new", "index": 2},
        delta(2, type="text_delta", text=" Gott 🏃"),
        stop(2),
        *end(output_tokens_details={"thinking_tokens": 3}),
    )
    assert heard.error is None
    assert (heard.reasoning, heard.text, heard.finish_reason) == ("Hm.", "Grüß Gott 🏃", "stop")
    assert heard.usage == {
        "input_tokens": 130,
        "output_tokens": 9,
        "total_tokens": 139,
        "cached_tokens": 100,
        "cache_write_tokens": 20,
        "reasoning_tokens": 3,
    }
    assert [event["type"] for event in heard.events[-2:]] == ["usage", "finish"]
    extra = [event for event in heard.events if event["type"] == "reasoning" and event["delta"] == ""]
    assert extra == [
        {"type": "reasoning", "delta": "", "signature": "c2ln"},
        {"type": "reasoning", "delta": "", "redacted": "eA=="},
    ]


async def test_betas_are_a_header() -> None:
    given = {"betas": ["one", "two"], "messages": [{"role": "user", "content": "Hi"}]}
    _, requests = await ask(given, START, *end())
    assert requests[0].headers["anthropic-beta"] == "one,two"
    assert "betas" not in requests[0].body


async def test_usage_of_a_server_without_a_cache() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 0}}}
    heard = await messages(start, block(0, type="text", text="x"), stop(0), *end(input_tokens=5, output_tokens=6))
    assert heard.text == "x"
    assert heard.usage == {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}


async def test_parallel_tool_calls() -> None:
    """Their indices count the blocks; ours count the calls. A call without arguments has the object `{}`."""
    heard = await messages(
        START,
        block(0, type="text", text=""),
        delta(0, type="text_delta", text="Let me look."),
        stop(0),
        block(1, type="tool_use", id="toolu_a", name="weather", input={}),
        delta(1, type="input_json_delta", partial_json=""),
        delta(1, type="input_json_delta", partial_json='{"city": "Os'),
        delta(1, type="input_json_delta", partial_json='lo"}'),
        stop(1),
        block(2, type="tool_use", id="toolu_b", name="ping", input={}),
        stop(2),
        block(3, type="server_tool_use", id="srvtoolu", name="web_search", input={}),
        delta(3, type="input_json_delta", partial_json='{"query": "x"}'),
        stop(3),
        block(4, type="tool_use", id="toolu_c", name="clock", input={"zone": "CET"}),
        stop(4),
        *end("tool_use"),
    )
    assert heard.calls == [
        ("toolu_a", "weather", '{"city": "Oslo"}'),
        ("toolu_b", "ping", "{}"),
        ("toolu_c", "clock", '{"zone":"CET"}'),
    ]
    assert (heard.text, heard.finish_reason) == ("Let me look.", "tool_calls")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
    ],
)
async def test_finish_reasons(given: str, reason: str) -> None:
    heard = await messages(START, block(0, type="text", text="x"), stop(0), *end(given))
    assert (heard.finish_reason, heard.error) == (reason, None)


async def test_the_request() -> None:
    answer = [START, block(0, type="text", text="x"), stop(0), *end()]
    _, plain = await ask("Say hello.", *answer)
    _, full = await ask({"messages": "hi", "system": "Be brief.", "max_tokens": 5}, *answer)
    assert plain[0].path == "/v1/messages"
    assert plain[0].body == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 77,
        "stream": True,
    }
    assert (full[0].body["system"], full[0].body["max_tokens"]) == ("Be brief.", 5)


async def test_overloaded_in_mid_answer() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    heard = await messages(START, block(0, type="text", text="x"), error)
    assert (heard.text, heard.code) == ("x", "provider_error")
    assert str(heard.error) == "The model provider reported an error during the answer (overloaded_error)."


async def test_an_input_without_messages() -> None:
    heard, _ = await ask({"system": "Be brief."})
    assert (heard.code, str(heard.error)) == ("invalid_input", 'The input needs "messages".')
