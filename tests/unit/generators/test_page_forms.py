"""Messages of AG-UI, and of pages with AI SDK 3 and 4, in requests to models."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import GenerationError
from baton.generators.conversation import for_agui, for_anthropic, for_chat, for_responses, messages

FUNCTION = {"name": "f", "arguments": '{"n":1}'}
CALL = {"id": "c", "type": "function", "function": FUNCTION}
AG_UI: list[dict[str, Any]] = [
    {"id": "1", "role": "developer", "content": "Be brief."},
    {
        "id": "2",
        "role": "user",
        "content": [
            {"type": "text", "text": "See", "id": "p"},
            {"type": "image", "source": {"type": "data", "value": "AA==", "mimeType": "image/png"}},
        ],
    },
    {"id": "3", "role": "reasoning", "content": "Hm."},
    {"id": "4", "role": "assistant", "toolCalls": [CALL | {"encryptedValue": "x"}]},
    {"id": "5", "role": "tool", "toolCallId": "c", "content": "half", "error": "Late."},
    {"id": "6", "role": "activity", "activityType": "plan", "content": {}},
    {"id": "7", "role": "assistant", "content": "Done."},
]
CHAT: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "See"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "Error: Late.\nhalf"},
    {"role": "assistant", "content": "Done."},
]


def test_messages_of_ag_ui_are_chat_messages() -> None:
    assert messages({"messages": AG_UI, "state": {"n": 1}, "forwardedProps": {"x": 1}}) == CHAT


def test_chat_messages_are_those_of_ag_ui() -> None:
    again = for_agui([(str(number), message) for number, message in enumerate(CHAT)])
    assert messages(again) == CHAT
    assert again[1]["content"][1]["source"] == {"type": "data", "value": "AA==", "mimeType": "image/png"}


@pytest.mark.parametrize("form", [for_chat, for_responses, for_anthropic])
def test_each_model_gets_the_tools_and_the_context(form: Any) -> None:
    tools = [{"name": "f", "description": "d", "parameters": {"type": "object"}}, {"name": "g", "description": "e"}]
    context = [{"description": "City", "value": "Oslo"}]
    given = {"messages": AG_UI, "tools": tools, "context": context, "state": {}, "forwardedProps": {}}
    body = form(given)
    assert not {"context", "state", "forwardedProps"} & body.keys()
    assert "City:\nOslo" in str(body).replace("\\n", "\n")
    names = [tool.get("name") or tool["function"]["name"] for tool in body["tools"]]
    assert names == ["f", "g"]
    for name in ("state", "forwardedProps"):
        with pytest.raises(GenerationError, match=name):
            form(given | {name: {"n": 1}})


def test_the_parts_of_a_page_with_ai_sdk_4() -> None:
    invocation = {"toolCallId": "c", "toolName": "f", "args": {"n": 1}}
    given = [
        {
            "role": "user",
            "content": "See",
            "parts": [{"type": "text", "text": "See"}],
            "experimental_attachments": [
                {"name": "a.png", "contentType": "image/png", "url": "data:image/png;base64,AA=="}
            ],
        },
        {
            "role": "assistant",
            "content": "Well. Done.",
            "parts": [
                {"type": "step-start"},
                {"type": "reasoning", "reasoning": "Hm.", "details": []},
                {"type": "text", "text": "Well."},
                {"type": "tool-invocation", "toolInvocation": invocation | {"state": "result", "result": {"n": 2}}},
                {"type": "source", "source": {"url": "https://example.com"}},
                {"type": "step-start"},
                {"type": "text", "text": "Done."},
            ],
        },
    ]
    assert messages(given) == [
        CHAT[1],
        {"role": "assistant", "content": "Well.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": '{"n":2}'},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.mark.parametrize(("state", "result"), [("result", "3"), ("call", "Error: this call has no result.")])
def test_the_tools_of_a_page_with_ai_sdk_3(state: str, result: str) -> None:
    invocation = {"state": state, "toolCallId": "c", "toolName": "f", "args": {"n": 1}, "result": 3}
    given = [{"role": "assistant", "content": "", "toolInvocations": [invocation]}]
    assert messages(given) == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": result},
    ]
