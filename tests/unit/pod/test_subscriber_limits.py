"""How many clients may follow streams on a pod."""

from __future__ import annotations

from uuid import uuid4

import pytest

from baton.errors import PodFull, TooManySubscribers
from baton.observability.metrics import PodMetrics
from baton.pod.subscriber_limits import Hysteresis, SubscriberLimits

A, B = uuid4(), uuid4()


def limits(*, pod: int = 100, tenant: int = 100, stream: int = 100) -> SubscriberLimits:
    return SubscriberLimits(PodMetrics(), max_pod=pod, max_tenant=tenant, max_stream=stream)


def test_a_stream_has_a_limit_and_leaving_makes_room() -> None:
    seats = limits(stream=2)
    seats.join("t", A)
    seats.join("t", A)
    with pytest.raises(TooManySubscribers, match="limit of 2 viewers of this answer"):
        seats.join("t", A)
    seats.join("t", B)
    seats.leave("t", A)
    seats.join("t", A)


def test_a_tenant_has_a_limit_of_its_own() -> None:
    seats = limits(tenant=2)
    seats.join("t", A)
    seats.join("t", B)
    for stream_id in (A, None):
        with pytest.raises(TooManySubscribers, match="limit of 2 open connections"):
            seats.require_room("t", stream_id)
    seats.join("other", A)


def test_a_subscriber_counts_for_the_tenant_that_asks() -> None:
    seats = limits(stream=1)
    seats.join("stranger", A)
    seats.join("t", A)


def test_a_full_pod_stays_full_until_there_is_clearly_room() -> None:
    seats = limits(pod=40)
    for _ in range(40):
        assert not seats.full
        seats.join("t", A)
    assert seats.full
    with pytest.raises(PodFull) as refused:
        seats.join("u", B)
    assert refused.value.retry_after_seconds > 0
    seats.leave("t", A)
    seats.join("t", A)
    seats.leave("t", A)
    assert seats.full
    seats.leave("t", A)
    assert not seats.full


def test_a_refused_subscriber_takes_no_place_and_is_counted() -> None:
    metrics = PodMetrics()
    seats = SubscriberLimits(metrics, max_pod=2, max_tenant=100, max_stream=1)
    seats.join("t", A)
    for _ in range(3):
        with pytest.raises(TooManySubscribers):
            seats.join("t", A)
    assert (seats.subscribers, metrics.rejected["stream_subscribers"]) == (1, 3)
    seats.leave("t", A)
    assert (seats.subscribers, len(seats._tenants), len(seats._streams)) == (0, 0, 0)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_a_level_must_fall_clearly_below_its_limit(limit: int) -> None:
    level = Hysteresis(limit)
    level.note(limit)
    assert level.reached
    level.note(limit - 1)
    assert level.reached == (limit > 20)
    level.note(0)
    assert not level.reached
