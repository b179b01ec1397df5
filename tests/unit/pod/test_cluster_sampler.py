"""The rows that pods write of themselves, and the samples that each pod takes of all rows."""

from __future__ import annotations

from uuid import UUID

from baton.observability.metrics.numbers import MILLISECONDS_TO_SECONDS, quantile
from baton.pod.cluster_sampler import Point, Sample

ONE, TWO = UUID(int=1), UUID(int=2)
BUCKETS = len(MILLISECONDS_TO_SECONDS) + 1


def counts(**given: int) -> list[int]:
    """Return how many delays are in each bucket; `b3=7` means seven in the fourth."""
    return [given.get(f"b{number}", 0) for number in range(BUCKETS)]


def test_a_point_is_the_sum_of_all_processes() -> None:
    before = Sample(100.0, {ONE: 10, TWO: 50}, {ONE: counts(b0=5)})
    after = Sample(102.0, {ONE: 30, UUID(int=3): 7}, {ONE: counts(b0=5, b2=10), TWO: counts(b4=10)})
    point = Point.between(before, after)
    # A process that has left takes nothing away, and a new one had nothing before.
    assert (point.at, point.seconds, point.tokens) == (102.0, 2.0, 27)
    assert point.p50_delay_seconds == MILLISECONDS_TO_SECONDS[2]
    assert point.p95_delay_seconds is not None
    assert MILLISECONDS_TO_SECONDS[3] < point.p95_delay_seconds < MILLISECONDS_TO_SECONDS[4]


def test_without_deliveries_there_is_no_delay() -> None:
    point = Point.between(Sample(1, {}, {ONE: counts(b1=3)}), Sample(2, {}, {ONE: counts(b1=3)}))
    assert (point.tokens, point.p50_delay_seconds, point.p95_delay_seconds) == (0, None, None)


def test_a_quantile_lies_in_the_bucket_that_holds_it() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, (0, 0, 0, 0), 0.5) is None
    assert quantile(bounds, (0, 10, 0, 0), 0.5) == 1.5
    assert quantile(bounds, (5, 5, 0, 0), 0.5) == 1.0
    assert quantile(bounds, (0, 0, 0, 3), 0.5) == 4.0
