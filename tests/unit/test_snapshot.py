"""Snapshots: what the events of a stream add up to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baton.events import encode_event, encode_object, encode_text
from baton.snapshot import Snapshot


def snapshot(*events: dict[str, Any] | str) -> Snapshot:
    lines = [encode_text(item) if isinstance(item, str) else encode_event(item) for item in events]
    return Snapshot.of([line.decode() for line in lines], len(lines))


def test_a_snapshot_of_no_events_is_empty() -> None:
    assert snapshot().as_dict() == {
        "last_event_id": 0,
        "text": "",
        "reasoning": "",
        "tool_calls": [],
        "tool_results": [],
    }


@given(st.lists(st.text()))
def test_text_and_reasoning_are_joined_separately(deltas: list[str]) -> None:
    events = [item for delta in deltas for item in (delta, {"type": "reasoning", "delta": delta[::-1]})]
    made = snapshot(*events)
    assert made.text == "".join(deltas)
    assert made.reasoning == "".join(delta[::-1] for delta in deltas)
    assert made.last_event_id == 2 * len(deltas)


def test_chunks_of_tool_calls_are_joined_by_index() -> None:
    made = snapshot(
        {"type": "tool_call", "index": 1, "id": "b", "name": "second", "arguments_delta": '{"x"'},
        {"type": "tool_call", "index": 0, "id": "a", "name": "first", "arguments_delta": ""},
        {"type": "tool_call", "index": 1, "id": None, "name": None, "arguments_delta": ":1}"},
        {"type": "tool_call", "index": 0, "arguments_delta": None},
        {"type": "tool_result", "id": "a", "result": [1]},
    )
    assert made.tool_calls == [
        {"id": "b", "name": "second", "arguments": '{"x":1}'},
        {"id": "a", "name": "first", "arguments": ""},
    ]
    assert made.tool_results == [{"id": "a", "result": [1]}]


def test_usages_are_summed() -> None:
    made = snapshot({"type": "usage", "total_tokens": 1}, {"type": "usage", "total_tokens": 2})
    assert made.as_dict()["usage"] == {"total_tokens": 3}


def test_a_reset_clears_everything_but_the_usage() -> None:
    before: list[dict[str, Any] | str] = [
        "old",
        {"type": "tool_call", "index": 0, "id": "a"},
        {"type": "usage", "total_tokens": 1},
    ]
    lines = [encode_text(item) if isinstance(item, str) else encode_event(item) for item in before]
    lines += [b'{"type":"reset","reason":"worker_lost"}', encode_text("new")]
    made = Snapshot.of([line.decode() for line in lines], 5)
    assert made.as_dict() == {
        "last_event_id": 5,
        "text": "new",
        "reasoning": "",
        "tool_calls": [],
        "tool_results": [],
        "usage": {"total_tokens": 1},
    }


def test_custom_events_add_nothing() -> None:
    made = snapshot("a", {"type": "custom", "name": "n", "data": 1})
    assert (made.text, made.tool_results) == ("a", [])


def test_a_repeated_index_with_another_id_is_a_new_call() -> None:
    lines = [
        '{"type":"tool_call","index":0,"id":"a","name":"f","arguments_delta":"{"}',
        '{"type":"tool_call","index":0,"arguments_delta":"}"}',
        '{"type":"tool_call","index":0,"id":"b","name":"g","arguments_delta":"[]"}',
    ]
    assert [(call["id"], call["arguments"]) for call in Snapshot.of(lines, 3).tool_calls] == [("a", "{}"), ("b", "[]")]


def test_calls_run_by_the_generator_are_not_for_the_client() -> None:
    def call(call_id: str | None, **fields: str) -> dict[str, Any]:
        return {"type": "tool_call", "index": 0, "name": "f", "id": call_id, **fields}

    events = [
        call(None),
        call("result"),
        call("approval"),
        call("own", run_by="generator"),
        call("theirs", run_by="client"),
        call("nobody"),
        {"type": "tool_result", "id": "result"},
        {"type": "tool_result", "id": "theirs"},
        {"type": "tool_approval", "id": "approval"},
    ]
    made = snapshot(*events)
    assert made.as_dict().get("tool_approvals") == [{"id": "approval"}]
    assert "tool_approvals" not in Snapshot().as_dict()
    # The first call has no id, and the second continues it with one.
    assert [found["id"] for found in made.calls_of_the_client()] == ["theirs", "nobody"]


def test_a_wait_is_shown_until_it_is_over() -> None:
    waiting = {"type": "waiting", "for": {"type": "approval"}, "until": "2027-01-01T00:00:00.000Z"}
    resumed, reset = {"type": "resumed", "run": 2, "reason": "input"}, {"type": "reset", "reason": "worker_lost"}

    def wait_of(*events: Any) -> Any:
        lines = [encode_object(event).decode() for event in events]
        return Snapshot.of(lines, len(lines)).as_dict().get("waiting")

    assert wait_of(waiting) == {"for": waiting["for"], "until": waiting["until"]}
    for over in (resumed, reset, {"type": "done", "status": "cancelled"}):
        assert wait_of(waiting, over) is None
    assert wait_of(waiting, resumed, waiting) is not None
