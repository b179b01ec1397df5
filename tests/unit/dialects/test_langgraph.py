"""The dialect of LangGraph: which frames events become, however they were batched and wherever a client begins."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.wire import ANSWERS, SIZES, STREAM_ID, WAITING, batches, frames, sent

from baton.dialects.langgraph import MODES, LangGraph, LangGraphResult, Mode, Run
from baton.dialects.langgraph_interrupts import UnfitAnswer, inputs_of, interrupts_of
from baton.dialects.protocol import Reader
from baton.outcome import Outcome

EARLIER = [{"type": "human", "content": "hi", "id": "h"}]
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "add", "arguments_delta": '{"a":'}
REST = {"type": "tool_call", "index": 0, "arguments_delta": "1}"}
RESULT = {"type": "tool_result", "id": "c", "result": 2}
RESET = {"type": "reset", "reason": "worker_lost"}
USAGE = {"type": "usage", "input_tokens": 3, "output_tokens": 4}
END = Outcome.completed("stop")
NAME = f"msg_{STREAM_ID.hex}"

Found = list[tuple[str, Any]]


def dialect(*modes: Mode, wait: int = 0) -> LangGraph:
    return LangGraph(Run(STREAM_ID, "t", "agent", wait), modes or MODES)


def read(events: list[Any], *modes: Mode, wait: int = 0) -> Found:
    """The events of a run, and their data."""
    chosen = dialect(*modes, wait=wait)
    body = sent(chosen, chosen.begin(EARLIER), batches(events))
    fields = [dict(line.split(": ", 1) for line in block.decode().split("\n")) for block in frames(body)]
    return [(found["event"], orjson.loads(found["data"])) for found in fields]


def kinds(found: Found) -> list[str]:
    return [event for event, _ in found]


def said(values: Any) -> list[tuple[str, str]]:
    return [(message["type"], message["content"]) for message in values["messages"]]


# As the server of langgraph-api 0.16.7 sends them for a graph with a model and a tool, but for `end`.
TURN = ["messages", "messages", "updates", "values"]
RECORDED: dict[str, tuple[list[Any], list[str]]] = {
    "a text": (
        ["Hel", "lo ", USAGE, END],
        ["metadata", "values", "messages", "messages", "messages", "messages", "updates", "values"],
    ),
    "a tool": (
        ["Let ", "me see.", CALL, REST, RESULT, "Hello", END],
        ["metadata", "values", *(["messages"] * 5), "updates", "messages", "updates", "values", *TURN],
    ),
    "what a node writes": ([{"type": "custom", "name": "langgraph", "data": 1}, END], ["metadata", "values", "custom"]),
    "a question": ([{"type": "waiting", "for": 1, "until": None}], ["metadata", "values", "updates", "values"]),
    "an error": ([Outcome.failed("broken", "It broke.")], ["metadata", "values", "error"]),
}


@pytest.mark.parametrize("case", RECORDED)
def test_the_events_are_those_of_the_server(case: str) -> None:
    events, wanted = RECORDED[case]
    found = kinds(read(events))
    assert found[-1] in {"end", "error"}
    assert [event for event in found if event != "end"][: len(wanted)] == wanted


def test_chunks_add_up_to_the_message_in_the_values() -> None:
    found = read(["Let ", "me see.", {"type": "reasoning", "delta": "hm"}, CALL, REST, USAGE, RESULT, "2.", END])
    chunks = [data[0] for event, data in found if event == "messages"]
    own = [chunk for chunk in chunks if chunk["id"] == NAME]
    assert "".join(chunk["content"] for chunk in own) == "Let me see."
    parts = [part for chunk in own for part in chunk["tool_call_chunks"]]
    assert [part["index"] for part in parts] == [0, 0]
    assert (parts[0]["name"], parts[0]["id"]) == ("add", "c")
    assert "".join(part["args"] for part in parts) == '{"a":1}'
    assert own[-1]["chunk_position"] == "last"
    values = found[-2][1]["messages"]
    assert said(found[-2][1]) == [("human", "hi"), ("ai", "Let me see."), ("tool", "2"), ("ai", "2.")]
    assert [message["id"] for message in values] == ["h", NAME, f"{NAME}_1", f"{NAME}_2"]
    assert values[1]["tool_calls"] == [{"name": "add", "args": {"a": 1}, "id": "c", "type": "tool_call"}]
    assert values[1]["additional_kwargs"] == {"reasoning_content": "hm"}
    assert values[1]["usage_metadata"] == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert (values[2]["tool_call_id"], values[2]["name"]) == ("c", "add")
    assert values[3]["response_metadata"] == {"finish_reason": "stop"}


def test_arguments_that_are_no_object_are_invalid() -> None:
    message = read([CALL, END])[-2][1]["messages"][-1]
    assert message["tool_calls"] == []
    assert message["invalid_tool_calls"][0]["args"] == '{"a":'


def test_a_reset_removes_the_messages_and_begins_another_attempt() -> None:
    found = read(["Let me", CALL, REST, RESULT, "an", RESET, "again", END])
    at = kinds(found).index("metadata", 1)
    assert found[at][1]["attempt"] == 2
    removed = [data[0]["id"] for _, data in found[:at] if isinstance(data, list) and data[0]["type"] == "remove"]
    assert removed == [NAME, f"{NAME}_1", f"{NAME}_2"]
    assert said(found[at + 1][1]) == [("human", "hi")]
    # Clients join chunks by the id of their message.
    later = {data[0]["id"] for event, data in found[at:] if event == "messages"}
    assert later.isdisjoint(removed)
    assert said(found[-2][1]) == [("human", "hi"), ("ai", "again")]


def test_a_wait_ends_a_run_and_the_next_one_begins_there() -> None:
    events = ["Well.", {"type": "waiting", "for": {"question": "really?"}, "until": None}, "Yes.", END]
    first = read(events)
    assert kinds(first)[-4:] == ["updates", "updates", "values", "end"]
    assert first[-2][1]["__interrupt__"] == [{"id": f"{STREAM_ID.hex}.2", "value": {"question": "really?"}}]
    second = read(events, wait=2)
    assert kinds(second) == ["metadata", "values", "messages", "messages", "updates", "values", "end"]
    assert second[0][1]["run_id"] == f"{STREAM_ID}_2"
    assert "__interrupt__" not in second[1][1]
    assert said(second[-2][1]) == [("human", "hi"), ("ai", "Well."), ("ai", "Yes.")]


@pytest.mark.parametrize("end", [Outcome.failed("broken", "It broke."), Outcome.cancelled()])
def test_an_incomplete_answer_ends_with_an_error(end: Outcome) -> None:
    event, data = read(["a", end])[-1]
    assert event == "error"
    assert data["error"] in {"broken", "cancelled"}
    assert data["message"]


@given(ANSWERS, SIZES, st.sets(st.sampled_from(MODES)), st.data())
def test_numbers_hold_in_all_modes_however_events_are_batched(
    events: list[Any], sizes: list[int], modes: set[Mode], draw: st.DataObject
) -> None:
    every = dialect()
    whole = frames(sent(every, every.begin(EARLIER), batches(events)))
    assert [int(frame.split(b"\n")[0].removeprefix(b"id: ")) for frame in whole] == [*range(1, len(whole) + 1)]
    after = draw.draw(st.integers(0, len(whole)))
    names = {"values": {b"values"}, "messages-tuple": {b"messages"}, "updates": {b"updates"}, "custom": {b"custom"}}
    shown = {b"metadata", b"end", b"error"}.union(*(names[mode] for mode in modes))
    some = dialect(*sorted(modes)) if modes else LangGraph(Run(STREAM_ID, "t", "agent"), ())
    body = sent(some, some.begin(EARLIER, after), batches(events, sizes), after)
    wanted = [frame for frame in whole[after:] if frame.split(b"\n")[1].removeprefix(b"event: ") in shown]
    assert frames(body) == wanted
    assert b"\xe2\x80\xa8" not in body


@given(ANSWERS, SIZES)
def test_who_waits_gets_the_last_values_or_the_error(events: list[Any], sizes: list[int]) -> None:
    last = read(events)[-1]
    values = next(data for event, data in reversed(read(events)) if event == "values")
    result = LangGraphResult(Run(STREAM_ID, "t", "agent"))
    body = sent(result, result.begin(EARLIER), batches(events, sizes))
    assert orjson.loads(body) == (values if last[0] == "end" else {"__error__": last[1]})


def test_who_waits_gets_nothing_before_the_end_and_the_error_of_a_broken_log() -> None:
    result = LangGraphResult(Run(STREAM_ID, "t", "agent"))
    reader = Reader(result, result.begin(EARLIER), 0)
    assert reader.read(batches(["a", "b"])) == b""
    assert reader.over is None
    assert b"log_damaged" in result.broken(reader.state, "log_damaged", "It is damaged.")[0]
    assert not result.reconnects


def test_encodings_are_shared_only_by_clients_that_may_see_the_same() -> None:
    """The state has what precedes the answer, of which the holder of a stream's token may see less."""
    runs = [Run(STREAM_ID, "t", "agent", wait, alone) for wait in (0, 2) for alone in (False, True)]
    frames_of = [LangGraph(run, modes).name for run in runs for modes in (MODES, ("values",), ())]
    results = [LangGraphResult(run, quiet=quiet).name for run in runs for quiet in (False, True)]
    assert len({*frames_of, *results}) == len(frames_of) + len(results)
    # A label of metrics.
    assert {name.partition(":")[0] for name in (*frames_of, *results)} == {"langgraph", "langgraph.result"}


def test_a_question_about_calls_has_the_form_of_langchain() -> None:
    (asked,) = interrupts_of(WAITING["for"], STREAM_ID, 7, {"c0": ("add", '{"a":1}')})
    assert asked["value"] == {
        "action_requests": [{"name": "add", "args": {"a": 1}}],
        "review_configs": [{"action_name": "add", "allowed_decisions": ["approve", "reject"]}],
    }
    (approved,) = inputs_of(WAITING["for"], asked["id"], {"decisions": [{"type": "approve"}]})
    assert approved == {"type": "approval", "call_id": "c0", "approved": True, "reason": None}
    unfit: list[Any] = [None, "yes", {"decisions": []}, {"decisions": [{"type": "edit"}]}]
    for answer in unfit:
        with pytest.raises(UnfitAnswer):
            inputs_of(WAITING["for"], asked["id"], answer)


def test_any_other_question_takes_any_answer() -> None:
    graph = {"type": "interrupt", "id": "i", "value": {"q": 1}}
    assert interrupts_of(graph, STREAM_ID, 7, {}) == [{"id": "i", "value": {"q": 1}}]
    assert inputs_of(graph, "i", {"i": "yes"}) == inputs_of(graph, "i", "yes") == ["yes"]
    with pytest.raises(UnfitAnswer):
        inputs_of(graph, "i", None)
