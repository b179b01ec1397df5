"""Which tool call each index stands for."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import InvalidEvent
from baton.worker.tool_calls import ToolCalls


def call(index: int, **named: Any) -> dict[str, Any]:
    return {"type": "tool_call", "index": index, **named}


def test_a_new_id_begins_a_call_and_a_repeated_one_does_not() -> None:
    calls = ToolCalls()
    first, other = call(0, id="a", name="f"), call(0, id="b", name="f")
    assert calls.begins(first)
    calls.note(first)
    assert not calls.begins(first)
    assert not calls.begins(call(0))
    assert calls.begins(other)
    calls.note(other)
    assert calls.indexes_of("b") == [0]
    assert calls.indexes_of("a") == []
    assert 0 in calls
    assert 1 not in calls


@pytest.mark.parametrize(("event", "missing"), [(call(1), "'id' and 'name'"), (call(1, id="a"), "'name'")])
def test_a_call_must_begin_with_its_id_and_its_name(event: dict[str, Any], missing: str) -> None:
    with pytest.raises(InvalidEvent, match=f"index 1 lacks {missing}"):
        ToolCalls().note(event)


def test_later_events_of_a_call_need_neither() -> None:
    calls = ToolCalls()
    calls.note(call(0, id="a", name="f"))
    calls.note(call(0))
    calls.note(call(0, id="a"))
