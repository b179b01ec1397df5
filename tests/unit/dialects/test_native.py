"""The native dialect, read back by the rules of WHATWG HTML 9.2.6 and by clients that split lines their own way."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.db.event_log import Batch
from baton.dialects import native
from baton.events import encode_event, encode_text, join_lines, without_surrogates

# Lone surrogates too: `st.text()` leaves them out.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
DELTAS = st.lists(ANY_TEXT, min_size=1, max_size=8)


def batch_of(deltas: list[str], first_seq: int = 1) -> Batch:
    """Make a batch as the log gives it."""
    events = join_lines([encode_text(delta) for delta in deltas])
    return Batch(first_seq, first_seq + len(deltas) - 1, False, events.decode())


def dispatched(stream: bytes) -> list[tuple[str, str, str]]:
    """The id, type and data of each event that an EventSource would dispatch."""
    found, last_id, kind, data = [], "", "", list[str]()
    for line in re.split("\r\n|\r|\n", stream.decode().removeprefix("\ufeff")):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((last_id, kind or "message", "\n".join(data)))
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return found


@given(DELTAS)
def test_any_text_except_lone_surrogates_is_dispatched_unchanged(deltas: list[str]) -> None:
    found = dispatched(native.FULL.encode(batch_of(deltas), None, 0).body)
    assert [(int(seq), kind) for seq, kind, _ in found] == [(seq, "message") for seq in range(1, len(deltas) + 1)]
    assert [json.loads(data)["delta"] for _, _, data in found] == [without_surrogates(delta) for delta in deltas]


@given(DELTAS)
def test_a_client_that_splits_at_unicodes_line_ends_reads_the_same(deltas: list[str]) -> None:
    lines = native.FULL.encode(batch_of(deltas), None, 0).body.decode().splitlines()
    data = [json.loads(line.removeprefix("data: "))["delta"] for line in lines if line.startswith("data: ")]
    assert data == [without_surrogates(delta) for delta in deltas]
    assert len(lines) == 3 * len(deltas)


@given(DELTAS, st.integers(1, 10**6), st.integers(-3, 12))
def test_a_cursor_inside_a_batch_gets_exactly_the_later_events(deltas: list[str], first_seq: int, offset: int) -> None:
    batch = batch_of(deltas, first_seq)
    whole = dispatched(native.FULL.encode(batch, None, 0).body)
    cursor = max(0, first_seq + offset)
    assert dispatched(native.FULL.encode(batch, None, cursor).body) == [
        event for event in whole if int(event[0]) > cursor
    ]


def test_the_bytes_match_the_documentation() -> None:
    assert native.FULL.encode(batch_of(["Hi", "\u2028"], 41), None, 0).body == (
        b'id: 41\ndata: {"type":"text","delta":"Hi"}\n\nid: 42\ndata: {"type":"text","delta":"\\u2028"}\n\n'
    )


@pytest.mark.parametrize(
    "event",
    [
        {"type": "reasoning", "delta": "\n\n"},
        {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": '{"a":"\r\n"}'},
        {"type": "tool_result", "id": "c", "result": {"x": [1, None, "\u2029"]}},
        {"type": "usage", "input_tokens": 1},
        {"type": "custom", "name": "n", "data": {"\n": "\0"}},
    ],
)
def test_every_kind_of_event_is_one_line_that_begins_with_its_type(event: dict[str, object]) -> None:
    line = join_lines([encode_event(event)]).decode()
    assert line.startswith('{"type":"' + str(event["type"]))
    ((_, _, data),) = dispatched(native.FULL.encode(Batch(1, 1, False, line), None, 0).body)
    assert json.loads(data) == event
