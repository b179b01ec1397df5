"""The usage of a stream: no call and no attempt is lost or counted twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.events import encode_event
from baton.usage import Bill, Counts, added, by_attempt, of_lines, total_of

CALL = {"type": "usage", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cost": 0.5, "tier": "flex"}

counts = st.dictionaries(st.sampled_from(["input_tokens", "cached_tokens", "vendor_credits"]), st.integers(0, 1000))


def test_every_number_is_summed() -> None:
    more = {"type": "usage", "input_tokens": 1, "reasoning_tokens": 2, "total_tokens": 1}
    assert added(added(None, CALL), more) == {
        "input_tokens": 4,
        "output_tokens": 4,
        "total_tokens": 8,
        "cost": 0.5,
        "reasoning_tokens": 2,
    }


def test_a_call_without_a_total_counts_in_the_total() -> None:
    without = {"type": "usage", "input_tokens": 1, "output_tokens": 2}
    assert added(added(None, CALL), without)["total_tokens"] == 10
    assert added(added(None, without), CALL)["total_tokens"] == 10
    assert "total_tokens" not in added(added(None, without), without)


def test_a_sum_stays_within_exact_json_integers() -> None:
    assert added({"a": 2**64 - 1, "b": 1e308}, {"a": 2**64 - 1, "b": 1e308}) == {"a": 2**53 - 1, "b": 2**53 - 1}


@given(st.lists(st.lists(counts, max_size=4), max_size=4))
def test_the_bill_of_the_last_attempt_covers_the_whole_log(attempts: list[list[Counts]]) -> None:
    """Each worker reads from the log what earlier attempts used, whatever the boundaries of the batches."""
    written: list[tuple[int, bytes]] = []
    bill = Bill(0)
    for number, events in enumerate(attempts):
        bill = Bill(2 * number + 1, of_lines(written))
        for event in events:
            bill.add(event)
            lines = (b'{"type":"text","delta":"a"}', encode_event({"type": "usage", **event}))
            written.append((2 * number + 1, b"\n".join(lines)))
    expected: dict[str, Any] = {}
    for event in (event for events in attempts for event in events):
        expected = {name: expected.get(name, 0) + event.get(name, 0) for name in {**expected, **event}}
    assert (bill.total or {}) == expected
    assert bill.total == (total_of(of_lines(written)) or None)
    used = [2 * number + 1 for number, events in enumerate(attempts) if any(events)]
    assert [item["epoch"] for item in bill.attempts or []] == (used if len(used) > 1 else [])


def test_text_that_looks_like_usage_does_not_count() -> None:
    lines = [
        encode_event({"type": "custom", "name": "n", "data": {"type": "usage", "total_tokens": 1}}),
        encode_event({"type": "text", "delta": '{"type":"usage","total_tokens":1}'}),
    ]
    assert of_lines([(1, b"\n".join(lines))]) == {}


@pytest.mark.parametrize("by_epoch", [{}, {3: {"total_tokens": 1}}])
def test_one_attempt_needs_no_list(by_epoch: dict[int, Counts]) -> None:
    assert by_attempt(by_epoch) is None
