"""How fast a caller may read from, or append to, one pod."""

from __future__ import annotations

import pytest

from baton.db.rate_buckets import Rate
from baton.pod import caller_rates
from baton.pod.caller_rates import CallerRates


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(buckets: CallerRates, count: int, caller: str = "a") -> int:
    return [buckets.take("t", caller) for _ in range(count)].count(None)


def test_a_burst_is_allowed_and_then_the_rate(clock: Clock) -> None:
    buckets = CallerRates(Rate(0.5, 5), now=clock)
    assert taken(buckets, 20) == 5
    assert buckets.take("t", "a") == 2
    clock.seconds += 5
    assert taken(buckets, 20) == 2
    clock.seconds += 1e6
    assert taken(buckets, 20) == 5


def test_callers_have_buckets_of_their_own(clock: Clock) -> None:
    buckets = CallerRates(Rate(1, 3), now=clock)
    assert (taken(buckets, 9), taken(buckets, 9, "b"), buckets.take("another tenant", "a")) == (3, 3, None)


def test_a_list_of_many_rows_costs_more_tokens_and_can_owe_them(clock: Clock) -> None:
    buckets = CallerRates(Rate(1, 10), now=clock)
    assert buckets.take("t", "a") is None
    buckets.charge_rows("t", "a", 19)
    assert taken(buckets, 1) == 1
    buckets.charge_rows("t", "a", 400)
    assert buckets.take("t", "a") == 13
    clock.seconds += 13
    assert taken(buckets, 5) == 1


def test_memory_is_bounded_and_the_newest_are_kept(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_rates, "MOST_CALLERS", 3)
    buckets = CallerRates(Rate(1, 1), now=clock)
    for caller in ("a", "b", "c", "d"):
        assert taken(buckets, 2, caller) == 1
    assert taken(buckets, 1, "d") == 0
    assert taken(buckets, 1, "a") == 1
