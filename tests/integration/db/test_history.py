"""Histories of the database: what begins a new one, and what it means for streams."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest
from tests.support.logbook import claim_as, connected, events, queue, row

from baton.db import event_log, history, stream_queue, streams, worker_rows
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.history import HistoryWatch
from baton.events import encode_text, join_lines
from baton.worker.reaper import release

WORKER = UUID(int=1)


async def test_a_counter_that_falls_begins_a_new_history_once(dsn: str) -> None:
    async with connected(dsn) as connection:
        worker_id = await worker_rows.register(connection, "test", ["test"], 1)
        await connection.execute("UPDATE baton.worker SET heartbeat = 9")
        first, second = HistoryWatch(), HistoryWatch()
        before = [await watch.check(connection) for watch in (first, second)]
        assert before == [{worker_id: 9}] * 2
        old = first.history
        await first.check(connection)
        assert first.history == old
        await connection.execute("UPDATE baton.worker SET heartbeat = 8")
        await first.check(connection)
        assert first.history not in {None, old}
        await second.check(connection)
        assert second.history == first.history
        await second.check(connection)
        assert second.history == first.history == await history.read(connection)


async def test_a_fall_that_could_not_begin_a_history_is_seen_again(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(dsn) as connection:
        await worker_rows.register(connection, "test", ["test"], 1)
        await connection.execute("UPDATE baton.worker SET heartbeat = 9")
        watch = HistoryWatch()
        await watch.check(connection)
        old = watch.history
        await connection.execute("UPDATE baton.worker SET heartbeat = 8")
        with monkeypatch.context() as patched:
            patched.setattr(history, "_BEGIN", "SELECT ($3::bigint / 0)::text || $1::text || $2::uuid")
            with pytest.raises(asyncpg.DivisionByZeroError):
                await watch.check(connection)
        await watch.check(connection)
        assert watch.history not in {None, old}


async def test_a_counter_that_did_not_fall_begins_no_history(dsn: str) -> None:
    async with connected(dsn) as connection:
        worker_id = await worker_rows.register(connection, "test", ["test"], 1)
        now = await history.read(connection)
        for counter in (-1, 0):
            assert await connection.fetchval(history._BEGIN, now, worker_id, counter) == now
        assert await connection.fetchval(history._BEGIN, now, UUID(int=0), 9) == now
        assert await connection.fetchval(history._BEGIN, "another/00000001", worker_id, 9) == now


async def test_a_history_is_a_marker_and_the_visible_timeline(dsn: str) -> None:
    async with connected(dsn) as connection:
        marker, _, timeline = (await history.read(connection)).partition("/")
        assert len(marker) == 8
        assert int(timeline, 16) >= 1
        assert await history.mark_restored(connection) == 0
        other, _, same = (await history.read(connection)).partition("/")
        assert other != marker
        assert same == timeline


async def test_a_queued_stream_of_an_older_history_is_claimed_as_rewound(dsn: str) -> None:
    await queue(dsn)
    async with connected(dsn) as connection:
        assert await history.mark_restored(connection) == 1
        newer = await queue(dsn)
        claims = await claim_as(connection, WORKER, ["test"], 9)
        assert {item.rewound for item in claims if item.stream_id == newer} == {False}
        assert {item.rewound for item in claims if item.stream_id != newer} == {True}


async def test_an_orphan_of_an_older_history_ends_as_rewound(dsn: str) -> None:
    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        lines = join_lines([encode_text("a"), encode_text("b")])
        await event_log.append(connection, [Append(stream_id, 1, 1, 2, lines, None, item.claim_token)])
        await history.mark_restored(connection)
        await worker_rows.remove(connection, WORKER)
        (orphan,) = await worker_rows.orphans(connection, UUID(int=2))
        assert orphan.rewound
        await release(connection, orphan, max_attempts=3)
        assert (await row(connection, stream_id)).error_code == "log_rewound"
        assert [event["type"] for event in await events(connection, stream_id)] == ["text", "text", "done"]


async def test_an_adopted_stream_has_the_current_history_if_its_claim_holds(dsn: str) -> None:
    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        await history.mark_restored(connection)
        await worker_rows.remove(connection, WORKER)
        await streams.adopt(connection, [Fence(stream_id, item.epoch, UUID(int=5))])
        assert [orphan.rewound for orphan in await worker_rows.orphans(connection, UUID(int=2))] == [True]
        await streams.adopt(connection, [item.fence])
        assert [orphan.rewound for orphan in await worker_rows.orphans(connection, UUID(int=2))] == [False]


async def test_a_writer_with_the_same_epoch_but_another_claim_writes_nothing(dsn: str) -> None:
    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        line = encode_text("a")
        for token in (None, UUID(int=5)):
            assert await event_log.append(connection, [Append(stream_id, item.epoch, 1, 1, line, None, token)]) == set()
            assert not await stream_queue.requeue(connection, Fence(stream_id, item.epoch, token))
        assert await event_log.append(connection, [Append(stream_id, item.epoch, 1, 1, line, None, item.claim_token)])


async def test_an_append_of_another_history_writes_nothing(dsn: str) -> None:
    stream_id = await queue(dsn)
    async with connected(dsn) as connection:
        (item,) = await claim_as(connection, WORKER, ["test"], 1)
        now = await history.read(connection)
        append = Append(stream_id, item.epoch, 1, 1, encode_text("a"), None, item.claim_token)
        assert await event_log.append(connection, [append], "another/00000001") == set()
        assert await event_log.append(connection, [append], now) == {stream_id}


async def test_a_switchover_that_lost_nothing_keeps_what_was_queued_or_running(dsn: str) -> None:
    ids = [await queue(dsn), await queue(dsn)]
    async with connected(dsn) as connection:
        (running,) = await claim_as(connection, WORKER, ["test"], 1)
        await history.mark_restored(connection)
        assert await history.declare_complete(connection) == 2
        assert await history.declare_complete(connection) == 0
        (claimed_now,) = await claim_as(connection, WORKER, ["test"], 9)
        assert not claimed_now.rewound
        assert {running.stream_id, claimed_now.stream_id} == set(ids)
        await worker_rows.remove(connection, WORKER)
        assert {orphan.rewound for orphan in await worker_rows.orphans(connection, UUID(int=2))} == {False}
