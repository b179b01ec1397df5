"""Seals of notifications: what was sealed here, for this channel and history, is genuine, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cluster import ended
from tests.logbook import connected, until

from baton.db import history, pool_shares, seals
from baton.db.history import HistoryWatch
from baton.db.notifications import committed_at, unpack
from baton.db.postgres import Pool, pool
from baton.db.seals import SEAL_BYTES, Seals
from baton.pod.notification_verifier import NotificationVerifier

HERE = Seals({1: b"a" * 32, 2: b"b" * 32}, "0123abcd/00000001")
CHANNEL = "baton_events"


@given(st.text(), st.from_regex(r"\A[0-9]{13}\Z"))
def test_what_was_sealed_is_genuine_here_and_nowhere_else(text: str, stamp: str) -> None:
    payload = HERE.seal(CHANNEL, text, stamp)
    assert HERE.genuine(CHANNEL, payload)
    assert not HERE.genuine("baton_kill", payload)
    assert not Seals(HERE.keys, "0123abcd/00000002").genuine(CHANNEL, payload)
    assert not Seals({2: b"a" * 32}, HERE.history).genuine(CHANNEL, payload)
    assert not Seals({1: b"b" * 32}, HERE.history).genuine(CHANNEL, payload)
    assert committed_at(payload) == int(stamp) / 1000


@given(st.data())
def test_a_sealed_payload_that_was_changed_anywhere_is_not_genuine(data: st.DataObject) -> None:
    payload = HERE.seal(CHANNEL, data.draw(st.text(max_size=40)), "1764000000125")
    at = data.draw(st.integers(0, len(payload)))
    cut = data.draw(st.integers(at, len(payload)))
    changed = payload[:at] + data.draw(st.text(max_size=5)) + payload[cut:]
    # The id of the key is not sealed: another way to write the same number changes nothing.
    assert changed.replace("\n#0", "\n#") == payload or not HERE.genuine(CHANNEL, changed)


@given(st.data())
def test_no_line_of_a_sealed_text_can_be_moved_into_the_stamp(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.text(max_size=5), min_size=2, max_size=4))
    text, _, trailer = HERE.seal(CHANNEL, "\n".join(lines), "1764000000125").rpartition("\n#")
    moved = "\n".join(lines[:1])
    assert not HERE.genuine(CHANNEL, f"{text[len(moved) + 1 :]}\n#{trailer}\n{moved}")


@given(st.text())
def test_an_unsealed_payload_is_not_genuine(payload: str) -> None:
    assert not HERE.genuine(CHANNEL, payload)
    assert not seals.NONE.genuine(CHANNEL, payload)


@pytest.mark.parametrize(
    "seal", ["#2:", "#:x", "#-1:x", "#\u0662:x", "#99999999999999999999:x", "#2", "#2:\u0662", "#"]
)
def test_a_malformed_seal_is_not_a_seal(seal: str) -> None:
    assert not HERE.genuine(CHANNEL, f"text\n{seal}\n@1764000000125")


def test_no_seal_is_longer_than_is_reserved() -> None:
    longest = Seals({2**31 - 1: b"x" * 32}, "x").seal(CHANNEL, "", "1")
    assert len(longest.encode()) == SEAL_BYTES + len("\n@1")


def test_a_reader_of_the_release_before_stops_at_the_seal() -> None:
    payload = HERE.seal(CHANNEL, f"{'0' * 32} 1 2 -", "1764000000125")
    assert [item.last_seq for item in unpack(payload, {"0" * 32})] == [2]


async def test_a_replaced_key_is_read_until_its_grace_is_over_and_then_deleted(dsn: str) -> None:
    async with connected(dsn) as connection:
        (first,) = (await seals.read(connection, "")).keys
        second = await seals.rotate(connection)
        assert set((await seals.read(connection, "")).keys) == {first, second}
        await connection.execute("UPDATE baton.notify_key SET created_at = created_at - interval '61 s'")
        assert set((await seals.read(connection, "")).keys) == {second}
        third = await seals.rotate(connection)
        rows = await connection.fetch("SELECT id FROM baton.notify_key ORDER BY id")
        assert [row[0] for row in rows] == [second, third]


async def test_a_read_that_all_wait_for_counts_for_no_tenant(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str | None] = []
    look = HistoryWatch.look

    async def looking(watch: HistoryWatch, executor: Pool) -> object:
        counted.append(pool_shares.acting_for())
        return await look(watch, executor)

    monkeypatch.setattr(HistoryWatch, "look", looking)
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        pool_shares.act_for("acme")
        await NotificationVerifier(opened, look_seconds=60).renew()
    assert counted == [None]


@asynccontextmanager
async def trusting(dsn: str) -> AsyncIterator[NotificationVerifier]:
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        verifier = NotificationVerifier(opened, look_seconds=0.01)
        looking = asyncio.create_task(verifier.run())
        yield verifier
        await ended(looking)


async def test_a_pod_learns_a_new_key_and_rejects_an_old_history(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        first = (await seals.read(connection, await history.read(connection))).seal(CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, first))
        await seals.rotate(connection)
        second = (await seals.read(connection, await history.read(connection))).seal(CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, second))
        assert verifier.verifies(CHANNEL, first)
        await history.mark_restored(connection)
        await until(lambda: not verifier.verifies(CHANNEL, second))


async def test_after_forget_nothing_verifies_until_the_next_read(dsn: str) -> None:
    async with connected(dsn) as connection, trusting(dsn) as verifier:
        payload = (await seals.read(connection, await history.read(connection))).seal(CHANNEL, "x", "1764000000125")
        await until(lambda: verifier.verifies(CHANNEL, payload))
        verifier.forget()
        assert not verifier.verifies(CHANNEL, payload)
        await until(lambda: verifier.verifies(CHANNEL, payload))
