"""What a pod remembers of the tenants' live streams, and how much of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from baton.db import live_counts
from baton.db.live_counts import HighWatermark, LiveCounts, Moment, oldest_in_progress
from baton.stream_ids import first_id

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def moment(seconds: float, transaction_id: int | None, snapshot: str) -> Moment:
    return Moment(BEGAN + timedelta(seconds=seconds), transaction_id, snapshot)


def id_at(seconds: float) -> UUID:
    return first_id((BEGAN + timedelta(seconds=seconds)).timestamp())


@pytest.mark.parametrize(
    ("snapshot", "above", "oldest"),
    [("10:10:", 0, 10), ("10:15:10,12", 0, 10), ("10:15:10,12", 11, 12), ("3:9:3", 4, 9)],
)
def test_the_oldest_transaction_in_progress(snapshot: str, above: int, oldest: int) -> None:
    assert oldest_in_progress(snapshot, above) == oldest


def test_the_watermark_waits_for_every_older_transaction() -> None:
    mark = HighWatermark()
    mark.note(moment(0, 12, "10:10:"))
    assert mark.id == UUID(int=0)
    # The next one sees that of the mark, and one that is older, at work.
    mark.note(moment(1, 13, "11:13:11,12"))
    assert mark.id == UUID(int=0)
    mark.note(moment(2, None, "12:14:12"))
    assert id_at(-0.1) < mark.id < id_at(0)
    mark.note(moment(3, None, "14:14:"))
    assert id_at(0.9) < mark.id < id_at(1)


def test_a_snapshot_below_a_marks_transaction_moves_no_watermark() -> None:
    """Ids from the end of the snapshot on count as in progress, listed or not."""
    mark = HighWatermark()
    mark.note(moment(0, 12, "10:10:"))
    mark.note(moment(1, None, "10:11:10"))
    assert mark.id == UUID(int=0)


def test_a_long_transaction_delays_the_watermark_only_for_a_while() -> None:
    mark = HighWatermark()
    for second in range(20):
        mark.note(moment(second, 100 + second, f"7:{100 + second}:7"))
    assert mark.id > id_at(18 - 0.1)


def test_tenants_that_create_nothing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_counts, "MOST_TENANTS", 3)
    counts = LiveCounts()
    for tenant in "abcd":
        counts.plan(tenant)
    counts.plan("b")
    assert list(counts._tenants) == ["c", "d", "b"]


def test_the_number_of_remembered_ids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_counts, "MOST_IDS", 10)
    counts = LiveCounts()
    for number, tenant in enumerate("abc"):
        counts.plan(tenant).learn([], (), moment(10 * number, number + 1, f"{number}:{number + 1}:"))
        plan = counts.plan(tenant)
        plan.learn([id_at(-5 - n) for n in range(8)], (), moment(10 * number + 1, None, "50:50:"))
        plan = counts.plan(tenant)
        plan.learn([id_at(-5 - n) for n in range(8)], (), moment(10 * number + 2, None, "50:50:"))
    counts.plan("c")
    assert counts._ids == sum(len(item.older) for item in counts._tenants.values()) <= 10


def test_an_older_reply_undoes_nothing() -> None:
    counts = LiveCounts()
    counts.plan("a").learn([], (), moment(0, 1, "1:1:"))
    counts.plan("a").learn([], (), moment(10, 2, "2:2:"))
    slow = counts.plan("a")
    quick = counts.plan("a")
    counts.plan("a").learn(None, (), moment(20, None, "3:3:"))
    quick.learn([id_at(-1)], (), moment(21, None, "3:3:"))
    newer = counts.plan("a")
    newer.learn([id_at(5)], (), moment(22, None, "3:3:"))
    slow.learn([id_at(-1), id_at(5)], (), moment(20, None, "3:3:"))
    plan = counts.plan("a", exact=True)
    assert set(plan.checked) == {id_at(-1), id_at(5)}
    plan.learn([], [id_at(5)], moment(23, None, "3:3:"))
    assert counts.plan("a").unchecked == 1
