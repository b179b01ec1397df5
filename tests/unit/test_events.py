"""Events and cursors: any text survives a batch, and invalid events are rejected."""

from __future__ import annotations

import datetime
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baton.errors import InvalidEvent, MalformedCursor
from baton.events import encode_event, encode_object, encode_text, join_lines, parse_cursor, without_surrogates

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

# Any Python string. Half of its parts are characters that are rare otherwise.
rare = st.sampled_from(["\\", '"', "\0", "\ud800", "\udbff", "\udc00", "\ud83d\ude00", "\U0001f600", *LINE_ENDS])
texts = st.lists(rare | st.text(st.characters(), max_size=5), max_size=12).map("".join)


def as_utf8_can_hold(text: str) -> str:
    """The reference: how a UTF-16 program such as a browser reads it, one code unit after the other."""
    units: list[int] = []
    for char in text:
        point = ord(char)
        if point > 0xFFFF:
            units += [0xD800 + ((point - 0x10000) >> 10), 0xDC00 + ((point - 0x10000) & 0x3FF)]
        else:
            units.append(point)
    found, at = "", 0
    while at < len(units):
        pair = units[at : at + 2]
        if len(pair) == 2 and 0xD800 <= pair[0] < 0xDC00 <= pair[1] < 0xE000:
            found += chr(0x10000 + ((pair[0] - 0xD800) << 10) + (pair[1] - 0xDC00))
            at += 2
        else:
            found += "\ufffd" if 0xD800 <= pair[0] < 0xE000 else chr(pair[0])
            at += 1
    return found


@given(st.lists(texts, min_size=1))
@example(["\0", "\ud800", "\udc00\ud800", "\ud83d\ude00", "\U0001f600", LINE_ENDS, "\\u2028\\\u2028"])
def test_any_text_survives_a_batch(deltas: list[str]) -> None:
    lines = join_lines([encode_text(delta) for delta in deltas]).decode().split("\n")
    assert [orjson.loads(line) for line in lines] == [
        {"type": "text", "delta": as_utf8_can_hold(delta)} for delta in deltas
    ]


@given(st.lists(texts, min_size=1))
def test_a_batch_has_line_ends_only_between_events(deltas: list[str]) -> None:
    events = [encode_event({"type": "custom", "name": f"n{delta}", "data": {delta: [delta]}}) for delta in deltas]
    assert len(join_lines(events).decode().splitlines()) == len(deltas)


@given(texts, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_any_event_survives_encoding(text: str, number: int, fraction: float) -> None:
    event = {"type": "tool_result", "id": f"t{text}", "result": [{"key": (text, number, fraction, None, True)}]}
    clean = as_utf8_can_hold(text)
    encoded = join_lines([encode_event(event)])
    assert orjson.loads(encoded) == {
        "type": "tool_result",
        "id": f"t{clean}",
        "result": [{"key": [clean, number, fraction, None, True]}],
    }


@given(texts)
def test_text_without_lone_surrogates_stays_unchanged(text: str) -> None:
    once = without_surrogates(text)
    assert once == as_utf8_can_hold(text)
    assert without_surrogates(once) == once


def test_an_encoded_event_begins_with_its_type() -> None:
    assert encode_event({"delta": "x", "type": "text"}) == encode_text("x") == b'{"type":"text","delta":"x"}'


def endless() -> dict[str, Any]:
    event: dict[str, Any] = {"type": "custom", "name": "x"}
    event["data"] = event
    return event


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (
            {},
            "must be one of custom, finish, reasoning, text, tool_approval, tool_call, tool_result, usage, not None.",
        ),
        ({"type": "done"}, "not 'done'"),
        ({"type": "reset", "reason": "x"}, "not 'reset'"),
        ({"type": ["text"]}, r"not \['text'\]"),
        ({"type": "x" * 1000}, "not 'x{79}\\.$"),
        ({"type": "text"}, "A text event needs 'delta' as a string."),
        ({"type": "text", "delta": None}, "A text event needs 'delta' as a string."),
        ({"type": "reasoning", "delta": b"x"}, "A reasoning event needs 'delta' as a string."),
        ({"type": "tool_call", "index": "0"}, "A tool_call event needs 'index' as a whole number."),
        ({"type": "tool_call", "index": True}, "A tool_call event needs 'index' as a whole number."),
        ({"type": "tool_call", "index": 0, "id": 1}, "In a tool_call event, 'id' must be a string or missing."),
        ({"type": "tool_call", "index": 0, "name": ["x"]}, "In a tool_call event, 'name' must be a string"),
        ({"type": "tool_call", "index": 0, "arguments_delta": {"a": 1}}, "'arguments_delta' must be a string"),
        (
            {"type": "tool_call", "index": 0, "run_by": "me"},
            "In a tool_call event, 'run_by' must be one of client, generator",
        ),
        ({"type": "tool_result"}, "A tool_result event needs 'id' as a string."),
        ({"type": "tool_result", "id": ""}, "A tool_result event needs 'id' as a non-empty string."),
        ({"type": "tool_approval", "id": ""}, "A tool_approval event needs 'id' as a non-empty string."),
        ({"type": "tool_call", "index": -1}, "In a tool_call event, 'index' must be 0 or greater."),
        ({"type": "usage", "input_tokens": "3"}, "In a usage event, 'input_tokens' must be a number, not '3'."),
        ({"type": "usage", "input_tokens": True}, "In a usage event, 'input_tokens' must be a number, not True."),
        (
            {"type": "usage", "total_tokens": float("nan")},
            "In a usage event, 'total_tokens' must be a number, not nan.",
        ),
        ({"type": "usage", "vendor_credits": -1}, "In a usage event, 'vendor_credits' must not be negative, as -1 is."),
        ({"type": "custom", "name": ""}, "A custom event needs 'name' as a non-empty string."),
        ({"type": "custom", "data": 1}, "A custom event needs 'name' as a string."),
        (
            {"type": "custom", "name": "x", "data": object()},
            "An event contains a value that JSON cannot represent: .*object",
        ),
        ({"type": "custom", "name": "x", "data": {1: 2}}, "JSON cannot represent"),
        ({"type": "custom", "name": "x", "data": 2**64}, "JSON cannot represent"),
        (endless(), "JSON cannot represent"),
    ],
)
def test_an_invalid_event_is_rejected_with_a_reason(event: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidEvent, match=sentence) as caught:
        encode_event(event)
    assert caught.value.code == "invalid_event"


def test_nan_and_times_are_encoded_as_json_values() -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    assert encode_object({"a": float("nan"), "b": moment}) == b'{"a":null,"b":"2026-01-02T00:00:00+00:00"}'


@given(st.integers(0, 10**18 - 1))
def test_a_cursor_is_a_whole_number(number: int) -> None:
    assert parse_cursor(str(number)) == number


@pytest.mark.parametrize("raw", [None, ""])
def test_a_missing_cursor_is_zero(raw: str | None) -> None:
    assert parse_cursor(raw) == 0


@pytest.mark.parametrize("raw", ["-1", "+1", "1.0", " 1", "1 ", "1\n", "abc", "1_0", "\u0661", "0x1", "1" * 19, "\0"])
def test_other_cursors_are_malformed(raw: str) -> None:
    with pytest.raises(MalformedCursor, match="a whole number such as 42, not"):
        parse_cursor(raw)
