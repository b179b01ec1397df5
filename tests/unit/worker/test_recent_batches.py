"""What a writer keeps of its batches: within the bounds, without a gap, and of one claim."""

from __future__ import annotations

from uuid import UUID, uuid4

from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.outcome import Outcome
from baton.worker.recent_batches import OVERHEAD_BYTES, RecentBatches

ID, TOKEN = uuid4(), uuid4()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def batch(
    first: int, last: int | None = None, *, of: UUID = ID, epoch: int = 1, size: int = 10, end: bool = False
) -> Append:
    outcome = Outcome.completed("stop") if end else None
    return Append(of, epoch, first, last or first, b"x" * size, outcome, TOKEN)


def kept(recent: RecentBatches, of: UUID = ID, epoch: int = 1) -> list[int]:
    stream = recent.of(Fence(of, epoch, TOKEN))
    return [] if stream is None else [item.first_seq for item in stream.batches]


def test_batches_of_a_claim_are_kept_in_order() -> None:
    recent = RecentBatches(10, 10_000)
    recent.note([batch(1, 3)], "a")
    recent.note([batch(4), batch(1, of=(other := uuid4()))], "a")
    assert kept(recent) == [1, 4]
    assert kept(recent, other) == [1]
    stream = recent.of(batch(1).fence)
    assert stream is not None
    assert (stream.tail, stream.history, stream.ended) == (4, "a", False)
    assert [[item.first_seq for item in stream.after(seq)] for seq in (0, 1, 3, 4)] == [[1, 4], [], [4], []]


def test_another_claim_or_a_gap_replaces_what_was_kept() -> None:
    recent = RecentBatches(10, 10_000)
    recent.note([batch(1), batch(2)], "a")
    recent.note([batch(4)], "a")
    assert kept(recent) == [4]
    recent.note([batch(5, epoch=2)], "a")
    assert kept(recent) == []
    assert kept(recent, epoch=2) == [5]


def test_a_batch_that_is_noted_again_replaces_itself_and_what_follows() -> None:
    """As after it was appended again in another history."""
    recent = RecentBatches(10, 10_000)
    recent.note([batch(1), batch(2), batch(3, end=True)], "a")
    recent.note([batch(2), batch(3, end=True)], "b")
    assert kept(recent) == [2, 3]
    (stream,) = recent.ended()
    assert stream.history == "b"


def test_old_batches_are_dropped_by_the_next_note_and_never_without_one() -> None:
    clock = Clock()
    recent = RecentBatches(10, 10_000, clock=clock)
    recent.note([batch(1)], "a")
    clock.now += 6
    recent.note([batch(2)], "a")
    clock.now += 3600
    assert kept(recent) == [1, 2]
    clock.now += -3600 + 6
    recent.note([batch(1, of=(other := uuid4()))], "a")
    assert kept(recent) == [2]
    clock.now += 60
    recent.note([batch(2, of=other)], "a")
    assert kept(recent) == []
    assert kept(recent, other) == [2]


def test_the_oldest_batches_are_dropped_when_they_take_too_much_memory() -> None:
    recent = RecentBatches(10, 3 * (OVERHEAD_BYTES + 100))
    for seq in range(1, 6):
        recent.note([batch(seq, size=100)], "a")
    assert kept(recent) == [3, 4, 5]
    recent.note([batch(6, size=100_000)], "a")
    assert kept(recent) == []
    recent.note([batch(7, size=100)], "a")
    assert kept(recent) == [7]


def test_a_forgotten_claim_is_gone_and_counts_until_it_is_old() -> None:
    clock = Clock()
    recent = RecentBatches(10, 10_000, clock=clock)
    recent.note([batch(1), batch(2, end=True)], "a")
    recent.forget(Fence(ID, 2, TOKEN))
    assert kept(recent) == [1, 2]
    recent.forget(batch(1).fence)
    assert kept(recent) == []
    assert not recent.ended()
    recent.note([batch(1)], "a")
    assert recent._size == 3 * (OVERHEAD_BYTES + 10)
    clock.now += 11
    recent.note([], "a")
    assert (kept(recent), recent._size) == ([], 0)


def test_without_seconds_nothing_is_kept() -> None:
    recent = RecentBatches(0, 10_000)
    recent.note([batch(1)], "a")
    assert kept(recent) == []
