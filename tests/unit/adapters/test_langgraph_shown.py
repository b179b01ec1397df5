"""What a generator has shown, compared with the log."""

from __future__ import annotations

from typing import Any

import pytest

from baton.adapters.langgraph_shown import Shown
from baton.generators import SoFar

CALL = {"type": "tool_call", "index": 0, "id": "a", "name": "search", "arguments_delta": "{"}
EVENTS: list[Any] = [
    {"type": "reasoning", "delta": "Hm"},
    {"type": "reasoning", "delta": "m."},
    "I ",
    "search.",
    CALL,
    {"type": "tool_call", "index": 0, "arguments_delta": "}"},
    {"type": "usage", "input_tokens": 1},
    {"type": "custom", "name": "found", "data": 1},
    {"type": "tool_result", "id": "a", "result": 1},
    "Done.",
]
SO_FAR: dict[str, Any] = {
    "text": "I search.Done.",
    "reasoning": "Hmm.",
    "tool_calls": [{"id": "a", "name": "search", "arguments": "{}"}],
    "tool_results": [{"id": "a", "result": 1}],
    "custom": [{"name": "found", "data": 1}],
}


def shown(events: list[Any] = EVENTS) -> Shown:
    found = Shown()
    for event in events:
        assert found.add(event) is event
    return found


def test_deltas_are_joined_and_the_order_is_kept() -> None:
    assert shown().events == [
        {"type": "reasoning", "delta": "Hmm."},
        {"type": "text", "delta": "I search."},
        CALL | {"arguments_delta": "{}"},
        {"type": "custom", "name": "found", "data": 1},
        {"type": "tool_result", "id": "a", "result": 1},
        {"type": "text", "delta": "Done."},
    ]


def test_what_was_saved_can_be_added_to() -> None:
    first, events = shown(EVENTS[:5]), EVENTS[5:]
    again = Shown(first.events)
    for event in events:
        again.add(event)
    assert again.events == shown().events
    assert again.events == again.events


def test_a_later_delta_does_not_change_what_was_saved() -> None:
    found = shown(EVENTS[:1])
    saved = [dict(event) for event in found.events]
    found.add(EVENTS[1])
    assert saved == [EVENTS[0]]


def test_the_log_has_exactly_what_was_shown() -> None:
    assert shown().is_all_of(SoFar(**SO_FAR))


@pytest.mark.parametrize(
    "more",
    [
        {"text": "I search.Done. And"},
        {"reasoning": "Hmm. But"},
        {"tool_calls": [{"id": "a", "name": "search", "arguments": "{}}"}]},
        {"tool_calls": [*SO_FAR["tool_calls"], {"id": "b", "name": "search", "arguments": ""}]},
        {"tool_results": [*SO_FAR["tool_results"], {"id": "b", "result": 2}]},
        {"custom": [*SO_FAR["custom"], {"name": "found", "data": 2}]},
    ],
)
def test_the_log_has_more(more: dict[str, Any]) -> None:
    assert not shown().is_all_of(SoFar(**SO_FAR | more))


def test_calls_without_a_result_are_open() -> None:
    assert shown(EVENTS[:6]).open_calls == {"a": ("search", "{}")}
    assert shown().open_calls == {}
