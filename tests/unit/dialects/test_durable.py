"""The encoding of the Durable Streams protocol: offsets, contents, events and cursors."""

from __future__ import annotations

import base64
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.durable import sse_events
from tests.support.wire import STREAM_ID

from baton.db.event_log import Batch
from baton.db.external_streams import Kind
from baton.dialects.durable import DIALECTS, DurableReader, content_of, cursor_after, messages, parse_cursor
from baton.dialects.durable_offsets import number_in, offset_after, prefix_of
from baton.errors import InvalidRequest, OffsetGone
from baton.events import MAX_SEQ
from baton.outcome import Outcome

END = Outcome.completed("stop").encode().decode()
PREFIX = prefix_of(STREAM_ID)


def batch(*lines: str, first: int = 1, terminal: bool = False) -> Batch:
    return Batch(first, first + len(lines) - 1, terminal, "\n".join(lines))


def read(kind: Kind, *batches: Batch, after: int = 0, tail: int | None = None, cursor: int | None = None) -> bytes:
    reader = DurableReader(
        DIALECTS[kind], PREFIX, after, cursor, lambda: batches[-1].last_seq if tail is None else tail
    )
    return reader.read(batches)


def text_line(text: str) -> str:
    return orjson.dumps(text).decode()


def bytes_line(content: bytes) -> str:
    return orjson.dumps({"b64": base64.b64encode(content).decode()}).decode()


@given(st.integers(0, MAX_SEQ), st.integers(0, MAX_SEQ))
def test_offsets_sort_as_their_numbers_and_are_read_back(one: int, other: int) -> None:
    written = [offset_after(STREAM_ID, number) for number in (one, other)]
    assert (written[0] < written[1]) is (one < other)
    assert [number_in(offset, STREAM_ID) for offset in written] == [one, other]
    assert all(offset > "-1" for offset in written)


def test_the_form_of_an_offset() -> None:
    assert offset_after(STREAM_ID, 7) == "019a5e2c0000_0000000007"
    assert number_in("-1", STREAM_ID) == 0
    assert number_in("now", STREAM_ID) is None


@pytest.mark.parametrize(
    "given",
    ["", "7", "-2", "now ", "0,1", "019a5e2c0000_7", "019A5E2C0000_0000000007", "019a5e2c0000_0000000007\n", "../x"],
)
def test_a_malformed_offset_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest):
        number_in(given, STREAM_ID)


def test_an_offset_of_another_stream_is_refused_by_name() -> None:
    with pytest.raises(OffsetGone):
        number_in(offset_after(UUID(int=STREAM_ID.int + (1 << 80)), 7), STREAM_ID)


def test_json_messages_keep_their_digits() -> None:
    lines = ['{"n":1.0}', "12345678901234567890123", '"x"']
    assert content_of("json", messages("json", batch(*lines), 0)) == b'[{"n":1.0},12345678901234567890123,"x"]'
    assert content_of("json", messages("json", batch(*lines), 2)) == b'["x"]'
    assert content_of("json", ()) == b"[]"


@given(st.lists(st.one_of(st.text(min_size=1), st.binary(min_size=1)), min_size=1, max_size=5))
def test_text_and_bytes_are_joined_exactly(parts: list[str | bytes]) -> None:
    lines = [text_line(part) if isinstance(part, str) else bytes_line(part) for part in parts]
    whole = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    assert content_of("text", messages("text", batch(*lines), 0)) == whole
    (kind, data), (control, _) = sse_events(read("bytes", batch(*lines)))
    assert (kind, base64.b64decode(data, validate=True), control) == ("data", whole, "control")


@given(st.text(min_size=1))
def test_a_text_is_one_event_whatever_is_in_it(text: str) -> None:
    found = sse_events(read("text", batch(text_line(text))))
    # The format has one way to write a line end.
    assert found[0] == ("data", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert [kind for kind, _ in found] == ["data", "control"]


def test_the_bytes_match_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.dialects.durable.time.time", lambda: 20 * 500.5)
    assert read("json", batch('{"n":1}', '{"n":2}')) == (
        b'event: data\ndata:[{"n":1},{"n":2}]\n\n'
        b'event: control\ndata:{"streamNextOffset":"019a5e2c0000_0000000002","streamCursor":"500","upToDate":true}\n\n'
    )


def test_each_data_event_has_its_control_event_and_the_last_says_up_to_date() -> None:
    found = sse_events(read("json", batch("1", "2"), batch("3", first=3), batch("4", first=4), tail=4))
    assert [kind for kind, _ in found] == ["data", "control"] * 3
    controls = [orjson.loads(data) for kind, data in found if kind == "control"]
    assert [control["streamNextOffset"] for control in controls] == [offset_after(STREAM_ID, n) for n in (2, 3, 4)]
    assert [control.get("upToDate") for control in controls] == [None, None, True]


@pytest.mark.parametrize("kind", ["json", "text", "bytes"])
def test_the_end_of_other_content_than_events_is_no_message(kind: Kind) -> None:
    line = bytes_line(b"x") if kind == "bytes" else '"x"'
    ((data, _), (control, last)) = sse_events(read(kind, batch(line, END, terminal=True)))
    assert (data, control) == ("data", "control")
    assert orjson.loads(last) == {"streamNextOffset": offset_after(STREAM_ID, 1), "streamClosed": True}
    ((control, last),) = sse_events(read(kind, batch(END, first=2, terminal=True), after=1))
    assert orjson.loads(last) == {"streamNextOffset": offset_after(STREAM_ID, 1), "streamClosed": True}


def test_the_end_of_events_is_a_message() -> None:
    ((_, data), (_, last)) = sse_events(read("events", batch('{"type":"text","delta":"x"}', END, terminal=True)))
    assert orjson.loads(data)[1]["type"] == "done"
    assert orjson.loads(last) == {"streamNextOffset": offset_after(STREAM_ID, 2), "streamClosed": True}


def test_a_batch_is_encoded_once_for_all_clients() -> None:
    found = batch("1", "2")
    assert read("json", found, cursor=10**9) != read("json", found, tail=9)
    assert found.encodings is not None
    assert set(found.encodings) == {"durable.json"}
    assert sse_events(read("json", found, after=1))[0] == ("data", "[2]")


def test_a_cursor_is_greater_than_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.dialects.durable.time.time", lambda: 20 * 500.5)
    assert (cursor_after(None), cursor_after(499)) == (500, 500)
    assert all(given < cursor_after(given) for given in (500, 501, 10**17) for _ in range(20))
    assert [parse_cursor(raw) for raw in (None, "", "x", "-1", "9" * 19, "42")] == [None, None, None, None, None, 42]
