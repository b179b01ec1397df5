"""The data stream protocol of AI SDK 3.4 and 4: its parts, and that no answer that ends badly looks whole."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.wire import ENDS, EVENT, RESUMED, SIZES, STREAM_ID, WAITING, batches, sent

from baton.dialects.aisdk_data import AI_SDK_DATA
from baton.dialects.protocol import Reader
from baton.outcome import Outcome

Events = list[Any]
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": '{"n":1}'}
RESULT = {"type": "tool_result", "id": "c", "result": 3}
END = Outcome.completed("stop")
NO_USAGE = {"promptTokens": 0, "completionTokens": 0}


def parts(events: Events, version: str = "v4", sizes: Any = ()) -> list[tuple[str, Any]]:
    dialect = AI_SDK_DATA[version]
    body = sent(dialect, dialect.begin(STREAM_ID.hex), batches(events, sizes))
    assert body.endswith(b"\n")
    lines = [line.partition(b":") for line in body.split(b"\n")[:-1]]
    return [(code.decode(), orjson.loads(value)) for code, _, value in lines]


def over(events: Events) -> str | None:
    dialect = AI_SDK_DATA["v4"]
    reader = Reader(dialect, dialect.begin(STREAM_ID.hex), 0)
    reader.read(batches(events))
    return reader.over


def test_text_and_the_end() -> None:
    used = {"type": "usage", "input_tokens": 3, "output_tokens": 4}
    known = {"finishReason": "length", "usage": {"promptTokens": 3, "completionTokens": 4}}
    found = parts(["a", "b", used, Outcome.completed("length")])
    assert found == [
        ("f", {"messageId": f"msg_{STREAM_ID.hex}"}),
        ("0", "a"),
        ("0", "b"),
        ("e", {**known, "isContinued": False}),
        ("d", known),
    ]


def test_a_call_of_the_page_is_whole_when_the_answer_ends() -> None:
    codes = [code for code, _ in parts([CALL, "a", END])]
    assert codes == ["f", "b", "c", "0", "9", "e", "d"]
    assert ("9", {"toolCallId": "c", "toolName": "f", "args": {"n": 1}}) in parts([CALL, "a", END])


@pytest.mark.parametrize("asked", [{"type": "tool_approval", "id": "c"}, RESULT])
def test_a_call_of_the_generator_never_is(asked: Any) -> None:
    assert "9" not in [code for code, _ in parts([CALL, asked, WAITING, RESUMED, "a", END])]
    assert "9" not in [code for code, _ in parts([CALL | {"run_by": "generator"}, END])]


def test_output_after_a_result_is_a_step() -> None:
    found = parts([CALL, RESULT, "a", END])
    assert [code for code, _ in found] == ["f", "b", "c", "a", "e", "f", "0", "e", "d"]
    assert found[3][1] == {"toolCallId": "c", "result": 3}


def test_the_older_version_gets_no_part_that_it_does_not_know() -> None:
    found = parts([{"type": "reasoning", "delta": "hm"}, CALL, RESULT, "a", END], "v3")
    assert {code for code, _ in found} <= set("0123456789abcde")


@pytest.mark.parametrize(
    "last",
    [
        Outcome.cancelled(),
        Outcome.failed("boom", "No."),
        {"type": "reset", "reason": "worker_lost"},
    ],
)
def test_an_answer_that_ends_badly_is_an_error(last: Any) -> None:
    found = parts(["a", last])
    assert found[-1][0] == "3"
    assert over(["a", last]) == "ended"


def test_arguments_that_a_page_throws_on_are_an_error() -> None:
    assert parts([CALL | {"arguments_delta": "[1"}, END])[-1][0] == "3"


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT | st.just(WAITING), max_size=12), ENDS, SIZES)
def test_parts_do_not_depend_on_batches_and_have_one_end(events: Events, end: Outcome, sizes: list[int]) -> None:
    whole = parts([*events, end])
    assert parts([*events, end], sizes=sizes) == whole
    assert [code for code, _ in whole if code in "d3"] == [whole[-1][0]]
