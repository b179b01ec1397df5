"""The fair semaphore: no tenant starves another, and no request waits while its tenant may take a free place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.logbook import connected, until

from baton.db import fair_semaphore
from baton.db.fair_pool import FairPool
from baton.db.fair_semaphore import FairSemaphore
from baton.db.postgres import pool
from baton.db.shared_work import shared_task

WAIT = "SELECT pg_advisory_xact_lock(1)"


@pytest.fixture
async def opened(dsn: str) -> AsyncIterator[FairPool]:
    async with pool(dsn, size=4, timeout_seconds=10, semaphore=FairSemaphore(4, 0.5)) as opened:
        assert isinstance(opened, FairPool)
        yield opened


async def asking(opened: FairPool, tenant: str | None, query: str) -> object:
    fair_semaphore.set_tenant(tenant)
    return await opened.fetchval(query)


async def test_a_tenants_stuck_queries_delay_neither_others_nor_the_pod(opened: FairPool, dsn: str) -> None:
    async with connected(dsn) as holding:
        await holding.execute("SELECT pg_advisory_lock(1)")
        stuck = [asyncio.create_task(asking(opened, "a", WAIT)) for _ in range(24)]
        await until(lambda: opened.semaphore.waiting("a") == 21)
        for tenant in ("b", None, "c"):
            assert await asyncio.create_task(asking(opened, tenant, "SELECT 1")) == 1
        assert opened.semaphore.in_use == {"a": 3}
        await holding.execute("SELECT pg_advisory_unlock(1)")
        assert await asyncio.gather(*stuck) == [None] * 24
    assert opened.semaphore.in_use == {}


async def test_shared_work_counts_for_the_tenant_that_asked(opened: FairPool, dsn: str) -> None:
    async def ask() -> None:
        fair_semaphore.set_tenant("a")
        await shared_task(opened.fetchval(WAIT))

    async with connected(dsn) as holding:
        await holding.execute("SELECT pg_advisory_lock(1)")
        task = asyncio.create_task(ask())
        await until(lambda: opened.semaphore.in_use == {"a": 1})
        await holding.execute("SELECT pg_advisory_unlock(1)")
        await task
    assert fair_semaphore.current_tenant() is None
