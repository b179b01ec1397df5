"""What `useChat` sends, as a chat in OpenAI's form."""

from __future__ import annotations

from typing import Any

import pytest

from baton.api.ui_messages import UIMessage, chat_messages
from baton.errors import InvalidRequest

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
    "a tool of the page's own": (
        "assistant",
        [{"type": "dynamic-tool", "toolName": "f", "toolCallId": "c", "state": "output-denied", "input": "x"}],
        [
            {"role": "assistant", "content": None, "tool_calls": [calling("c", '"x"', "f")]},
            {"role": "tool", "tool_call_id": "c", "content": "Error: the user did not allow this call."},
        ],
    ),
    "an answer that was stopped in mid-call": (
        "assistant",
        [text("Let me"), tool("c", "input-streaming", input={})],
        [{"role": "assistant", "content": "Let me"}],
    ),
    "an answer that was stopped before it began": ("assistant", [{"type": "step-start"}], []),
}


@pytest.mark.parametrize(("role", "parts", "expected"), CASES.values(), ids=CASES.keys())
def test_a_ui_message_becomes_messages_of_a_chat(
    role: str, parts: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    assert chat_messages([UIMessage.model_validate({"role": role, "parts": parts})]) == expected


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "text"}, "messages.0: a part lacks 'text'"),
        ({"type": "file", "mediaType": "text/plain", "url": "https://a.test"}, "as a data: URL"),
    ],
)
def test_a_part_that_cannot_be_sent_on_is_refused(part: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        chat_messages([UIMessage.model_validate({"role": "user", "parts": [part]})])
