"""Streams that wait for people: how each dialect says so, and that the numbers of chunks hold for every client."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.wire import (
    EVENT,
    RESUMED,
    SIZES,
    STREAM_ID,
    WAITING,
    batches,
    data,
    encoded,
    sent,
    stream,
)

from baton.dialects import aisdk, text
from baton.dialects.aisdk_approval_id import Question, parse_approval_id
from baton.dialects.aisdk_data import AI_SDK_DATA
from baton.dialects.aisdk_message import Earlier
from baton.dialects.aisdk_page import parts_of
from baton.dialects.anthropic import MESSAGES
from baton.dialects.chat import CHAT
from baton.dialects.protocol import Dialect, Encoded, Reader
from baton.dialects.responses import RESPONSES, response_of
from baton.dialects.text import TEXT
from baton.outcome import Outcome

ROW = stream()
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "{}"}
ASKS = {"type": "tool_approval", "id": "c"}
RESULT = {"type": "tool_result", "id": "c", "result": 3}
WOKEN = {**RESUMED, "reason": "input"}
END = Outcome.completed("stop")
PAGE = Earlier.of({"id": "m1", "role": "assistant", "parts": [{"type": "text", "text": "before"}]})
WAITS: dict[str, Any] = {"seq": 4, "for": WAITING["for"], "until": WAITING["until"]}

Events = list[Any]


def live(events: Events, after: int = 0, earlier: Earlier | None = None) -> tuple[list[Any], list[Any]]:
    """The chunks that a client gets, and those that end its connection if the stream then waits."""
    begun = aisdk.begin(STREAM_ID, after, earlier)
    reader = Reader(aisdk.AI_SDK, begun, after)
    body = begun.body + reader.read(batches(events))
    return data(body), data(reader.pause)


def kinds(chunks: list[Any]) -> list[str]:
    return [chunk if isinstance(chunk, str) else chunk["type"] for chunk in chunks]


def test_a_connection_ends_like_a_message_that_asks() -> None:
    chunks, last = live(["a", CALL, ASKS, WAITING])
    assert kinds(chunks)[-6:] == [
        *("text-end", "tool-input-start", "tool-input-delta", "tool-input-available"),
        *("tool-approval-request", "finish-step"),
    ]
    assert chunks[-2]["approvalId"] == f"approval_{STREAM_ID.hex}.3"
    finish = {"type": "finish", "finishReason": "tool-calls", "messageMetadata": {"waiting": WAITS}}
    assert last == [finish, "[DONE]"]


def test_what_follows_is_one_message_in_which_the_wait_takes_a_single_chunk() -> None:
    asking, last = live(["a", CALL, ASKS, WAITING])
    whole, none = live(["a", CALL, ASKS, WAITING, WOKEN, RESULT, "b", END])
    assert not none
    assert whole[: len(asking)] == asking
    back, *rest = whole[len(asking) :]
    assert back == {"type": "message-metadata", "messageMetadata": {"waiting": None}}
    assert kinds(rest) == [
        *("start-step", "tool-output-available", "text-start", "text-delta", "text-end"),
        *("finish-step", "finish", "[DONE]"),
    ]
    # The page counted the `finish`: it has that number, so nothing is left out or repeated.
    assert live(["a", CALL, ASKS, WAITING, WOKEN, RESULT, "b", END], len(asking) + len(last[:1]))[0] == rest


def test_a_page_continues_the_message_that_it_has() -> None:
    assert data(aisdk.continue_after_wait(STREAM_ID)) == [
        {"type": "start", "messageId": f"msg_{STREAM_ID.hex}", "messageMetadata": {"streamId": str(STREAM_ID)}}
    ]
    assert data(aisdk.continue_after_wait(STREAM_ID, PAGE))[0]["messageId"] == "m1"


def test_a_wait_without_a_question_says_what_it_is_for() -> None:
    chunks, last = live(["a", {"type": "waiting", "for": "\u2028", "until": None}])
    assert kinds(chunks)[-1] == "finish-step"
    waits = {"seq": 2, "for": "\u2028", "until": None}
    assert last[0] == {"type": "finish", "finishReason": "other", "messageMetadata": {"waiting": waits}}
    assert "\u2028" not in Reader(aisdk.AI_SDK, aisdk.begin(STREAM_ID), 0).pause.decode()


def test_calls_that_are_open_at_a_wait_are_the_generators() -> None:
    """The page could not continue them in the next response, and must not run them."""
    chunks, _ = live([CALL, CALL | {"index": 1, "id": "d"}, ASKS, WAITING])
    inputs = [chunk for chunk in chunks if chunk["type"] == "tool-input-available"]
    assert [(chunk["toolCallId"], chunk["providerExecuted"]) for chunk in inputs] == [("c", True), ("d", True)]
    assert kinds(chunks)[-1] == "finish-step"


def test_a_call_can_be_asked_about_again_until_it_has_an_outcome() -> None:
    chunks, _ = live([CALL, ASKS, WAITING, WOKEN, ASKS, WAITING, WOKEN, RESULT, ASKS, END])
    ids = [chunk["approvalId"] for chunk in chunks if chunk != "[DONE]" and chunk["type"] == "tool-approval-request"]
    assert ids == [f"approval_{STREAM_ID.hex}.{seq}" for seq in (2, 5)]


def test_a_denied_call_has_no_output() -> None:
    chunks, _ = live([CALL, ASKS, WAITING, WOKEN, RESULT | {"denied": True}, END])
    assert {"type": "tool-output-denied", "toolCallId": "c"} in chunks
    assert "tool-output-available" not in kinds(chunks)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (Outcome.cancelled(), ["start-step", "abort", "finish"]),
        (Outcome.failed("wait_timeout", "Nobody."), ["start-step", "message-metadata", "error", "finish"]),
    ],
)
def test_a_wait_that_ends_the_stream_is_taken_back_first(end: Outcome, expected: list[str]) -> None:
    chunks, last = live([CALL, ASKS, WAITING, end])
    assert not last
    place = chunks.index({"type": "message-metadata", "messageMetadata": {"waiting": None}})
    assert kinds(chunks[place + 1 :]) == [*expected, "[DONE]"]


def test_a_reset_after_a_wait_is_an_error() -> None:
    chunks, last = live(["a", WAITING, {"type": "reset", "reason": "worker_lost"}, "b", END])
    assert not last
    assert kinds(chunks)[-4:] == ["message-metadata", "error", "finish", "[DONE]"]
    assert {"type": "message-metadata", "messageMetadata": {"waiting": None}} in chunks


@settings(max_examples=100)
@given(st.lists(EVENT | st.just(WAITING), max_size=12), SIZES, st.integers(0, 40))
def test_chunks_do_not_depend_on_batches_or_where_a_client_begins(events: Events, sizes: list[int], after: int) -> None:
    events = [*events, END]
    whole = live(events)[0][:-1]
    begun = aisdk.begin(STREAM_ID, after)
    if after < len(whole):
        body = sent(aisdk.AI_SDK, begun, batches(events, sizes), after)
        assert data(body) == [*whole[after:], "[DONE]"]


@settings(max_examples=100)
@given(st.lists(EVENT | st.just(WAITING), max_size=12))
def test_each_wait_ends_with_all_that_was_sent_and_one_finish(events: Events) -> None:
    """A client that was there counts the `finish`; the chunk in its place later is the one that takes it back."""
    whole = live([*events, END])[0]
    for place, event in enumerate(events):
        if event == WAITING:
            chunks, last = live(events[: place + 1])
            assert kinds(last) == ["finish", "[DONE]"]
            assert whole[: len(chunks)] == chunks
            assert whole[len(chunks)] == {"type": "message-metadata", "messageMetadata": {"waiting": None}}


def test_the_parts_of_a_message_do_not_show_a_wait_except_by_a_step() -> None:
    answered = parts_of(STREAM_ID, batches([CALL, ASKS, WAITING, WOKEN, RESULT, "b", END]), None)
    assert [part["type"] for part in answered] == ["step-start", "tool-f", "step-start", "text"]
    assert (answered[1]["state"], answered[1]["output"]) == ("output-available", 3)


def test_an_approval_names_a_question_or_in_older_messages_a_call() -> None:
    name = f"approval_{STREAM_ID.hex}"
    assert parse_approval_id(f"{name}.12") == Question(STREAM_ID, 12, None)
    assert parse_approval_id(f"{name}_c_1.2\n") == Question(STREAM_ID, None, "c_1.2\n")
    for wrong in (f"{name}.0", f"{name}.1x", f"{name}.", name, f"{name}.\u0661"):
        assert parse_approval_id(wrong) is None


# --- the other dialects: their connections stay


def test_dialects_that_stay_connected_continue_as_if_there_had_been_no_wait() -> None:
    waiting: Events = ["a", CALL, ASKS, WAITING, WOKEN, RESULT, "b", END]
    straight: Events = ["a", CALL, ASKS, RESULT, "b", END]
    stays: list[tuple[Dialect[Any], Encoded[Any]]] = [
        (CHAT, CHAT.begin(ROW, {})),
        (MESSAGES, MESSAGES.begin(ROW, "whole")),
        *((dialect, dialect.begin(STREAM_ID.hex)) for dialect in AI_SDK_DATA.values()),
        (TEXT, text.START),
    ]
    for dialect, begun in stays:
        reader: Reader[Any] = Reader(dialect, begun, 0)
        reader.read(batches(waiting[:4]))
        assert (reader.over, reader.pause) == (None, b"")
        assert sent(dialect, begun, batches(waiting)) == sent(dialect, begun, batches(straight))


def test_a_response_and_its_call_are_in_progress_during_a_wait() -> None:
    log = [encoded(event).decode() for event in ("a", CALL, ASKS, WAITING)]
    response = response_of(ROW, {}, log)
    assert response["status"] == "in_progress"
    assert [(item["type"], item["status"]) for item in response["output"]] == [
        ("message", "completed"),
        ("mcp_call", "in_progress"),
    ]
    log += [encoded(event).decode() for event in (WOKEN, RESULT, END)]
    done = response_of(ROW, {}, log)
    (call,) = [item for item in done["output"] if item["type"] == "mcp_call"]
    assert (call["status"], call["name"], call["arguments"], call["output"]) == ("completed", "f", "{}", "3")


@pytest.mark.parametrize("named", [{}, {"run_by": "generator"}])
def test_a_call_that_nobody_allowed_is_incomplete(named: dict[str, str]) -> None:
    log = [encoded(event).decode() for event in (CALL | named, ASKS, "a", END)]
    (call,) = [item for item in response_of(ROW, {}, log)["output"] if item["type"] == "mcp_call"]
    assert (call["status"], call["output"]) == ("incomplete", None)


def test_responses_continue_as_if_there_had_been_no_wait() -> None:
    waiting: Events = ["a", CALL, ASKS, WAITING, WOKEN, RESULT, "b", END]
    straight = [event for event in waiting if event not in (WAITING, WOKEN)]
    begun = RESPONSES.begin(ROW, {})
    assert sent(RESPONSES, begun, batches(waiting)) == sent(RESPONSES, begun, batches(straight))
    assert orjson.loads(encoded(WAITING)) == WAITING
