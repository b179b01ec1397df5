"""The writer: what one flush carries, and that a failing stream affects no other."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from tests.support.hints import sending
from tests.support.logbook import claimed, connected, ended, events, row, text, until, until_tail

from baton.chaos.proxy import Proxy
from baton.db import history
from baton.db.notifications import unpack
from baton.db.postgres import Connection
from baton.events import encode_text
from baton.observability.metrics import WorkerMetrics
from baton.outcome import Outcome
from baton.worker import writer
from baton.worker.outbox import Lost, Outbox
from baton.worker.writer import Writer


class Desk:
    """A running writer, and the outboxes that a test fills."""

    def __init__(self, dsn: str, window_seconds: float, lasted: bool = True) -> None:
        self.metrics = WorkerMetrics()
        self.hints = sending(dsn, count=self.metrics.count_notifications)

        async def lease_lasted(_connection: Connection, _history: str) -> bool:
            return lasted

        self.writer = Writer(
            dsn, window_seconds=window_seconds, hints=self.hints, metrics=self.metrics, lease_lasted=lease_lasted
        )
        self.lost: dict[UUID, Lost] = {}

    def open(
        self, stream_id: UUID, *, tail: int = 0, max_events: int = 100, epoch: int = 1, history: str | None = None
    ) -> Outbox:
        outbox = Outbox(
            stream_id,
            epoch,
            tail,
            on_ready=self.writer.ready,
            on_lost=lambda lost: self.lost.update({stream_id: lost}),
            max_events=max_events,
            history=history,
        )
        self.writer.add(outbox)
        return outbox


@asynccontextmanager
async def desk(dsn: str, *, window_seconds: float = 0.005, lasted: bool = True) -> AsyncIterator[Desk]:
    opened = Desk(dsn, window_seconds, lasted)
    tasks = [asyncio.create_task(service.run()) for service in (opened.writer, opened.hints)]
    try:
        yield opened
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def flushes(connection: Connection) -> list[set[UUID]]:
    """Return the streams of each transaction that wrote batches, in the order of the transactions."""
    rows = await connection.fetch(
        "SELECT array_agg(stream_id) FROM baton.batch GROUP BY xmin ORDER BY min(xmin::text::bigint)"
    )
    return [set(ids) for (ids,) in rows]


async def cut_writers(connection: Connection) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'baton worker append' AND datname = current_database()"
    )


@asynccontextmanager
async def locked_log(dsn: str) -> AsyncIterator[None]:
    """No session can append within the block."""
    async with connected(dsn) as connection, connection.transaction():
        await connection.execute("LOCK TABLE baton.batch IN ACCESS EXCLUSIVE MODE")
        yield


async def test_one_flush_carries_all_streams(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        ids = await claimed(connection, 50)
        outboxes = [at.open(stream_id) for stream_id in ids]
        for outbox in outboxes:
            outbox.put(encode_text("a"))
            outbox.put(encode_text("b"))
        await until(lambda: all(outbox.tail == 2 for outbox in outboxes))
        assert await flushes(connection) == [set(ids)]


async def test_an_urgent_flush_carries_only_urgent_streams(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn, window_seconds=3600) as at:
        slow, quick = await claimed(connection, 2)
        first, second = at.open(slow), at.open(quick)
        first.put(encode_text("a"))
        await until(lambda: first.tail == 1)
        first.put(encode_text("b"))
        second.put(encode_text("a"))
        await until(lambda: second.tail == 1)
        second.finish(Outcome.completed("stop"))
        await second.closed.wait()
        assert first.tail == 1
        assert await flushes(connection) == [{slow}, {quick}, {quick}]
        first.finish(Outcome.completed("stop"))
        await first.closed.wait()
        assert [event["type"] for event in await events(connection, slow)] == ["text", "text", "done"]


async def test_urgent_flushes_do_not_delay_other_streams(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn, window_seconds=0.1) as at:
        steady, *others = await claimed(connection, 200)
        first = at.open(steady)
        first.put(encode_text("a"))
        await until(lambda: first.tail == 1)
        first.put(encode_text("b"))
        # Streams start one after another, with pauses shorter than the window.
        begun = 0
        for stream_id in others:
            outbox = at.open(stream_id)
            outbox.put(encode_text("a"))
            await until(lambda outbox=outbox: outbox.tail == 1)  # type: ignore[misc]
            begun += 1
            if first.tail == 2:
                break
        assert first.tail == 2, begun


async def test_only_repeatedly_slow_flushes_lengthen_the_pause(dsn: str) -> None:
    writer = Desk(dsn, window_seconds=0.04).writer
    pauses = [writer._schedule._pause_after(seconds) for seconds in (0.03, 0.001, 0.03, 0.03, 1, 1)]
    assert pauses == pytest.approx([0.04, 0.04, 0.04, 0.09, 0.09, 0.16])


async def test_a_large_flush_takes_several_statements(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        ids = await claimed(connection, 3)
        outboxes = [at.open(stream_id) for stream_id in ids]
        for outbox in outboxes:
            outbox.put(encode_text("x" * (3 << 20)))
        await until(lambda: all(outbox.tail == 1 for outbox in outboxes))
        assert len(await flushes(connection)) == 3


async def test_a_batch_is_announced_after_its_commit(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as listening, desk(dsn) as at:
        (stream_id,) = await claimed(connection)
        heard: list[str] = []
        await listening.add_listener("baton_events", lambda *given: heard.append(str(given[-1])))
        at.open(stream_id).put(encode_text("a"))
        await until(lambda: bool(heard))
        assert len(await events(connection, stream_id)) == 1
        (announcement,) = unpack(heard[0], {stream_id.hex})
        assert (announcement.stream, announcement.events) == (stream_id.hex, encode_text("a").decode())


async def test_only_the_later_of_two_claims_in_one_worker_writes_and_announces(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as listening, desk(dsn) as at:
        (stream_id,) = await claimed(connection)
        await connection.execute("UPDATE baton.stream SET epoch = 2 WHERE id = $1", stream_id)
        heard: list[str] = []
        await listening.add_listener("baton_events", lambda *given: heard.append(str(given[-1])))
        stale = at.open(stream_id)
        stale.put(encode_text("stale"))
        later = at.open(stream_id, epoch=2)
        later.put(encode_text("later"))
        stale.finish(Outcome.completed("stop"))
        await end(later)
        await until(lambda: any(item.terminal for payload in heard for item in unpack(payload, {stream_id.hex})))
        assert stale.lost is Lost.FENCED
        assert "stale" not in "".join(heard)
        assert [event["type"] for event in await events(connection, stream_id)] == ["text", "done"]


async def test_a_blocked_database_slows_the_generator_and_loses_nothing(dsn: str) -> None:
    yielded = 0
    async with connected(dsn) as connection, desk(dsn) as at:
        (stream_id,) = await claimed(connection)
        outbox = at.open(stream_id, max_events=10)

        async def generate() -> None:
            nonlocal yielded
            for number in range(100):
                outbox.put(encode_text(f"{number} "))
                yielded += 1
                if outbox.full:
                    await outbox.wait_for_room()
            outbox.finish(Outcome.completed("stop"))

        async with locked_log(dsn):
            generating = asyncio.create_task(generate())
            await until(lambda: outbox.full and outbox._flight != [])
            assert yielded == 20
            assert not generating.done()
        await outbox.closed.wait()
        await generating
        assert text(await events(connection, stream_id)) == "".join(f"{number} " for number in range(100))


async def test_bad_data_fails_only_its_own_stream(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        await connection.execute(
            "ALTER TABLE baton.batch ADD CONSTRAINT no_marker CHECK (position('MARKER'::bytea IN events) = 0) NOT VALID"
        )
        ids = await claimed(connection, 9)
        outboxes = [at.open(stream_id) for stream_id in ids]
        for outbox in outboxes:
            outbox.put(encode_text("MARKER" if outbox.stream_id in (ids[2], ids[3], ids[8]) else "fine"))
            outbox.finish(Outcome.completed("stop"))
        for outbox in outboxes:
            await outbox.closed.wait()
        for number, stream_id in enumerate(ids):
            stream = await row(connection, stream_id)
            bad = number in (2, 3, 8)
            assert (stream.status, stream.error_code) == (
                ("failed", "storage_rejected") if bad else ("completed", None)
            )
            assert len(await events(connection, stream_id)) == (1 if bad else 2)
        assert set(at.lost) == {ids[2], ids[3], ids[8]}
        assert set(at.lost.values()) == {Lost.REJECTED}


async def test_events_before_bad_data_stay(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        (stream_id,) = await claimed(connection)
        outbox = at.open(stream_id)
        outbox.put(encode_text("good"))
        await until(lambda: outbox.tail == 1)
        await connection.execute(
            "ALTER TABLE baton.batch ADD CHECK (position('MARKER'::bytea IN events) = 0) NOT VALID"
        )
        outbox.put(encode_text("MARKER"))
        await outbox.closed.wait()
        assert text(await events(connection, stream_id)) == "good"


async def test_a_refused_end_is_retried_until_the_database_accepts_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("baton.worker.writer.PUT_OFF_SECONDS", 0.05)
    async with connected(dsn) as connection, desk(dsn) as at:
        await connection.execute("ALTER TABLE baton.batch ADD CONSTRAINT refusing CHECK (epoch <> 1) NOT VALID")
        (stream_id,) = await claimed(connection)
        outbox = at.open(stream_id)
        outbox.put(encode_text("a"))
        await until(lambda: caplog.text.count("The database refused data") >= 3)
        # To a follower, a row that is closed without its terminal event would be a damaged log.
        assert not (await row(connection, stream_id)).ended
        await connection.execute("ALTER TABLE baton.batch DROP CONSTRAINT refusing")
        await outbox.closed.wait()
        assert (await row(connection, stream_id)).error_code == "storage_rejected"
        assert len(await events(connection, stream_id)) == 1


async def test_a_missing_partition_delays_only_its_own_streams(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    day = datetime.timedelta(days=3)
    async with connected(dsn) as connection, desk(dsn) as at:
        (today,) = await claimed(connection)
        later = UUID(int=today.int + (int(day.total_seconds() * 1000) << 80))
        await connection.execute("UPDATE baton.stream SET id = $1 WHERE id = $2", later, today)
        (today,) = await claimed(connection)
        outboxes = {stream_id: at.open(stream_id) for stream_id in (today, later)}
        for outbox in outboxes.values():
            outbox.put(encode_text("a"))
            outbox.finish(Outcome.completed("stop"))
        await outboxes[today].closed.wait()
        await until(lambda: "run `baton maintain`" in caplog.text)
        assert not outboxes[later].closed.is_set()
        await connection.execute("SELECT baton.create_partitions(4)")
        await outboxes[later].closed.wait()
        for stream_id in (today, later):
            assert (await row(connection, stream_id)).status == "completed"
            assert len(await events(connection, stream_id)) == 2


@pytest.mark.parametrize("last", [False, True], ids=["partial", "terminal"])
@pytest.mark.parametrize("outcome", ["committed", "rolled back"])
async def test_a_flush_with_an_unknown_outcome_is_written_once(dsn: str, outcome: str, last: bool) -> None:
    async with connected(dsn) as connection, Proxy(dsn) as proxy, desk(proxy.dsn) as at:
        other, *ids = await claimed(connection, 4)
        outboxes = [at.open(stream_id) for stream_id in ids]
        for outbox in outboxes:
            outbox.put(encode_text("a"))
        await until(lambda: all(outbox.tail == 1 for outbox in outboxes))
        # Both statements are prepared now, so that the reply that gets lost is that of an append.
        await end(at.open(other))
        async with locked_log(dsn):
            for outbox in outboxes:
                outbox.put(encode_text("b"))
                if last:
                    outbox.finish(Outcome.completed("stop"))
            await until(lambda: all(outbox._flight for outbox in outboxes))
            await until_waiting(connection)
            if outcome == "rolled back":
                await cut_writers(connection)
                await until(lambda: at.writer._connection is not None and at.writer._connection.is_closed())
            else:
                proxy.hold_replies()
        if outcome == "committed":
            await until_tail(connection, ids[0], 2)
            proxy.cut()
            proxy.resume()
        if not last:
            for outbox in outboxes:
                outbox.finish(Outcome.completed("stop"))
        for outbox in outboxes:
            await outbox.closed.wait()
        for stream_id in ids:
            assert text(await events(connection, stream_id)) == "ab"
            assert (await row(connection, stream_id)).status == "completed"
        assert at.lost == {}


async def end(outbox: Outbox) -> None:
    outbox.finish(Outcome.completed("stop"))
    await outbox.closed.wait()


async def until_waiting(connection: Connection) -> None:
    """Wait until the writer's append is in flight, behind a lock."""

    async def waits() -> bool:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'baton worker append' "
                "AND datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    await until(waits)


@pytest.mark.parametrize("in_flight", [False, True])
async def test_a_log_that_lost_its_end_ends_the_stream_without_a_gap(dsn: str, in_flight: bool) -> None:
    async with connected(dsn) as connection, Proxy(dsn) as proxy, desk(proxy.dsn) as at:
        hurt, whole = await claimed(connection, 2)
        outboxes = [at.open(hurt), at.open(whole)]
        for number in range(1, 5):
            for outbox in outboxes:
                outbox.put(encode_text(f"{number} "))
            await until(lambda number=number: all(outbox.tail == number for outbox in outboxes))  # type: ignore[misc]
        proxy.stall()
        if in_flight:
            outboxes[0].put(encode_text("5 "))
            await until(lambda: bool(outboxes[0]._flight))
        proxy.cut()
        await connection.execute("DELETE FROM baton.batch WHERE stream_id = $1 AND first_seq > 2", hurt)
        outboxes[1].put(encode_text("5 "))
        proxy.resume()
        await outboxes[0].closed.wait()
        outboxes[1].finish(Outcome.completed("stop"))
        await outboxes[1].closed.wait()
        assert at.lost == {hurt: Lost.REWOUND}
        assert text(await events(connection, hurt)) == "1 2 "
        assert (await row(connection, hurt)).error_code == "log_rewound"
        assert text(await events(connection, whole)) == "1 2 3 4 5 "


async def test_an_erased_stream_is_lost(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        (stream_id,) = await claimed(connection)
        outbox = at.open(stream_id)
        await connection.execute("DELETE FROM baton.stream")
        outbox.put(encode_text("a"))
        await outbox.closed.wait()
        assert at.lost == {stream_id: Lost.FENCED}
        assert at.metrics.fenced == 1


async def test_an_outage_of_many_retries_loses_nothing(dsn: str) -> None:
    async with connected(dsn) as connection, Proxy(dsn) as proxy, desk(proxy.dsn) as at:
        (stream_id,) = await claimed(connection)
        outbox = at.open(stream_id)
        for number in range(5):
            outbox.put(encode_text(f"{number} "))
            await until(lambda number=number: outbox.tail == number + 1)  # type: ignore[misc]
            proxy.cut()
        outbox.finish(Outcome.completed("stop"))
        await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == "0 1 2 3 4 "


async def test_a_claim_in_the_new_history_survives_a_loss_in_the_old_one(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn, lasted=False) as at:
        (older,) = await claimed(connection, 1)
        first = at.open(older, history=await history.read(connection))
        first.put(encode_text("a"))
        await until(lambda: first.tail == 1)
        await history.mark_restored(connection)
        (newer,) = await claimed(connection, 1)
        second = at.open(newer, history=await history.read(connection))
        second.put(encode_text("a"))
        await until(lambda: at.lost.get(older) is Lost.REWOUND and second.tail == 1)
        assert newer not in at.lost
        assert [event["type"] for event in await events(connection, newer)] == ["text"]


async def test_a_claim_before_the_first_flush_belongs_to_its_history(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        (stream_id,) = await claimed(connection, 1)
        outbox = at.open(stream_id, history=await history.read(connection))
        await history.mark_restored(connection)
        at.writer.doubt()
        outbox.put(encode_text("a"))
        await until(lambda: outbox.tail == 1)
        outbox.finish(Outcome.completed("stop"))
        await outbox.closed.wait()
        of = await connection.fetchval("SELECT history FROM baton.stream WHERE id = $1", stream_id)
        assert of == await history.read(connection)


async def test_states_count_in_the_size_of_a_statement(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STATEMENT_BYTES", 1000)
    async with connected(dsn) as connection, desk(dsn) as opened:
        stream_ids = await claimed(connection, 2)
        for stream_id in stream_ids:
            outbox = opened.open(stream_id)
            outbox.put(encode_text("a"))
            outbox.save(b'"' + b"x" * 800 + b'"')
        for stream_id in stream_ids:
            await until_tail(connection, stream_id, 1)
        assert sorted(map(len, await flushes(connection))) == [1, 1]
