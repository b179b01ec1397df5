"""The queue's low watermark: where a look moves it, and where the next look begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from baton.db.queue_watermark import SLACK, START, TRAIL_SECONDS, First, QueueWatermark

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOONER = NOW - timedelta(seconds=30)
LATER = NOW + timedelta(seconds=30)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Looks:
    """Finds what the test sets, and notes where each look began."""

    def __init__(self, floor: QueueWatermark, clock: Clock) -> None:
        self._floor = floor
        self._clock = clock
        self.took = 0.0

    async def one(self, after_seconds: float, first: First) -> datetime:
        begun: list[datetime] = []

        async def found(since: datetime) -> First:
            begun.append(since)
            self._clock.now += self.took
            return first

        self._clock.now += after_seconds
        await self._floor.update(found)
        return begun[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def floor(clock: Clock) -> QueueWatermark:
    return QueueWatermark(clock=clock)


@pytest.fixture
def looks(floor: QueueWatermark, clock: Clock) -> Looks:
    return Looks(floor, clock)


@pytest.mark.parametrize(
    ("first", "lies"),
    [(First(None, NOW), NOW), (First(SOONER, NOW), SOONER), (First(LATER, NOW), NOW), (First(START, NOW), START)],
)
async def test_the_watermark_lies_below_the_first_stream_in_line(
    floor: QueueWatermark, clock: Clock, looks: Looks, first: First, lies: datetime
) -> None:
    await looks.one(0, first)
    assert floor.since == START
    clock.now += TRAIL_SECONDS
    assert floor.since == max(START, lies - SLACK)


async def test_a_higher_bound_is_used_later_and_a_lower_one_at_once(
    floor: QueueWatermark, clock: Clock, looks: Looks
) -> None:
    await looks.one(0, First(SOONER, NOW))
    await looks.one(0.1, First(LATER, LATER))
    assert floor.since == SOONER - SLACK
    clock.now += TRAIL_SECONDS
    assert floor.since == LATER - SLACK
    await looks.one(0, First(SOONER, NOW))
    assert floor.since == SOONER - SLACK


async def test_checks_begin_at_the_watermark_or_lower_and_rarely_at_the_start(
    floor: QueueWatermark, looks: Looks
) -> None:
    def empty(seconds: float) -> First:
        return First(None, NOW + timedelta(seconds=seconds))

    assert await looks.one(0, empty(0)) == START
    assert not floor.due
    assert await looks.one(0.1, empty(0.1)) == NOW - SLACK
    assert await looks.one(2, empty(2)) == START
    assert await looks.one(0.1, empty(2.1)) == NOW + timedelta(seconds=2) - SLACK
    assert await looks.one(10, empty(12)) == NOW + timedelta(seconds=2) - SLACK
    assert await looks.one(48, empty(60)) == START
    assert await looks.one(0.1, empty(60.1)) == NOW + timedelta(seconds=60) - SLACK


async def test_slow_sweeps_are_rare(looks: Looks) -> None:
    empty = First(None, NOW)
    looks.took = 0.5
    await looks.one(0, empty)
    looks.took = 0
    assert await looks.one(400, empty) != START
    assert await looks.one(100, empty) == START


async def test_a_new_connection_can_lead_to_another_server(floor: QueueWatermark, looks: Looks) -> None:
    await looks.one(0, First(None, NOW))
    await looks.one(1, First(None, NOW))
    floor.forget()
    assert floor.since == START
    assert await looks.one(0, First(None, NOW)) == START
