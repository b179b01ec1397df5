"""The text of notifications: that it holds what was packed, within what Postgres takes."""

from __future__ import annotations

import uuid
from collections.abc import Container
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.wire import batch_of

from baton.db import notifications
from baton.db.event_log import Append
from baton.db.notifications import MAX_BYTES, TRAILER_BYTES, pack, unpack
from baton.events import MAX_SEQ, encode_text, join_lines
from baton.outcome import Outcome


class Everybody(Container[str]):
    def __contains__(self, _stream: object) -> bool:
        return True


EVERYBODY = Everybody()
NOW = 1_764_000_000.125


@st.composite
def appends(draw: Any) -> Append:
    deltas = draw(st.lists(st.text(max_size=50) | st.integers(1, 9000).map(lambda size: "x" * size), min_size=1))
    outcome = draw(st.sampled_from([None, Outcome.completed("stop")]))
    lines = [encode_text(delta) for delta in deltas] + ([outcome.encode()] if outcome else [])
    first = draw(st.integers(1, MAX_SEQ - len(lines)))
    return Append(draw(st.uuids()), draw(st.integers(1, 99)), first, first + len(lines) - 1, join_lines(lines), outcome)


@given(st.lists(appends()))
@example([batch_of(UUID(int=1), 7907)])  # the smallest that does not fit, of one event with a short number
def test_unpacking_returns_what_was_packed(items: list[Append]) -> None:
    payloads = pack(items, NOW)
    assert {notifications.committed_at(payload) for payload in payloads} <= {NOW}
    assert all(len(payload.encode()) <= MAX_BYTES for payload in payloads)
    found = [announcement for payload in payloads for announcement in unpack(payload, EVERYBODY)]
    assert len(found) == len(items)
    for announcement, item in zip(found, items, strict=True):
        assert UUID(announcement.stream) == item.stream_id
        assert (announcement.first_seq, announcement.last_seq) == (item.first_seq, item.last_seq)
        assert announcement.terminal == (item.outcome is not None)
        if announcement.events is not None:
            assert announcement.events.encode() == item.events
        else:
            head = notifications.record(item.stream_id.hex, item.first_seq, item.last_seq, "e")
            assert len(f"{head}9999\n") + len(item.events) > MAX_BYTES - TRAILER_BYTES


@given(st.lists(appends()))
def test_a_setting_keeps_the_events_out(items: list[Append]) -> None:
    found = [
        announcement for payload in pack(items, NOW, with_events=False) for announcement in unpack(payload, EVERYBODY)
    ]
    assert len(found) == len(items)
    assert all(announcement.events is None for announcement in found)


def test_only_wanted_streams_are_read() -> None:
    items = [batch_of(uuid.uuid4(), 100) for _ in range(5)]
    (payload,) = pack(items, NOW)
    assert [found.stream for found in unpack(payload, {items[3].stream_id.hex})] == [items[3].stream_id.hex]


def test_many_small_batches_share_a_payload() -> None:
    items = [batch_of(uuid.uuid4(), 100) for _ in range(100)]
    assert len(pack(items, NOW)) == 2


@given(st.lists(st.text() | st.from_regex(r"[0-9a-f]{32} -?\d{1,9} -?\d{1,9} [te-][0-9]{0,2}"), max_size=8))
def test_a_malformed_payload_is_ignored(lines: list[str]) -> None:
    for announcement in unpack("\n".join(lines), EVERYBODY):
        events, count = announcement.events, announcement.last_seq - announcement.first_seq + 1
        assert events is None or len(events.split("\n")) == count


@pytest.mark.parametrize("payload", ["", "x", "a b c d", f"{'0' * 32} 1 2 e2\n" + "{}", f"{'0' * 32} 1", "\n\n\n"])
def test_a_malformed_payload_announces_nothing(payload: str) -> None:
    assert list(unpack(payload, EVERYBODY)) == []


@pytest.mark.timeout(5)
@pytest.mark.parametrize("length", [-40, -1, 0, 1_000_000])
def test_a_length_beyond_the_payload_ends_the_reading(length: int) -> None:
    assert list(unpack(f"{'0' * 32} 1 2 e{length}\n{'1' * 32} 1 1 -", EVERYBODY)) == []
    assert list(unpack(f"{'0' * 32} 1 2 e{length}\n{'1' * 32} 1 1 -", {"1" * 32})) == []


@pytest.mark.parametrize("flag", ["x", "-"])
def test_events_are_accepted_only_where_they_are_announced(flag: str) -> None:
    (found,) = unpack(f"{'0' * 32} 1 1 {flag}3\nabc", EVERYBODY)
    assert found.events is None


def test_nothing_after_a_malformed_record_is_read() -> None:
    good = pack([batch_of(uuid.uuid4(), 100)], NOW)[0]
    assert len(list(unpack(f"{good}\nnonsense\n{good}", EVERYBODY))) == 1


def test_an_erasure_and_a_change_are_announced_without_events() -> None:
    stream_id = uuid.uuid4()
    (gone,) = unpack(notifications.erasure_payload(stream_id), EVERYBODY)
    assert gone.last_seq == 0
    assert gone.stream == stream_id.hex
    (hint,) = unpack(notifications.change_payload(stream_id), {stream_id.hex})
    assert hint.events is None
    assert hint.last_seq == MAX_SEQ


def test_a_cancel_names_its_stream_and_malformed_ones_none() -> None:
    stream_id = uuid.uuid4()
    assert notifications.named_stream(stream_id.hex) == stream_id
    assert notifications.named_stream("") is None
    assert notifications.named_stream("a stream") is None
