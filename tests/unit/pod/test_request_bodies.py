"""The bytes of request bodies that a pod holds at once."""

from __future__ import annotations

import asyncio

import pytest

from baton.errors import RequestMemoryFull
from baton.observability.metrics import PodMetrics
from baton.pod.request_bodies import FREE_BYTES, LARGE_BYTES, Body, RequestBodies

MIB = 1 << 20


def bodies(max_bytes: int = 8 * MIB, max_body_bytes: int = 2 * MIB) -> tuple[RequestBodies, PodMetrics]:
    metrics = PodMetrics()
    return RequestBodies(metrics, max_bytes=max_bytes, max_body_bytes=max_body_bytes), metrics


def grown(body: Body, size: int) -> Body:
    body.grow(size)
    return body


def test_a_body_counts_beyond_its_free_bytes_until_it_is_released() -> None:
    held, _ = bodies()
    body = grown(held.open("a"), FREE_BYTES - 1)
    assert held.size_bytes == 0
    body.grow(11)
    assert held.size_bytes == 10
    body.grow(5)
    assert held.size_bytes == 15
    body.release()
    body.release()
    assert held.size_bytes == 0


def test_small_bodies_are_accepted_when_there_is_no_room_left() -> None:
    held, metrics = bodies()
    full = [grown(held.open(tenant), FREE_BYTES + 2 * MIB) for tenant in "abcd"]
    with pytest.raises(RequestMemoryFull) as caught:
        grown(held.open("e"), FREE_BYTES + 1)
    assert "BATON" not in str(caught.value)
    assert "BATON_MAX_TOTAL_BODY_BYTES" in (caught.value.operator or "")
    assert metrics.rejected["total_body_bytes"] == 1
    grown(held.open("e"), FREE_BYTES)
    full[0].release()
    grown(held.open("e"), FREE_BYTES + 2 * MIB)


def test_one_tenant_leaves_room_for_the_largest_body_of_another() -> None:
    held, _ = bodies()
    for _ in range(3):
        grown(held.open("a"), FREE_BYTES + 2 * MIB)
    with pytest.raises(RequestMemoryFull):
        grown(held.open("a"), FREE_BYTES + 1)
    grown(held.open("b"), FREE_BYTES + 2 * MIB)


def test_the_largest_body_fits_under_any_setting() -> None:
    held, _ = bodies(max_bytes=1024)
    grown(held.open("a"), 2 * MIB)


async def test_large_bodies_are_processed_one_by_one() -> None:
    held, _ = bodies()
    first, second, small = held.open("a"), held.open("b"), held.open("c")
    await first.wait_for_turn(LARGE_BYTES + 1)
    await first.wait_for_turn(LARGE_BYTES + 1)
    await small.wait_for_turn(LARGE_BYTES)
    waiting = asyncio.create_task(second.wait_for_turn(LARGE_BYTES + 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    small.release()
    assert held.turn.locked()
    first.release()
    await waiting
    assert second.give_turn_away()
    assert not held.turn.locked()
    assert not second.give_turn_away()
    second.release()
    assert not held.turn.locked()


async def test_a_large_body_whose_turn_does_not_come_is_refused() -> None:
    held, metrics = bodies()
    held.turn_seconds = 0
    first, second = held.open("a"), held.open("b")
    await first.wait_for_turn(LARGE_BYTES + 1)
    with pytest.raises(RequestMemoryFull) as caught:
        await asyncio.wait_for(second.wait_for_turn(LARGE_BYTES + 1), 10)
    assert caught.value.retry_after_seconds > 0
    assert metrics.rejected["bodies_turn"] == 1
    second.release()
    assert held.turn.locked(), "the first still has its turn"
    first.release()
    await second.wait_for_turn(LARGE_BYTES + 1)
