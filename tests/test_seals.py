"""Signatures of notifications: only what these keys signed, for this channel and history, is genuine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cluster import ended
from tests.logbook import connected, until

from baton.db import fair_semaphore, history, signing_keys
from baton.db.history import HistoryWatch
from baton.db.notifications import SIGNATURE_BYTES, committed_at, is_signed, sign, unpack
from baton.db.postgres import Connection, Pool, pool
from baton.db.signing_keys import GREATEST_ID, SigningKeys
from baton.pod.notification_verifier import NotificationVerifier

HERE = SigningKeys({1: b"a" * 32, 2: b"b" * 32}, "0123abcd/00000001")
CHANNEL = "baton_events"


@given(st.text(), st.from_regex(r"\A[0-9]{13}\Z"))
def test_what_was_signed_is_genuine_here_and_nowhere_else(text: str, stamp: str) -> None:
    payload = sign(HERE, CHANNEL, text, stamp)
    assert is_signed(HERE, CHANNEL, payload)
    assert not is_signed(HERE, "baton_kill", payload)
    assert not is_signed(SigningKeys(HERE.secrets, "0123abcd/00000002"), CHANNEL, payload)
    assert not is_signed(SigningKeys({2: b"a" * 32}, HERE.history), CHANNEL, payload)
    assert not is_signed(SigningKeys({1: b"b" * 32}, HERE.history), CHANNEL, payload)
    assert committed_at(payload) == int(stamp) / 1000


@given(st.data())
def test_a_signed_payload_that_was_changed_is_not_genuine(data: st.DataObject) -> None:
    payload = sign(HERE, CHANNEL, data.draw(st.text(max_size=40)), "1764000000125")
    at = data.draw(st.integers(0, len(payload)))
    cut = data.draw(st.integers(at, len(payload)))
    changed = payload[:at] + data.draw(st.text(max_size=5)) + payload[cut:]
    # The key id is not signed: another spelling of the same number changes nothing.
    assert changed.replace("\n#0", "\n#") == payload or not is_signed(HERE, CHANNEL, changed)


@given(st.data())
def test_no_line_of_a_signed_text_can_be_moved_into_the_stamp(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.text(max_size=5), min_size=2, max_size=4))
    text, _, trailer = sign(HERE, CHANNEL, "\n".join(lines), "1764000000125").rpartition("\n#")
    moved = "\n".join(lines[:1])
    assert not is_signed(HERE, CHANNEL, f"{text[len(moved) + 1 :]}\n#{trailer}\n{moved}")


@given(st.text())
def test_an_unsigned_payload_is_not_genuine(payload: str) -> None:
    assert not is_signed(HERE, CHANNEL, payload)
    assert not is_signed(signing_keys.NONE, CHANNEL, payload)


@pytest.mark.parametrize(
    "signature", ["#2:", "#:x", "#-1:x", "#\u0662:x", "#99999999999999999999:x", "#2", "#2:\u0662", "#"]
)
def test_a_malformed_signature_is_none(signature: str) -> None:
    assert not is_signed(HERE, CHANNEL, f"text\n{signature}\n@1764000000125")


def test_no_signature_is_longer_than_the_reserved_bytes() -> None:
    longest = sign(SigningKeys({GREATEST_ID: b"x" * 32}, "x"), CHANNEL, "", "1")
    assert len(longest.encode()) == SIGNATURE_BYTES + len("\n@1")


def test_a_reader_of_the_previous_release_stops_at_the_signature() -> None:
    payload = sign(HERE, CHANNEL, f"{'0' * 32} 1 2 -", "1764000000125")
    assert [item.last_seq for item in unpack(payload, {"0" * 32})] == [2]


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


async def test_a_look_that_all_requests_wait_for_counts_for_no_tenant(
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


async def test_a_pod_believes_a_new_key_and_doubts_an_old_history(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        first = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, first))
        await signing_keys.rotate(connection)
        second = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, second))
        assert verifier.verifies(CHANNEL, first)
        await history.mark_restored(connection)
        await until(lambda: not verifier.verifies(CHANNEL, second))


async def test_a_pod_believes_nothing_until_it_has_looked_again(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        payload = sign(await current_keys(connection), CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, payload))
        verifier.forget()
        assert not verifier.verifies(CHANNEL, payload)
        await until(lambda: verifier.verifies(CHANNEL, payload))
