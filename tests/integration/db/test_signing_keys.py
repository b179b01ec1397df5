"""Signatures of notifications: only what these keys signed, for this channel and history, is genuine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.support.cluster import ended
from tests.support.logbook import connected, until

from baton.db import fair_semaphore, history, signing_keys
from baton.db.history import HistoryWatch
from baton.db.notifications import sign
from baton.db.postgres import Connection, Pool, pool
from baton.db.signing_keys import SigningKeys
from baton.pod.notification_verifier import NotificationVerifier

CHANNEL = "baton_events"


async def test_a_replaced_key_is_read_until_its_grace_is_over_and_then_deleted(dsn: str) -> None:
    async with connected(dsn) as connection:
        (first,) = (await signing_keys.read(connection, "")).secrets
        second = await signing_keys.rotate(connection)
        assert set((await signing_keys.read(connection, "")).secrets) == {first, second}
        await connection.execute("UPDATE baton.notify_key SET created_at = created_at - interval '61 s'")
        assert set((await signing_keys.read(connection, "")).secrets) == {second}
        third = await signing_keys.rotate(connection)
        rows = await connection.fetch("SELECT id FROM baton.notify_key ORDER BY id")
        assert [row[0] for row in rows] == [second, third]


async def test_a_check_that_all_requests_wait_for_counts_for_no_tenant(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str | None] = []
    check = HistoryWatch.check

    async def checking(watch: HistoryWatch, executor: Pool) -> object:
        counted.append(fair_semaphore.current_tenant())
        return await check(watch, executor)

    monkeypatch.setattr(HistoryWatch, "check", checking)
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        fair_semaphore.set_tenant("acme")
        await NotificationVerifier(opened, check_seconds=60).renew()
    assert counted == [None]


async def current_keys(connection: Connection) -> SigningKeys:
    return await signing_keys.read(connection, await history.read(connection))


@asynccontextmanager
async def trusting(dsn: str) -> AsyncIterator[NotificationVerifier]:
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        verifier = NotificationVerifier(opened, check_seconds=0.01)
        looking = asyncio.create_task(verifier.run())
        yield verifier
        await ended(looking)


async def test_a_pod_accepts_a_new_key_and_doubts_an_old_history(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        first = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, first))
        await signing_keys.rotate(connection)
        second = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, second))
        assert verifier.verifies(CHANNEL, first)
        await history.mark_restored(connection)
        await until(lambda: not verifier.verifies(CHANNEL, second))


async def test_a_pod_trusts_no_notification_until_its_next_check(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        payload = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, payload))
        verifier.forget()
        assert not verifier.verifies(CHANNEL, payload)
        await until(lambda: verifier.verifies(CHANNEL, payload))
