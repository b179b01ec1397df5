"""The queue's low watermark: where a look moves it, and where the next look begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from baton.db.queue_watermark import ALL, LATE, TRAIL, First, QueueWatermark, Since
from baton.stream_ids import first_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOONER = NOW - timedelta(seconds=30)


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

    async def one(self, after_seconds: float, first: First) -> Since:
        begun: list[Since] = []

        async def found(since: Since) -> First:
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
    [
        (First(None, None, NOW), NOW),
        (First(first_id(SOONER.timestamp()), None, NOW), SOONER),
        (First(None, SOONER, NOW), SOONER),
        (First(first_id(NOW.timestamp()), SOONER, NOW), SOONER),
        (First(UUID(int=(1 << 128) - 1), None, NOW), NOW),
        (First(UUID(int=0), None, NOW), ALL.moment + TRAIL),
    ],
)
async def test_the_watermark_lies_below_the_first_queued_stream(
    floor: QueueWatermark, looks: Looks, first: First, lies: datetime
) -> None:
    await looks.one(0, first)
    assert floor.since == Since(lies - TRAIL)


async def test_checks_begin_at_the_watermark_or_lower_and_rarely_at_the_start(
    floor: QueueWatermark, looks: Looks
) -> None:
    empty = First(None, None, NOW)
    assert await looks.one(0, empty) == ALL
    assert not floor.due
    assert await looks.one(0.1, empty) == Since(NOW - TRAIL)
    assert await looks.one(2, empty) == Since(NOW - TRAIL - LATE)
    assert await looks.one(0.1, empty) == Since(NOW - TRAIL)
    assert await looks.one(60, empty) == ALL
    assert await looks.one(0.1, empty) == Since(NOW - TRAIL)


async def test_slow_sweeps_are_rare(looks: Looks) -> None:
    empty = First(None, None, NOW)
    looks.took = 0.5
    await looks.one(0, empty)
    looks.took = 0
    assert await looks.one(400, empty) != ALL
    assert await looks.one(100, empty) == ALL


async def test_a_new_connection_can_lead_to_another_server(floor: QueueWatermark, looks: Looks) -> None:
    await looks.one(0, First(None, None, NOW))
    floor.forget()
    assert floor.since == ALL
    assert await looks.one(0, First(None, None, NOW)) == ALL
