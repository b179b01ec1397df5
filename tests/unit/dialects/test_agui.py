"""AG-UI's events, in the order that its client demands, and valid by the models of its Python SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.wire import (
    ENDS,
    EVENT,
    RESUMED,
    SIZES,
    STREAM_ID,
    WAITING,
    batches,
    data,
    sent,
)

from baton.dialects import agui
from baton.dialects.agui import AG_UI
from baton.dialects.agui_events import Run
from baton.dialects.agui_interrupts import Interrupt, parse_interrupt_id
from baton.dialects.protocol import Reader
from baton.outcome import Outcome

ANSWER = f"msg_{STREAM_ID.hex}"
HISTORY = [{"id": "u1", "role": "user", "content": "Hi"}]
RUN = Run("t", "r", STREAM_ID.hex, orjson.dumps(HISTORY), frozenset({"old"}))
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "{}"}
ASKS = {"type": "tool_approval", "id": "c"}
RESULT = {"type": "tool_result", "id": "c", "result": {"n": 3}}
RESET = {"type": "reset", "reason": "worker_lost"}
END = Outcome.completed("stop")
NAMES = {"threadId": "t", "runId": "r"}

Events = list[Any]


def run(events: Events, given: Run = RUN, sizes: Sequence[int] = ()) -> list[Any]:
    return data(sent(AG_UI, agui.begin(given, str(STREAM_ID)), batches(events, sizes)))


def paused(events: Events) -> list[Any]:
    """What ends a connection, if the stream then waits."""
    reader = Reader(AG_UI, agui.begin(RUN, str(STREAM_ID)), 0)
    reader.read(batches(events))
    return data(reader.pause)


def kinds(found: list[Any]) -> list[str]:
    return [event["type"] for event in found]


def shown(found: list[Any]) -> list[dict[str, Any]]:
    """The messages of a client that has `HISTORY`, as the client's reducer makes them."""
    messages: list[dict[str, Any]] = [dict(one) for one in HISTORY]
    for event in found:
        named = [one for one in messages if one["id"] == event.get("messageId")]
        if event["type"] == "MESSAGES_SNAPSHOT":
            kept = {one["id"]: one for one in event["messages"]}
            thinks = any(one["role"] == "reasoning" for one in event["messages"])
            stays = [one for one in messages if one["id"] in kept or (one["role"] == "reasoning" and not thinks)]
            messages = [dict(kept.pop(one["id"], one)) for one in stays] + [dict(one) for one in kept.values()]
        elif event["type"] in {"TEXT_MESSAGE_START", "REASONING_MESSAGE_START"} and not named:
            messages.append({"id": event["messageId"], "role": event["role"], "content": ""})
        elif event["type"] in {"TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT"}:
            named[0]["content"] += event["delta"]
        elif event["type"] == "TOOL_CALL_START" and event["parentMessageId"] not in {one["id"] for one in messages}:
            messages.append({"id": event["parentMessageId"], "role": "assistant"})
        elif event["type"] == "TOOL_CALL_RESULT":
            messages.append({"id": event["messageId"], "role": "tool", "content": event["content"]})
    return messages


def verify(found: list[Any]) -> None:
    """The client's rules: see its `verify.ts`."""
    opened: set[tuple[str, str]] = set()
    assert found[0]["type"] == "RUN_STARTED"
    for place, event in enumerate(found):
        kind, name = event["type"], event.get("toolCallId") or event.get("messageId") or ""
        thing, _, step = kind.rpartition("_")
        if step == "START":
            assert (thing, name) not in opened
            opened.add((thing, name))
        elif step in {"CONTENT", "ARGS", "END"}:
            assert (thing, name) in opened
            if step == "END":
                opened.discard((thing, name))
        elif kind in {"RUN_FINISHED", "RUN_ERROR"}:
            assert place == len(found) - 1
            assert kind == "RUN_ERROR" or not opened
            return
    raise AssertionError("The run has no end.")


def test_text_and_reasoning_are_messages() -> None:
    found = run([{"type": "reasoning", "delta": "Hm"}, "Hel", "lo", END])
    assert kinds(found) == [
        *("RUN_STARTED", "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT"),
        *("REASONING_MESSAGE_END", "REASONING_END", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT"),
        *("TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "RUN_FINISHED"),
    ]
    assert found[0] == {
        "type": "RUN_STARTED",
        **NAMES,
        "protocolVersion": "1.0",
        "metadata": {"streamId": str(STREAM_ID)},
    }
    assert shown(found)[1:] == [
        {"id": f"{ANSWER}_reasoning_1", "role": "reasoning", "content": "Hm"},
        {"id": ANSWER, "role": "assistant", "content": "Hello"},
    ]
    assert found[-1] == {"type": "RUN_FINISHED", **NAMES, "metadata": {"finishReason": "stop"}}


def test_text_after_a_result_is_the_next_message() -> None:
    found = run(["a", CALL, RESULT, "b", END])
    assert kinds(found)[4:9] == [
        *("TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT", "TEXT_MESSAGE_START")
    ]
    assert found[4]["parentMessageId"] == ANSWER
    assert (found[7]["content"], found[7]["toolCallId"]) == ('{"n":3}', "c")
    assert found[8]["messageId"] == f"{ANSWER}_2"


def test_only_a_call_of_the_client_has_no_result() -> None:
    assert "TOOL_CALL_RESULT" not in kinds(run([CALL | {"run_by": "client"}, END]))
    (result,) = [event for event in run([CALL | {"run_by": "generator"}, END]) if event["type"] == "TOOL_CALL_RESULT"]
    assert result["content"] == "Error: this call has no result."


def test_a_call_with_an_id_of_an_earlier_message_is_renamed() -> None:
    found = run([CALL | {"id": "old"}, RESULT | {"id": "old"}, END])
    assert {event["toolCallId"] for event in found if "toolCallId" in event} == {"old-2"}
    # The result of a call that was approved belongs to the earlier message.
    assert [event["toolCallId"] for event in run([RESULT | {"id": "old"}, END]) if "toolCallId" in event] == ["old"]


@pytest.mark.parametrize("restarted", [["b"], [{"type": "reasoning", "delta": "again"}, "b"]])
def test_a_restarted_answer_replaces_what_the_client_has(restarted: Events) -> None:
    found = run([{"type": "reasoning", "delta": "x"}, "a", CALL, RESULT, RESET, *restarted, END])
    verify(found)
    whole = [one for one in shown(found) if one["content"]]
    assert [one["content"] for one in whole] == ["Hi", *(["again"] if len(restarted) > 1 else []), "b"]


def test_a_reset_is_an_error_without_the_messages_before_it() -> None:
    found = run(["a", RESET, "b", END], Run("t", "r", STREAM_ID.hex))
    assert (found[-1]["type"], found[-1]["code"]) == ("RUN_ERROR", "reset")
    assert run([RESET, "b", END]) == run(["b", END])


def test_a_wait_is_an_interrupt_for_each_question() -> None:
    (end,) = paused(["a", CALL, ASKS, {**WAITING, "for": {"type": "approval", "calls": ["c"]}}])
    (interrupt,) = end["outcome"]["interrupts"]
    assert parse_interrupt_id(interrupt["id"]) == Interrupt(STREAM_ID.hex, 4, 3)
    assert (interrupt["toolCallId"], interrupt["expiresAt"]) == ("c", WAITING["until"])
    (end,) = paused([{"type": "waiting", "for": {"type": "message"}, "until": None}])
    assert end["outcome"]["interrupts"] == [
        {
            "id": f"interrupt_{STREAM_ID.hex}.1.0",
            "reason": "message",
            "metadata": {"for": {"type": "message"}},
        }
    ]


def test_a_client_that_reads_it_later_gets_one_run() -> None:
    asking: Events = ["a", CALL, ASKS]
    before = len(run(asking))
    whole = run([*asking, WAITING, RESUMED, RESULT, "b", END])
    verify(whole)
    assert kinds(whole).count("RUN_FINISHED") == 1
    begun = agui.begin(RUN, str(STREAM_ID))
    log = batches([*asking, WAITING, RESUMED, RESULT, "b", END])
    assert data(sent(AG_UI, begun, log, before - 1)) == [whole[0], *whole[before:]]


def test_an_answer_that_ends_with_a_question_is_interrupted() -> None:
    end = run([CALL, ASKS, END])[-1]
    assert end["outcome"]["interrupts"][0]["id"] == f"interrupt_{STREAM_ID.hex}.0.2"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (Outcome.cancelled(), {"type": "RUN_FINISHED", **NAMES, "outcome": {"type": "cancelled"}}),
        (Outcome.failed("boom", "No."), {"type": "RUN_ERROR", "message": "No.", "code": "boom"}),
    ],
)
def test_an_answer_without_success_says_so(end: Outcome, expected: dict[str, Any]) -> None:
    last = run(["a", CALL, end])[-1]
    assert last | expected == last


def test_usage_has_the_totals() -> None:
    used = {"type": "usage", "input_tokens": 3, "output_tokens": 4, "cached_tokens": 1}
    assert run([used, used, END])[-1]["usage"] == [
        {
            "inputTokens": 6,
            "outputTokens": 8,
            "totalTokens": 14,
            "reasoningTokens": 0,
            "cachedInputTokens": 2,
            "cacheWriteInputTokens": 0,
        }
    ]


def test_a_stream_that_cannot_be_followed_is_an_error() -> None:
    body, over = AG_UI.broken(agui.begin(RUN, "").state, "log_damaged", "Gone.")
    assert (data(body)[0]["code"], over) == ("log_damaged", "ended")


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT | st.just(WAITING) | st.just(RESET), max_size=14), ENDS, SIZES)
def test_every_answer_is_in_the_clients_order_and_valid(events: Events, end: Outcome, sizes: list[int]) -> None:
    core = pytest.importorskip("ag_ui.core")
    pydantic = pytest.importorskip("pydantic")
    found = run([*events, end], sizes=sizes)
    assert found == run([*events, end])
    verify(found)
    model = pydantic.TypeAdapter(core.Event)
    for event in found:
        known = model.validate_python(event)
        assert not getattr(known, "model_extra", None), event
    for place, event in enumerate(events):
        if event == WAITING:
            (end_of_connection,) = paused(events[: place + 1])
            verify([*run(events[: place + 1]), end_of_connection])
            model.validate_python(end_of_connection)


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT | st.just(WAITING), max_size=10), ENDS, SIZES, st.integers(0, 30))
def test_frames_do_not_depend_on_batches_or_where_a_client_begins(
    events: Events, end: Outcome, sizes: list[int], after: int
) -> None:
    whole = run([*events, end])
    begun = agui.begin(RUN, str(STREAM_ID))
    assert data(sent(AG_UI, begun, batches([*events, end], sizes), after)) == [whole[0], *whole[1 + after :]]
