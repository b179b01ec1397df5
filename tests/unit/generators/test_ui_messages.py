"""What `useChat` of the AI SDK sends, as chat messages."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import GenerationError
from baton.generators.conversation import for_anthropic, for_responses, messages

PIXEL = "data:image/png;base64,AA=="
PAPER = "data:application/pdf;base64,AA=="


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "state": "done"}


def tool(call_id: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tool-weather", "toolCallId": call_id, "state": state, **fields}


def calling(call_id: str, arguments: str, name: str = "weather") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


CASES: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a user's text": ("user", [text("Hello")], [{"role": "user", "content": "Hello"}]),
    "a system's texts": ("system", [text("Be "), text("kind.")], [{"role": "system", "content": "Be kind."}]),
    "files": (
        "user",
        [
            text("What is this?"),
            {"type": "file", "mediaType": "image/png", "url": PIXEL},
            {"type": "file", "mediaType": "application/pdf", "url": PAPER, "filename": "a.pdf"},
            {"type": "data-place", "data": "Oslo"},
        ],
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PIXEL}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": PAPER}},
                ],
            }
        ],
    ),
    "an answer in two steps": (
        "assistant",
        [
            {"type": "step-start"},
            {"type": "reasoning", "text": "Hm."},
            text("Let me look."),
            tool("c", "output-available", input={"city": "Oslo"}, output={"high": 3}),
            tool("d", "output-error", input=None, rawInput='{"ci', errorText="not JSON"),
            {"type": "step-start"},
            {"type": "source-url", "sourceId": "1", "url": "https://a.test"},
            text("It is cold."),
        ],
        [
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [calling("c", '{"city":"Oslo"}'), calling("d", '{"ci')],
            },
            {"role": "tool", "tool_call_id": "c", "content": '{"high":3}'},
            {"role": "tool", "tool_call_id": "d", "content": "Error: not JSON"},
            {"role": "assistant", "content": "It is cold."},
        ],
    ),
    "a file by its address": (
        "user",
        [{"type": "file", "mediaType": "text/plain", "url": "https://a.test"}],
        [{"role": "user", "content": [{"type": "file", "file": {"filename": "file", "file_url": "https://a.test"}}]}],
    ),
    "a tool of the page's own": (
        "assistant",
        [{"type": "dynamic-tool", "toolName": "f", "toolCallId": "c", "state": "output-denied", "input": "x"}],
        [
            {"role": "assistant", "content": None, "tool_calls": [calling("c", '"x"', "f")]},
            {"role": "tool", "tool_call_id": "c", "content": "Error: the user did not allow this call."},
        ],
    ),
    "arguments and results of all kinds": (
        "assistant",
        [
            tool("a", "output-available", input=[], output="dry"),
            tool("b", "output-available", output=None),
            tool("c", "output-available", input=0, output=[1, {"x": "y"}]),
            tool("d", "output-error", input='{"ci', errorText="not JSON"),
        ],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [calling("a", "[]"), calling("b", "{}"), calling("c", "0"), calling("d", '{"ci')],
            },
            {"role": "tool", "tool_call_id": "a", "content": "dry"},
            {"role": "tool", "tool_call_id": "b", "content": "null"},
            {"role": "tool", "tool_call_id": "c", "content": '[1,{"x":"y"}]'},
            {"role": "tool", "tool_call_id": "d", "content": "Error: not JSON"},
        ],
    ),
    "what was said while a tool was at work": (
        "assistant",
        [tool("c", "output-available", output="dry"), {"type": "data-place", "data": 1}, text("A moment.")],
        [
            {"role": "assistant", "content": "A moment.", "tool_calls": [calling("c", "{}")]},
            {"role": "tool", "tool_call_id": "c", "content": "dry"},
        ],
    ),
    "an answer that was stopped in mid-call": (
        "assistant",
        [text("Let me"), tool("c", "input-streaming", input={})],
        [
            {"role": "assistant", "content": "Let me", "tool_calls": [calling("c", "{}")]},
            {"role": "tool", "tool_call_id": "c", "content": "Error: this call was broken off."},
        ],
    ),
    "calls without a result, each for its reason": (
        "assistant",
        [
            tool("a", "input-available", input={"x": 1}),
            tool("b", "approval-requested", input={}, approval={"id": "1"}),
            tool("c", "approval-responded", input={}, approval={"id": "2", "approved": True}),
            tool("d", "approval-responded", input={}, approval={"id": "3", "approved": False}),
            tool("e", "output-denied", input={}, approval={"id": "4", "approved": False, "reason": "not today"}),
        ],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [calling("a", '{"x":1}'), *(calling(name, "{}") for name in "bcde")],
            },
            *(
                {"role": "tool", "tool_call_id": name, "content": f"Error: {sentence}"}
                for name, sentence in (
                    ("a", "this call has no result."),
                    ("b", "the user has neither allowed nor refused this call."),
                    ("c", "the user allowed this call, but it has no result."),
                    ("d", "the user did not allow this call."),
                    ("e", "the user did not allow this call: not today"),
                )
            ),
        ],
    ),
    "a tool that the generator ran": (
        "assistant",
        [tool("c", "output-available", output="dry", providerExecuted=True), {"type": "step-start"}, text("Dry.")],
        [
            {"role": "assistant", "content": None, "tool_calls": [calling("c", "{}")]},
            {"role": "tool", "tool_call_id": "c", "content": "dry"},
            {"role": "assistant", "content": "Dry."},
        ],
    ),
    "what the user said in mid-answer": (
        "assistant",
        [text("a"), {"type": "steering-message", "id": "s", "parts": [text("Shorter!")]}, text("b")],
        [
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "Shorter!"},
            {"role": "assistant", "content": "b"},
        ],
    ),
    "an answer that was stopped before it began": ("assistant", [{"type": "step-start"}], []),
    "an answer without a word": ("assistant", [{"type": "step-start"}, text("")], []),
}


@pytest.mark.parametrize(("role", "parts", "expected"), CASES.values(), ids=CASES.keys())
def test_a_ui_message_becomes_chat_messages(
    role: str, parts: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    assert messages([{"id": "1", "role": role, "parts": parts}]) == expected


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "text"}, "a part of the type 'text' needs 'text', a string"),
        ({"type": "file", "mediaType": "text/plain"}, "a part of the type 'file' needs 'url', a string"),
        ({"type": "file", "url": PAPER}, "needs 'mediaType'"),
        ({"type": "dynamic-tool", "toolCallId": "c", "state": "output-available"}, "needs 'toolName'"),
        ({"type": "tool-f", "toolCallId": 7, "state": "output-available"}, "needs 'toolCallId'"),
        ({"type": "tool-f", "toolCallId": "c", "state": "output-error"}, "needs 'errorText'"),
        ({"type": "hologram"}, "a part of the type 'hologram'"),
        ({"type": "custom", "kind": "a.b"}, "a part of the type 'custom'"),
        ({"type": "reasoning-file", "mediaType": "image/png", "url": PIXEL}, "a part of the type 'reasoning-file'"),
        ({"type": "tool-f", "toolCallId": "c", "state": "new"}, "a tool call in the state 'new'"),
        ({"type": "tool-f", "toolCallId": "c"}, "a tool call in the state None"),
        ({}, "a part of the type None"),
    ],
)
def test_a_part_that_no_provider_accepts_is_refused(part: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GenerationError, match=sentence):
        messages([{"role": "assistant", "parts": [part]}])


RUN = {"type": "mcp_call", "id": "mcp_1", "server_label": "baton", "name": "weather", "arguments": '{"city":"Oslo"}'}


@pytest.mark.parametrize(("output", "told"), [("dry", "dry"), (None, "Error: this call has no result.")])
def test_responses_returns_a_generators_tool_as_a_call_and_its_result(output: str | None, told: str) -> None:
    given = {"input": [{"role": "user", "content": "Hello"}, {**RUN, "output": output}]}
    call = calling("mcp_1", '{"city":"Oslo"}')
    result = {"role": "tool", "tool_call_id": "mcp_1", "content": told}
    assert messages(given)[1:] == [{"role": "assistant", "content": None, "tool_calls": [call]}, result]
    assert for_responses(given)["input"][1:] == [
        {"type": "function_call", "call_id": "mcp_1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "mcp_1", "output": told},
    ]
    use, used = for_anthropic(given)["messages"][1:]
    assert use["content"] == [{"type": "tool_use", "id": "mcp_1", "name": "weather", "input": {"city": "Oslo"}}]
    assert used["content"] == [{"type": "tool_result", "tool_use_id": "mcp_1", "content": told}]


def test_a_call_run_by_the_providers_server_stays_unchanged() -> None:
    item = {**RUN, "server_label": "theirs"}
    assert for_responses({"input": [item]})["input"] == [item]
