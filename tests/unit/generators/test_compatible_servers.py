"""What servers send that are compatible with OpenAI's and Anthropic's APIs, each in its own way, through the SDKs.

A case is the bytes of a body. It arrives in one piece and byte by byte, and the answer is the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.provider_server import Ending, ProviderServer, Reply, event_frames
from tests.unit.generators.generation import Heard, hear

from baton.generators import anthropic, openai
from baton.settings import Settings

# Each body comes whole and byte by byte, through the SDKs: left to `make test-clients` and `make test-lowest`.
pytestmark = pytest.mark.clients

DONE = b"data: [DONE]\n\n"
Call = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Expected:
    text: str = ""
    finish_reason: str | None = "stop"
    calls: list[Call] = field(default_factory=list)
    reasoning: str = ""
    usage: dict[str, int] | None = None
    code: str | None = None


def frame(item: Any) -> bytes:
    return b"data: " + json.dumps(item).encode() + b"\n\n"


def chunk(delta: Any = None, reason: str | None = None, **more: Any) -> bytes:
    return frame({"id": "x", "object": "chat.completion.chunk", **choices(delta, reason), **more})


def choices(delta: Any, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


def call(arguments: Any = None, **named: Any) -> dict[str, Any]:
    """One entry of `tool_calls`; the name belongs to its function."""
    function = {"arguments": arguments} | ({"name": named.pop("name")} if "name" in named else {})
    return {"type": "function", "function": function, **named}


def calls(*entries: dict[str, Any], reason: str | None = None) -> bytes:
    return chunk({"tool_calls": list(entries)}, reason)


def usage(prompt: int, completion: int | None) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + (completion or 0)}


def counts(prompt: int, completion: int) -> dict[str, int]:
    return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}


HI = [chunk({"role": "assistant", "content": "Hi"})]
F, G = ("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')
CALLED = Expected(calls=[F], finish_reason="tool_calls")
BOTH = Expected(calls=[F, G], finish_reason="tool_calls")
NO_IDS = Expected(calls=[("call_0", *F[1:]), ("call_1", *G[1:])], finish_reason="tool_calls")

CHAT: dict[str, tuple[list[bytes], Expected]] = {
    "no reason, but the end of the protocol (Ollama)": ([*HI, DONE], Expected("Hi")),
    "the mark without a space, and a comment behind it": ([*HI, b"data:[DONE]\n\n: bye\n\n"], Expected("Hi")),
    "lines that end in CR and LF": ([*HI, b"data: [DONE]\r\n\r\n"], Expected("Hi")),
    "a lost connection with a clean end": (HI, Expected("Hi", None, code="provider_cut_off")),
    "a text that looks like the mark": (
        [chunk({"content": "\ndata: [DONE]"})],
        Expected("\ndata: [DONE]", None, code="provider_cut_off"),
    ),
    "a gateway without an answer": ([DONE], Expected("", None, code="provider_cut_off")),
    "no reason, and a call": ([calls(call('{"x":1}', id="a", name="f", index=0)), DONE], CALLED),
    "an empty reason in each chunk": ([chunk({"content": "Hi"}, ""), chunk({}, ""), DONE], Expected("Hi")),
    "a reason that comes twice": ([*HI, chunk({}, "length"), chunk({}, "stop"), DONE], Expected("Hi", "length")),
    "another word for the reason": ([*HI, chunk({}, "eos"), DONE], Expected("Hi")),
    "a reason that does not say that there are calls (Gemini)": (
        [calls(call('{"x":1}', id="a", name="f", index=0), reason="stop"), DONE],
        CALLED,
    ),
    "comments (OpenRouter)": ([b": OPENROUTER PROCESSING\n\n", *HI, b": x\n\n", chunk({}, "stop")], Expected("Hi")),
    "an error in a chunk (OpenRouter)": (
        [*HI, chunk({"content": ""}, "error", error={"code": "server_error", "message": "x"}), DONE],
        Expected("Hi", None, code="provider_error"),
    ),
    "an error as the reason": ([*HI, chunk({}, "error"), DONE], Expected("Hi", None, code="provider_error")),
    "an error as an object of its own (vLLM)": (
        [*HI, frame({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}), DONE],
        Expected("Hi", None, code="provider_error"),
    ),
    "an error beside the choices (Groq)": (
        [*HI, frame({"choices": [], "x_groq": {"error": "x"}}), DONE],
        Expected("Hi", None, code="provider_error"),
    ),
    "filter results without choices, then a chunk without a delta (Azure)": (
        [
            frame({"choices": [], "prompt_filter_results": []}),
            *HI,
            frame({"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]}),
            chunk({}, "stop"),
            frame({"choices": [], "usage": usage(3, 1)}),
            DONE,
        ],
        Expected("Hi", usage=counts(3, 1)),
    ),
    "usage so far in each chunk (vLLM)": (
        [chunk({"content": "H"}, usage=usage(3, 1)), chunk({"content": "i"}, "stop", usage=usage(3, 2)), DONE],
        Expected("Hi", usage=counts(3, 2)),
    ),
    "usage before the last text, null after it": (
        [chunk({"content": "H"}, usage=usage(3, 2)), chunk({"content": "i"}, "stop", usage=None), DONE],
        Expected("Hi", usage=counts(3, 2)),
    ),
    "usage in two parts": (
        [chunk({"content": "Hi"}, usage={"prompt_tokens": 3}), chunk({}, "stop", usage={"completion_tokens": 2}), DONE],
        Expected("Hi", usage={"input_tokens": 3, "output_tokens": 2}),
    ),
    "usage beside the choices (Groq)": (
        [*HI, chunk({}, "stop", x_groq={"id": "r", "usage": usage(3, 1)}), DONE],
        Expected("Hi", usage=counts(3, 1)),
    ),
    "usage in the choice (Moonshot)": (
        [*HI, frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage(3, 1)}]}), DONE],
        Expected("Hi", usage=counts(3, 1)),
    ),
    "a role in each chunk, content null and empty": (
        [chunk({"role": "assistant", "content": text}) for text in (None, "", "H", "i")] + [chunk(None, "stop"), DONE],
        Expected("Hi"),
    ),
    "content in parts, some of them thoughts (Mistral)": (
        [
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]}),
            chunk({"content": [{"type": "text", "text": "Hi"}, {"type": "reference", "reference_ids": [1]}]}, "stop"),
            DONE,
        ],
        Expected("Hi", reasoning="Hm"),
    ),
    "reasoning under two names": (
        [chunk({"reasoning_content": "Hm", "reasoning": "Hm"}), chunk({"content": "Hi"}, "stop"), DONE],
        Expected("Hi", reasoning="Hm"),
    ),
    "two choices": (
        [frame(choices({"content": "Hi"})), frame(choices({"content": "Ho"}, index=1)), chunk({}, "stop"), DONE],
        Expected("Hi"),
    ),
    "a message in place of a delta": (
        [frame({"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}), DONE],
        Expected("Hi"),
    ),
    "a call's id with each piece": (
        [calls(call('{"x"', id="a", name="f", index=0)), calls(call(":1}", id="a", index=0)), chunk({}, "stop"), DONE],
        CALLED,
    ),
    "a call's name with each piece": (
        [calls(call('{"x"', id="a", name="f", index=0)), calls(call(":1}", name="f", index=0)), DONE],
        CALLED,
    ),
    "another id with each piece": (
        [calls(call('{"x"', id="a", name="f", index=0)), calls(call(":1}", id="z", name="f", index=0)), DONE],
        CALLED,
    ),
    "a name in pieces": (
        [
            calls(call("", id="a", name="we", index=0)),
            calls(call(None, name="ather", index=0)),
            calls(call("{}", index=0)),
            DONE,
        ],
        Expected(calls=[("a", "weather", "{}")], finish_reason="tool_calls"),
    ),
    "a name that comes late": (
        [calls(call("", id="a", index=0)), calls(call('{"x":', index=0)), calls(call("1}", name="f", index=0)), DONE],
        CALLED,
    ),
    "an id that comes late": (
        [calls(call('{"x":', name="f", index=0)), calls(call("1}", id="a", index=0)), chunk({}, "tool_calls"), DONE],
        CALLED,
    ),
    "the whole call once more at the end": (
        [
            calls(call('{"x"', id="a", name="f", index=0)),
            calls(call(":1}", index=0)),
            calls(call('{"x":1}', id="a", name="f", index=0), reason="tool_calls"),
            DONE,
        ],
        CALLED,
    ),
    "whole calls without an index (Mistral)": (
        [calls(call('{"x":1}', id="a", name="f"), call('{"y":2}', id="b", name="g"), reason="tool_calls"), DONE],
        BOTH,
    ),
    "whole calls with one index in one chunk, without ids (Gemini)": (
        [calls(call('{"x":1}', id="", name="f", index=0), call('{"y":2}', id="", name="g", index=0)), DONE],
        NO_IDS,
    ),
    "whole calls with one index in two chunks, without ids (Gemini)": (
        [calls(call('{"x":1}', id="", name="f", index=0)), calls(call('{"y":2}', id="", name="g", index=0)), DONE],
        NO_IDS,
    ),
    "the same call twice with one index, without ids": (
        [calls(call('{"x":1}', id="", name="f", index=0)), calls(call('{"x":1}', id="", name="f", index=0)), DONE],
        Expected(calls=[("call_0", *F[1:]), ("call_1", *F[1:])], finish_reason="tool_calls"),
    ),
    "arguments as an object": ([calls(call({"x": 1}, id="a", name="f", index=0)), DONE], CALLED),
    "a call without arguments": (
        [calls(call(None, id="a", name="f", index=0), reason="tool_calls"), DONE],
        Expected(calls=[("a", "f", "")], finish_reason="tool_calls"),
    ),
    "calls that begin before their arguments": (
        [
            calls(call("", id="a", name="f", index=0), call("", id="b", name="g", index=1)),
            calls(call('{"y":2}', index=1)),
            calls(call('{"x":1}', index=0), reason="tool_calls"),
            DONE,
        ],
        BOTH,
    ),
    "a function_call": (
        [
            chunk({"function_call": {"name": "f", "arguments": ""}}),
            chunk({"function_call": {"arguments": '{"x":1}'}}),
            chunk({}, "function_call"),
            DONE,
        ],
        Expected(calls=[("call_0", *F[1:])], finish_reason="tool_calls"),
    ),
    "a function_call beside the same tool call": (
        [chunk({"tool_calls": [call('{"x":1}', id="a", name="f", index=0)], "function_call": {"name": "f"}}), DONE],
        CALLED,
    ),
    "characters of several bytes": (
        ['data: {"choices":[{"index":0,"delta":{"content":"é😀"}}]}\n\n'.encode(), DONE],
        Expected("é😀"),
    ),
}


def output(place: int | None, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", **({} if place is None else {"output_index": place}), **fields}


def over(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": list(items)}}


FUNCTION = {"type": "function_call", "id": "i", "call_id": "a", "name": "f", "arguments": '{"x":1}'}
MESSAGE = {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
DELTA = output(0, "output_text.delta", item_id="m", content_index=0, delta="Hi")

RESPONSES: dict[str, tuple[list[dict[str, Any]], Expected]] = {
    "everything twice": (
        [
            DELTA,
            output(0, "output_text.done", item_id="m", content_index=0, text="Hi"),
            output(0, "output_item.done", item=MESSAGE),
            output(1, "output_item.added", item={**FUNCTION, "arguments": ""}),
            output(1, "function_call_arguments.delta", item_id="i", delta='{"x":1}'),
            output(1, "function_call_arguments.done", item_id="i", arguments='{"x":1}'),
            output(1, "output_item.done", item=FUNCTION),
            over(MESSAGE, FUNCTION),
        ],
        Expected("Hi", "tool_calls", [F]),
    ),
    "a text that comes whole": ([output(0, "output_text.done", item_id="m", text="Hi"), over(MESSAGE)], Expected("Hi")),
    "items that come whole": (
        [output(0, "output_item.done", item=MESSAGE), output(1, "output_item.done", item=FUNCTION), over()],
        Expected("Hi", "tool_calls", [F]),
    ),
    "nothing but the whole Response": ([over(MESSAGE, FUNCTION)], Expected("Hi", "tool_calls", [F])),
    "no places": (
        [
            output(None, "output_text.delta", item_id="m", delta="Hi"),
            output(None, "output_item.added", item={**FUNCTION, "arguments": ""}),
            output(None, "function_call_arguments.delta", item_id="i", delta='{"x":1}'),
            output(None, "output_item.done", item=FUNCTION),
            over(MESSAGE, FUNCTION),
        ],
        Expected("Hi", "tool_calls", [F]),
    ),
    "a name that comes late": (
        [
            output(0, "output_item.added", item={**FUNCTION, "name": "", "arguments": ""}),
            output(0, "function_call_arguments.delta", item_id="i", delta='{"x":1}'),
            output(0, "output_item.done", item=FUNCTION),
            over(),
        ],
        CALLED,
    ),
    "no call_id": (
        [output(0, "output_item.added", item={**FUNCTION, "id": "a", "call_id": None}), over()],
        CALLED,
    ),
    "a lost connection with a clean end": ([DELTA], Expected("Hi", None, code="provider_cut_off")),
}

START = {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "usage": None}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
TOOL = {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "a", "name": "f"}}
STOP = {"type": "message_stop"}

MESSAGES: dict[str, tuple[list[dict[str, Any]], Expected]] = {
    "no reason, but the end of the protocol": ([START, TEXT, STOP], Expected("Hi")),
    "a reason that is null, and a call whose block does not end": (
        [
            TEXT,
            {**TOOL, "content_block": {**TOOL["content_block"], "input": {"x": 1}}},  # type: ignore[dict-item]
            {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}},
            STOP,
        ],
        Expected("Hi", "tool_calls", [F], usage=counts(0, 2)),
    ),
    "arguments in pieces behind empty ones": (
        [
            {**TOOL, "content_block": {**TOOL["content_block"], "input": {}}},  # type: ignore[dict-item]
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
            {"type": "content_block_stop", "index": 1},
            STOP,
        ],
        CALLED,
    ),
    "a lost connection with a clean end": ([START, TEXT], Expected("Hi", None, code="provider_cut_off")),
}


@pytest.mark.parametrize(("frames", "expected"), CHAT.values(), ids=CHAT.keys())
async def test_chat_completions(frames: list[bytes], expected: Expected) -> None:
    assert await ask("chat", b"".join(frames)) == (expected, expected)


@pytest.mark.parametrize(("events", "expected"), RESPONSES.values(), ids=RESPONSES.keys())
async def test_responses(events: list[dict[str, Any]], expected: Expected) -> None:
    assert await ask("responses", b"".join(event_frames(*events))) == (expected, expected)


@pytest.mark.parametrize(("events", "expected"), MESSAGES.values(), ids=MESSAGES.keys())
async def test_messages(events: list[dict[str, Any]], expected: Expected) -> None:
    assert await ask("messages", b"".join(event_frames(*events))) == (expected, expected)


async def test_a_connection_lost_before_the_end_mark_is_a_cutoff() -> None:
    expected = Expected("Hi", None, code="provider_cut_off")
    assert await ask("chat", b"".join(HI), "abort") == (expected, expected)


async def ask(api: str, body: bytes, ending: Ending = "end") -> tuple[Expected, Expected]:
    """Ask twice; return what comes of a body in one piece, and of the same body byte by byte."""
    whole = Reply([body], ending)
    tiny = Reply([body[at : at + 1] for at in range(len(body))], ending)
    async with ProviderServer(whole, tiny) as server:
        generator = (
            anthropic.build(Settings.load(anthropic_base_url=server.url, anthropic_model="m"))
            if api == "messages"
            else openai.build(Settings.load(openai_api=api, openai_base_url=f"{server.url}/v1", openai_model="m"))
        )
        try:
            return summary(await hear(generator)), summary(await hear(generator))
        finally:
            await generator.aclose()


def summary(heard: Heard) -> Expected:
    """What was heard, in the form of what was expected."""
    usage = heard.usage if heard.of("usage") else None
    return Expected(heard.text, heard.finish_reason, heard.calls, heard.reasoning, usage, heard.code)
