"""Whose turn it is to use a pool: no tenant keeps others out, and nobody waits for a place that is free."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.logbook import connected, until

from baton.db import pool_shares
from baton.db.pool_shares import Shares
from baton.db.postgres import SharedPool, pool
from baton.db.shared_work import shared_task
from baton.errors import TooManyQueries

WAIT = "SELECT pg_advisory_xact_lock(1)"


async def entering(shared: Shares, tenant: str) -> asyncio.Task[None]:
    """Ask for a place, and let it come as far as it can."""
    task = asyncio.create_task(shared.enter(tenant))
    await asyncio.sleep(0)
    return task


async def test_one_that_is_alone_leaves_one_place_which_the_next_one_takes() -> None:
    shared = Shares(8, 0.5)
    tasks = [await entering(shared, "a") for _ in range(24)]
    assert (shared.in_use["a"], shared.waiting("a")) == (7, 17)
    await shared.enter("b")
    # From now on there are two. What one has beyond its share it keeps until its queries end.
    for _ in range(3):
        shared.leave("a")
    assert shared.in_use == {"a": 4, "b": 1}
    for _ in range(3):
        await shared.enter("b")
    waiting = await entering(shared, "b")
    shared.leave("a")
    assert shared.in_use == {"a": 4, "b": 4}
    shared.leave("b")
    await waiting
    assert sum(task.done() for task in tasks) == 8


async def test_a_free_place_goes_to_the_tenant_that_has_the_fewest_and_then_by_turns() -> None:
    shared = Shares(4, 0.75)
    tasks = [await entering(shared, "a") for _ in range(6)]
    await shared.enter("b")
    for tenant in ("b", "c", "d"):
        tasks += [await entering(shared, tenant) for _ in range(2)]
    had: list[str] = []
    for tenant in ("a", "a", "a", "b", "c", "d"):
        before = Counter(shared.in_use)
        before[tenant] -= 1
        shared.leave(tenant)
        had += (shared.in_use - before).keys()
    assert had == ["c", "d", "a", "b", "c", "d"]
    for task in tasks:
        task.cancel()


async def test_who_waits_in_vain_is_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[None] = []
    shared = Shares(2, 0.5, lambda: refused.append(None))
    await shared.enter("a")
    monkeypatch.setattr(pool_shares, "WAIT_SECONDS", 0)
    with pytest.raises(TooManyQueries, match="Send fewer, or try again"):
        await shared.enter("a")
    monkeypatch.setattr(pool_shares, "MOST_WAITING", 0)
    with pytest.raises(TooManyQueries):
        await shared.enter("a")
    assert len(refused) == 2
    assert shared.waiting("a") == 0
    shared.leave("a")
    await shared.enter("a")
    assert shared.in_use == {"a": 1}


async def test_who_gives_up_gives_the_turn_to_the_next() -> None:
    shared = Shares(1, 1)
    await shared.enter("a")
    first, second, third = [await entering(shared, "a") for _ in range(3)]
    first.cancel()  # and has not run since
    shared.leave("a")
    second.cancel()  # whose turn it is
    await asyncio.gather(first, second, return_exceptions=True)
    await third
    assert (shared.in_use, shared.waiting("a")) == ({"a": 1}, 0)
    shared.leave("a")
    assert shared.in_use == {}


@given(
    places=st.integers(1, 5),
    share=st.floats(0.1, 1),
    actions=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "leave", "cancel"])), max_size=60),
)
def test_whatever_happens_all_places_come_back(places: int, share: float, actions: list[tuple[str, str]]) -> None:
    async def play() -> None:
        shared = Shares(places, share)
        tasks: list[tuple[str, asyncio.Task[None]]] = []
        left: Counter[str] = Counter()
        for tenant, action in actions:
            if action == "enter":
                tasks.append((tenant, await entering(shared, tenant)))
            elif action == "cancel" and tasks:
                tasks[len(actions) % len(tasks)][1].cancel()
            elif action == "leave" and shared.in_use[tenant]:
                shared.leave(tenant)
                left[tenant] += 1
            assert sum(shared.in_use.values()) <= places
        while any(not task.done() for _, task in tasks) or shared.in_use:
            await asyncio.sleep(0)
            for tenant in list(shared.in_use):
                shared.leave(tenant)
                left[tenant] += 1
        entered = Counter(tenant for tenant, task in tasks if not task.cancelled())
        assert not left - entered
        assert not any(shared.waiting(tenant) for tenant in "abc")

    asyncio.run(play())


@pytest.fixture
async def opened(dsn: str) -> AsyncIterator[SharedPool]:
    async with pool(dsn, size=4, timeout_seconds=10, shares=Shares(4, 0.5)) as opened:
        assert isinstance(opened, SharedPool)
        yield opened


async def asking(opened: SharedPool, tenant: str | None, query: str) -> object:
    pool_shares.act_for(tenant)
    return await opened.fetchval(query)


async def test_a_tenant_whose_queries_are_stuck_keeps_neither_others_nor_the_pod_waiting(
    opened: SharedPool, dsn: str
) -> None:
    async with connected(dsn) as holding:
        await holding.execute("SELECT pg_advisory_lock(1)")
        stuck = [asyncio.create_task(asking(opened, "a", WAIT)) for _ in range(24)]
        await until(lambda: opened.shares.waiting("a") == 21)
        for tenant in ("b", None, "c"):
            assert await asyncio.create_task(asking(opened, tenant, "SELECT 1")) == 1
        assert opened.shares.in_use == {"a": 3}
        await holding.execute("SELECT pg_advisory_unlock(1)")
        assert await asyncio.gather(*stuck) == [None] * 24
    assert opened.shares.in_use == {}


async def test_work_that_is_shared_counts_for_the_tenant_that_asked_for_it(opened: SharedPool, dsn: str) -> None:
    async def ask() -> None:
        pool_shares.act_for("a")
        await shared_task(opened.fetchval(WAIT))

    async with connected(dsn) as holding:
        await holding.execute("SELECT pg_advisory_lock(1)")
        task = asyncio.create_task(ask())
        await until(lambda: opened.shares.in_use == {"a": 1})
        await holding.execute("SELECT pg_advisory_unlock(1)")
        await task
    assert pool_shares.acting_for() is None
