"""Chat messages as messages of an AI SDK's page: converted back, they are the same."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import GenerationError
from baton.generators.conversation import for_aisdk, messages

PIXEL = "data:image/png;base64,AA=="
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}

CASES: dict[str, list[dict[str, Any]]] = {
    "texts": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ],
    "files": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
                {"type": "image_url", "image_url": {"url": "https://a.test/b"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
            ],
        }
    ],
    "calls": [
        {"role": "assistant", "content": "One moment.", "tool_calls": [CALL, CALL | {"id": "d"}]},
        {"role": "tool", "tool_call_id": "c", "content": '{"high":3}'},
        {"role": "tool", "tool_call_id": "d", "content": "{not JSON"},
        {"role": "assistant", "content": "It is cold."},
        {"role": "user", "content": "Thanks"},
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_messages_survive_the_way_to_a_page_and_back(name: str) -> None:
    assert messages(for_aisdk(CASES[name])) == CASES[name]


def test_steps_become_one_message() -> None:
    (answer, _) = for_aisdk(CASES["calls"])
    named = {"type": "tool-weather", "state": "output-available", "input": {"city": "Oslo"}}
    assert answer == {
        "role": "assistant",
        "parts": [
            {"type": "step-start"},
            {"type": "text", "text": "One moment.", "state": "done"},
            named | {"toolCallId": "c", "output": {"high": 3}},
            named | {"toolCallId": "d", "output": "{not JSON"},
            {"type": "step-start"},
            {"type": "text", "text": "It is cold.", "state": "done"},
        ],
    }


def test_a_call_without_a_result_waits_for_one() -> None:
    (answer,) = for_aisdk([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert answer["parts"][1]["state"] == "input-available"
    # A result without its call has no place.
    assert for_aisdk([{"role": "tool", "tool_call_id": "c", "content": "3"}]) == []


@pytest.mark.parametrize(
    "content",
    [[{"type": "file", "file": {"file_id": "x"}}], [{"type": "image_url"}], [{"type": "file", "file": 3}], ["x"]],
)
def test_what_a_page_cannot_show_is_refused(content: Any) -> None:
    with pytest.raises(GenerationError):
        for_aisdk([{"role": "user", "content": content}])
