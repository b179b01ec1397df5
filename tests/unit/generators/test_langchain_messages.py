"""LangChain's messages, as LangGraph's clients send them, become requests to any provider."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import GenerationError
from baton.generators.conversation import for_anthropic, for_chat, for_responses, messages

CONVERSATION: list[dict[str, Any]] = [
    {"type": "system", "content": "Be brief.", "id": "0"},
    {
        "type": "human",
        "id": "1",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image", "mime_type": "image/png", "data": "AAAA", "source_type": "base64"},
            {"type": "file", "mime_type": "application/pdf", "base64": "BBBB", "filename": "a.pdf"},
        ],
    },
    {
        "type": "ai",
        "content": [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "c", "name": "f", "input": {}}],
        "tool_calls": [{"name": "f", "args": {"a": 1}, "id": "c", "type": "tool_call"}],
        "additional_kwargs": {"reasoning_content": "hm"},
    },
    {"type": "tool", "tool_call_id": "c", "content": "3", "status": "error"},
    {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain_core", "messages", "HumanMessage"],
        "kwargs": {"content": "Go on."},
    },
]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"}},
        ],
    },
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "Error: 3"},
    {"role": "user", "content": "Go on."},
]


def test_they_become_chat_messages() -> None:
    assert messages({"messages": CONVERSATION}) == CHAT


@pytest.mark.parametrize("convert", [for_chat, for_responses, for_anthropic])
def test_each_provider_gets_what_it_gets_from_chat_messages(convert: Any) -> None:
    assert convert({"messages": CONVERSATION}) == convert({"messages": CHAT})


def test_roles_may_be_written_as_types() -> None:
    given = [{"role": "human", "content": "a"}, {"role": "ai", "content": "b"}, {"role": "user", "content": "c"}]
    assert [(one["role"], one["content"]) for one in messages(given)] == [
        *[("user", "a"), ("assistant", "b"), ("user", "c")]
    ]


@pytest.mark.parametrize("message", [{"type": "remove", "id": "1"}, {"type": "human", "content": [{"type": "image"}]}])
def test_what_no_api_accepts_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(GenerationError):
        messages([message])
