"""The dialect of Anthropic's Messages API, and what its official SDK makes of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.support.wire import ANSWERS, EVENT, SIZES, STREAM_ID, batches, data, encoded, frames, sent, stream

from baton.dialects import anthropic
from baton.dialects.anthropic import MESSAGES, Thinking, message_of, thinking_of
from baton.dialects.protocol import Reader
from baton.outcome import Outcome

ROW = stream(status="completed", finish_reason="stop")
STOP = Outcome.completed("stop", usage={"input_tokens": 30, "output_tokens": 4, "cached_tokens": 9})
RESET = {"type": "reset", "reason": "worker_lost"}
RAW: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": '{"a":', "run_by": "client"}
REST = {"type": "tool_call", "index": 0, "arguments_delta": "1}"}
HELD = {name: value for name, value in CALL.items() if name != "run_by"}
SIGNED = {"type": "reasoning", "delta": "", "signature": "c2ln"}
REDACTED = {"type": "reasoning", "delta": "", "redacted": "eA=="}
COMPLETED = st.lists(EVENT | st.sampled_from([CALL, REST, SIGNED, REDACTED]), max_size=12)


def thought(delta: str) -> dict[str, Any]:
    return {"type": "reasoning", "delta": delta}


def told(*events: Any, thinking: Thinking = "whole") -> list[Any]:
    return data(sent(MESSAGES, MESSAGES.begin(ROW, thinking), batches(events)))


def whole(*events: Any, thinking: Thinking = "whole") -> Any:
    return message_of(ROW, [encoded(event).decode() for event in events], thinking)


def accumulated(found: list[Any]) -> Any:
    """The message that the official SDK makes of the events."""
    snapshot, buffers = None, dict[int, bytes]()
    for event in found:
        snapshot = accumulate_event(event=RAW.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    return snapshot


def shown(found: list[Any]) -> list[tuple[Any, ...]]:
    """The events between the first and the last two, in short."""
    short: list[tuple[Any, ...]] = []
    for event in found[1:-2]:
        match event["type"].removeprefix("content_block_"):
            case "start":
                short.append(("start", event["index"], event["content_block"]["type"]))
            case "delta":
                (text,) = (value for name, value in event["delta"].items() if name != "type")
                short.append((event["index"], text))
            case "stop":
                short.append(("stop", event["index"]))
    return short


def test_an_answer_is_blocks_between_the_beginning_and_the_end_of_a_message() -> None:
    found = told(thought("h"), thought("m"), "Hel", "lo", STOP)
    assert found[0] == {
        "type": "message_start",
        "message": {
            "id": f"msg_{STREAM_ID.hex}",
            "type": "message",
            "role": "assistant",
            "model": "g",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 0,
                "output_tokens": 0,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        },
    }
    assert shown(found) == [
        ("start", 0, "thinking"),
        (0, "h"),
        (0, "m"),
        ("stop", 0),
        ("start", 1, "text"),
        (1, "Hel"),
        (1, "lo"),
        ("stop", 1),
    ]
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-1] == {"type": "message_stop"}


def test_each_frame_names_its_type() -> None:
    body = sent(MESSAGES, MESSAGES.begin(ROW, "none"), batches(["a", STOP]))
    for block in frames(body):
        name, content = block.split(b"\n")
        assert name.removeprefix(b"event: ").decode() == orjson.loads(content.removeprefix(b"data: "))["type"]
    assert frames(MESSAGES.comment) == [b'event: ping\ndata: {"type":"ping"}']


def test_the_input_tokens_leave_out_those_of_the_cache() -> None:
    counts = {"input_tokens": 100, "output_tokens": 5, "cached_tokens": 60, "cache_write_tokens": 30}
    expected = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
    }
    assert told("a", Outcome.completed("stop", usage=counts))[-2]["usage"] == expected
    # Ends that the release before wrote without a worker have none.
    assert told("a", {"type": "usage", **counts}, Outcome.completed("stop"))[-2]["usage"] == expected


@pytest.mark.parametrize(
    ("said", "calls", "reason"),
    [
        ("stop", False, "end_turn"),
        ("stop", True, "tool_use"),
        ("tool_calls", True, "tool_use"),
        ("tool_calls", False, "end_turn"),
        ("length", True, "max_tokens"),
        ("content_filter", False, "refusal"),
        ("something_new", False, "end_turn"),
    ],
)
def test_the_reason_to_stop_agrees_with_the_calls(said: str, calls: bool, reason: str) -> None:
    events = [*([CALL, REST] if calls else ["a"]), Outcome.completed(said)]
    assert told(*events)[-2]["delta"]["stop_reason"] == reason
    assert whole(*events)["stop_reason"] == reason


@pytest.mark.parametrize(
    ("end", "code", "kind"),
    [
        (Outcome.failed("idle_timeout", "Silent."), "idle_timeout", "api_error"),
        (Outcome.failed("provider_rate_limited", "Later."), "provider_rate_limited", "rate_limit_error"),
        (Outcome.failed("invalid_input", "No."), "invalid_input", "invalid_request_error"),
        (Outcome.failed("log_rewound", "Lost."), "log_rewound", "api_error"),
        (Outcome.cancelled(), "cancelled", "invalid_request_error"),
        (RESET, "reset", "api_error"),
    ],
)
def test_an_incomplete_end_is_an_error_and_a_cut(end: Any, code: str, kind: str) -> None:
    found = told("a", end)
    assert found[-1]["type"] == "error"
    assert (found[-1]["error"]["type"], found[-1]["error"]["details"]["error_code"]) == (kind, code)
    assert "message_stop" not in {event["type"] for event in found}
    reader = Reader(MESSAGES, MESSAGES.begin(ROW, "none"), 0)
    reader.read(batches(["a", end]))
    assert reader.over == "cut"


def test_a_broken_relay_is_an_error_and_a_cut() -> None:
    last, over = MESSAGES.broken(MESSAGES.begin(ROW, "none").state, "log_damaged", "Events are missing.")
    assert (data(last)[0]["error"]["message"], over) == ("Events are missing.", "cut")


def test_a_reset_before_any_content_is_ignored() -> None:
    found = told(HELD, thought("not shown"), RESET, "b", STOP, thinking="none")
    assert shown(found) == [("start", 0, "text"), (0, "b"), ("stop", 0)]
    assert [block["text"] for block in whole("a", CALL, RESET, "b", STOP)["content"]] == ["b"]


# --- thinking


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "none"),
        ({"thinking": None}, "none"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "whole"),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, "whole"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "omitted"),
        ({"thinking": "x"}, "none"),
    ],
)
def test_a_request_says_how_much_of_the_thinking_it_gets(asked: Any, expected: Thinking) -> None:
    assert thinking_of(asked) == expected


def test_thinking_is_signed_only_by_its_generator() -> None:
    blocks = whole(thought("a"), SIGNED, thought("b"), REDACTED, "c", STOP)["content"]
    assert blocks == [
        {"type": "thinking", "thinking": "a", "signature": "c2ln"},
        {"type": "thinking", "thinking": "b", "signature": ""},
        {"type": "redacted_thinking", "data": "eA=="},
        {"type": "text", "text": "c"},
    ]


def test_thinking_that_is_omitted_keeps_its_signature() -> None:
    events = [thought("a"), SIGNED, thought("b"), "c", STOP]
    assert [block["type"] for block in whole(*events, thinking="none")["content"]] == ["text"]
    assert whole(*events, thinking="omitted")["content"] == [
        {"type": "thinking", "thinking": "", "signature": "c2ln"},
        {"type": "text", "text": "c"},
    ]


# --- calls


def test_a_call_of_the_client_is_sent_as_it_comes() -> None:
    found = told("a", CALL, REST, STOP)
    assert shown(found) == [
        *(("start", 0, "text"), (0, "a"), ("stop", 0)),
        *(("start", 1, "tool_use"), (1, '{"a":'), (1, "1}"), ("stop", 1)),
    ]
    assert found[4]["content_block"] == {"type": "tool_use", "id": "c", "name": "f", "input": {}}


def call(index: int, delta: str, **rest: Any) -> dict[str, Any]:
    return {"type": "tool_call", "index": index, "arguments_delta": delta, **rest}


def begun(index: int, delta: str) -> dict[str, Any]:
    return call(index, delta, id=f"c{index}", name="f", run_by="client")


def test_what_is_interleaved_waits_for_the_arguments_of_the_open_call() -> None:
    assert shown(
        told(begun(0, "{"), begun(1, '{"b"'), "x", call(1, ":2}"), "y", call(0, "}"), begun(2, ""), "z", STOP)
    ) == [
        *(("start", 0, "tool_use"), (0, "{"), (0, "}"), ("stop", 0)),
        *(("start", 1, "tool_use"), (1, '{"b":2}'), ("stop", 1)),
        *(("start", 2, "text"), (2, "xy"), ("stop", 2)),
        *(("start", 3, "tool_use"), ("stop", 3)),
        *(("start", 4, "text"), (4, "z"), ("stop", 4)),
    ]


def test_arguments_are_parsed_only_where_they_may_be_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    is_object = anthropic._is_object

    def noted(arguments: str) -> bool:
        parsed.append(arguments)
        return is_object(arguments)

    monkeypatch.setattr(anthropic, "_is_object", noted)
    told(begun(0, '{"a":"'), "beside", *[call(0, "word ")] * 100, call(0, '"}'), call(0, "\n"), begun(1, "{}"), STOP)
    assert set(parsed) == {'{"a":"' + "word " * 100 + '"}'}


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_the_input_of_a_call_is_an_object(arguments: str, read: Any) -> None:
    for one in (begun(0, arguments), call(0, arguments, id="c0", name="f")):
        assert whole(one, STOP)["content"] == [{"type": "tool_use", "id": "c0", "name": "f", "input": read}]


@pytest.mark.parametrize(
    ("events", "ids"),
    [
        ([HELD, REST, "a"], ["c"]),
        ([HELD, REST, "a", {"type": "tool_result", "id": "c", "result": 1}, REST], []),
        ([HELD, REST, {"type": "tool_approval", "id": "c"}], []),
        ([HELD | {"run_by": "generator"}, REST], []),
        ([CALL | {"id": "d"}, REST, HELD, {"type": "tool_result", "id": "c"}], ["d"]),
    ],
)
def test_only_the_clients_calls_are_sent(events: list[Any], ids: list[str]) -> None:
    found = told(*events, STOP)
    assert [event["content_block"]["id"] for event in found if "id" in event.get("content_block", ())] == ids
    assert found[-2]["delta"]["stop_reason"] == ("tool_use" if ids else "end_turn")


# --- properties


@given(ANSWERS, SIZES, st.sampled_from(["none", "omitted", "whole"]))
def test_frames_do_not_depend_on_batches(answer: list[Any], sizes: list[int], thinking: Thinking) -> None:
    opening = MESSAGES.begin(ROW, thinking)
    assert sent(MESSAGES, opening, batches(answer, sizes)) == sent(MESSAGES, opening, batches(answer))


@given(COMPLETED, st.sampled_from(["none", "omitted", "whole"]))
def test_blocks_are_dense_and_follow_one_another(events: list[Any], thinking: Thinking) -> None:
    found = told(*events, STOP, thinking=thinking)[1:-2]
    steps = [(event["index"], event["type"].removeprefix("content_block_")) for event in found]
    assert not steps or (steps[0], steps[-1][1]) == ((0, "start"), "stop")
    for (number, kind), (following, after) in pairwise(steps):
        assert (following, after == "start") == ((number + 1, True) if kind == "stop" else (number, False))


@given(COMPLETED)
def test_the_official_sdk_accumulates_what_a_whole_message_has(events: list[Any]) -> None:
    found = told(*events, STOP)
    expected = Message.model_validate(whole(*events, STOP))
    usage = expected.usage.model_dump(exclude_none=True)
    # The SDK reads incomplete arguments in its own way, and refuses what is no JSON.
    for block, event in zip(expected.content, (e["content_block"] for e in found if "content_block" in e), strict=True):
        assert block.type == event["type"]
    if any(block.type == "tool_use" and "INVALID_JSON" in block.input for block in expected.content):
        return
    message = accumulated(found)
    assert [block.to_dict() for block in message.content] == [block.to_dict() for block in expected.content]
    assert (message.stop_reason, message.usage.model_dump(exclude_none=True)) == (expected.stop_reason, usage)


@given(COMPLETED)
def test_no_text_and_no_argument_is_lost_or_reordered(events: list[Any]) -> None:
    content = whole(*events, STOP)["content"]
    texts = [orjson.loads(encoded(event))["delta"] for event in events if isinstance(event, str)]
    assert "".join(block["text"] for block in content if block["type"] == "text") == "".join(texts)
    thoughts = [
        orjson.loads(encoded(event))["delta"]
        for event in events
        if not isinstance(event, str) and event["type"] == "reasoning" and event is not REDACTED
    ]
    assert "".join(block["thinking"] for block in content if block["type"] == "thinking") == "".join(thoughts)
