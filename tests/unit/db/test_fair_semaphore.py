"""The fair semaphore: no tenant starves another, and no request waits while its tenant may take a free place."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.db import fair_semaphore
from baton.db.fair_semaphore import FairSemaphore
from baton.errors import TooManyQueries


async def entering(semaphore: FairSemaphore, tenant: str) -> asyncio.Task[None]:
    """Start a request for a place, and let it run until it waits or has one."""
    task = asyncio.create_task(semaphore.acquire(tenant))
    await asyncio.sleep(0)
    return task


async def test_a_tenant_alone_leaves_one_place_for_the_next() -> None:
    semaphore = FairSemaphore(8, 0.5)
    tasks = [await entering(semaphore, "a") for _ in range(24)]
    assert (semaphore.in_use["a"], semaphore.waiting("a")) == (7, 17)
    await semaphore.acquire("b")
    # From now on there are two. What one has beyond its share it keeps until its queries end.
    for _ in range(3):
        semaphore.release("a")
    assert semaphore.in_use == {"a": 4, "b": 1}
    for _ in range(3):
        await semaphore.acquire("b")
    waiting = await entering(semaphore, "b")
    semaphore.release("a")
    assert semaphore.in_use == {"a": 4, "b": 4}
    semaphore.release("b")
    await waiting
    assert sum(task.done() for task in tasks) == 8


async def test_a_free_place_goes_to_the_tenant_with_the_fewest() -> None:
    semaphore = FairSemaphore(4, 0.75)
    tasks = [await entering(semaphore, "a") for _ in range(6)]
    await semaphore.acquire("b")
    for tenant in ("b", "c", "d"):
        tasks += [await entering(semaphore, tenant) for _ in range(2)]
    had: list[str] = []
    for tenant in ("a", "a", "a", "b", "c", "d"):
        before = Counter(semaphore.in_use)
        before[tenant] -= 1
        semaphore.release(tenant)
        had += (semaphore.in_use - before).keys()
    assert had == ["c", "d", "a", "b", "c", "d"]
    for task in tasks:
        task.cancel()


async def test_a_request_that_waits_too_long_is_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[None] = []
    semaphore = FairSemaphore(2, 0.5, lambda: refused.append(None))
    await semaphore.acquire("a")
    monkeypatch.setattr(fair_semaphore, "WAIT_SECONDS", 0)
    with pytest.raises(TooManyQueries, match="Send fewer, or try again"):
        await semaphore.acquire("a")
    monkeypatch.setattr(fair_semaphore, "MOST_WAITING", 0)
    with pytest.raises(TooManyQueries):
        await semaphore.acquire("a")
    assert len(refused) == 2
    assert semaphore.waiting("a") == 0
    semaphore.release("a")
    await semaphore.acquire("a")
    assert semaphore.in_use == {"a": 1}


async def test_a_request_that_gives_up_passes_on_its_turn() -> None:
    semaphore = FairSemaphore(1, 1)
    await semaphore.acquire("a")
    first, second, third = [await entering(semaphore, "a") for _ in range(3)]
    first.cancel()  # and has not run since
    semaphore.release("a")
    second.cancel()  # whose turn it is
    await asyncio.gather(first, second, return_exceptions=True)
    await third
    assert (semaphore.in_use, semaphore.waiting("a")) == ({"a": 1}, 0)
    semaphore.release("a")
    assert semaphore.in_use == {}


@given(
    places=st.integers(1, 5),
    share=st.floats(0.1, 1),
    actions=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "leave", "cancel"])), max_size=60),
)
def test_all_places_come_back(places: int, share: float, actions: list[tuple[str, str]]) -> None:
    async def play() -> None:
        semaphore = FairSemaphore(places, share)
        tasks: list[tuple[str, asyncio.Task[None]]] = []
        left: Counter[str] = Counter()

        def entered() -> Counter[str]:
            # A request whose turn came while it was cancelled gives its place back itself.
            return Counter(tenant for tenant, task in tasks if task.done() and not task.cancelled())

        for tenant, action in actions:
            if action == "enter":
                tasks.append((tenant, await entering(semaphore, tenant)))
            elif action == "cancel" and tasks:
                tasks[len(actions) % len(tasks)][1].cancel()
            elif action == "leave" and entered()[tenant] > left[tenant]:
                semaphore.release(tenant)
                left[tenant] += 1
            assert sum(semaphore.in_use.values()) <= places
        while any(not task.done() for _, task in tasks) or semaphore.in_use:
            await asyncio.sleep(0)
            for tenant in (entered() - left).elements():
                semaphore.release(tenant)
                left[tenant] += 1
        assert left == entered()
        assert not any(semaphore.waiting(tenant) for tenant in "abc")

    asyncio.run(play())
