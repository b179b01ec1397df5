"""What a writer appends again after a loss: everything or nothing of a stream's end, under its claim, without a gap.

The loss is a deletion, and a marker that starts a new history. `faults/test_failover.py` has real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from tests.support.hints import sending
from tests.support.logbook import claimed, connected, ended, events, text, until

from baton.chaos.proxy import Proxy
from baton.db import history
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Connection
from baton.events import encode_text
from baton.observability.metrics import WorkerMetrics
from baton.outcome import Outcome
from baton.worker.appending_again import append_again
from baton.worker.end_hook import EndHook, Function
from baton.worker.hooked_ends import HookedEnds
from baton.worker.outbox import Lost, Outbox
from baton.worker.recent_batches import RecentBatches
from baton.worker.writer import Writer

STATES = "SELECT * FROM baton.stream_state ORDER BY after_seq"
LIVE_AGAIN = "UPDATE baton.stream SET status = 'running', finished_at = NULL WHERE id = ANY ($1)"


class Desk:
    """A writer that keeps what it flushes, and says at a loss whether its lease lasted."""

    def __init__(self, dsn: str, *, lasted: bool, hook: Function | None = None) -> None:
        self.metrics = WorkerMetrics()
        self.hints = sending(dsn, count=self.metrics.count_notifications)
        self.ends = None
        if hook is not None:
            made = EndHook(hook, timeout_seconds=60, metrics=self.metrics)
            self.ends = HookedEnds(dsn, made, hints=self.hints, metrics=self.metrics)
        self.recent = RecentBatches(60, 1 << 20)

        async def lease_lasted(_connection: Connection, _history: str) -> bool:
            return lasted

        self.writer = Writer(
            dsn,
            window_seconds=0.005,
            hints=self.hints,
            metrics=self.metrics,
            lease_lasted=lease_lasted,
            recent=self.recent,
            ends=self.ends,
        )
        self.lost: dict[UUID, Lost] = {}

    async def write(
        self, connection: Connection, ids: Collection[UUID], texts: str, *, end: bool = False
    ) -> list[Outbox]:
        """Write a batch of each text to each stream."""
        current = await history.read(connection)
        outboxes = []
        for stream_id in ids:
            outbox = Outbox(
                stream_id,
                1,
                0,
                on_ready=self.writer.ready,
                on_lost=lambda lost, stream_id=stream_id: self.lost.update({stream_id: lost}),  # type: ignore[misc]
                max_events=100,
                history=current,
            )
            self.writer.add(outbox)
            outboxes.append(outbox)
        for number, item in enumerate(texts, 1):
            for outbox in outboxes:
                outbox.put(encode_text(item))
            await until(lambda number=number: all(outbox.tail == number for outbox in outboxes))  # type: ignore[misc]
        if end:
            for outbox in outboxes:
                self.end(outbox)
            for outbox in outboxes:
                await outbox.closed.wait()
                self.writer.remove(outbox)
        return outboxes

    def end(self, outbox: Outbox) -> None:
        outbox.finish(Outcome.completed("stop"))


@asynccontextmanager
async def desk(dsn: str, *, lasted: bool = True, hook: Function | None = None) -> AsyncIterator[Desk]:
    opened = Desk(dsn, lasted=lasted, hook=hook)
    services: list[Any] = [opened.writer, opened.hints, opened.ends]
    tasks = [asyncio.create_task(service.run()) for service in services if service is not None]
    try:
        yield opened
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def lose(connection: Connection, at: Desk, ids: Collection[UUID], after: int) -> None:
    """Lose what these streams have after an event, and let the writer notice."""
    async with connection.transaction():
        await connection.execute("DELETE FROM baton.batch WHERE stream_id = ANY ($1) AND last_seq > $2", ids, after)
        await connection.execute(LIVE_AGAIN, ids)
        await history.mark_restored(connection)
    at.writer.doubt()


async def adopted(connection: Connection, stream_id: UUID) -> bool:
    found: bool = await connection.fetchval(
        "SELECT history = baton.current_history() FROM baton.stream WHERE id = $1", stream_id
    )
    return found


async def test_the_lost_end_comes_back_for_running_and_for_ended_streams(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        running, over = await claimed(connection, 2)
        (outbox,) = await at.write(connection, [running], "abcd")
        await at.write(connection, [over], "abcd", end=True)
        before = await connection.fetch("SELECT * FROM baton.batch ORDER BY stream_id, first_seq")
        # Twice: what came back can be lost again.
        for _ in range(2):
            await lose(connection, at, [running, over], 1)
            assert (await ended(connection, over)).status == "completed"
            await until(lambda: adopted(connection, running))
            assert before == await connection.fetch("SELECT * FROM baton.batch ORDER BY stream_id, first_seq")
        assert at.metrics.appended_again == 2 * (3 + 4)
        outbox.put(encode_text("e"))
        at.end(outbox)
        await outbox.closed.wait()
        assert text(await events(connection, running)) == "abcde"
        assert not at.lost


async def test_the_end_is_kept_while_the_hook_runs_again(dsn: str) -> None:
    goes_on, runs = asyncio.Event(), asyncio.Event()
    goes_on.set()

    async def hook(_connection: object, _answer: object) -> None:
        runs.set()
        await goes_on.wait()

    async with connected(dsn) as connection, desk(dsn, hook=hook) as at:
        (over,) = await claimed(connection, 1)
        (outbox,) = await at.write(connection, [over], "abcd", end=True)
        goes_on.clear()
        runs.clear()
        await lose(connection, at, [over], 1)
        await runs.wait()
        assert at.metrics.appended_again == 3
        # Or the worker gives its stream back, and another one ends it as rewound.
        assert at.writer.has_end(outbox.fence)
        goes_on.set()
        assert (await ended(connection, over)).status == "completed"
        assert text(await events(connection, over)) == "abcd"


async def test_nothing_comes_back_under_another_claim(dsn: str) -> None:
    """Only the token shows it: the epoch went back with the row, and the next claim has it again."""
    async with connected(dsn) as connection, desk(dsn) as at:
        running, over = await claimed(connection, 2)
        await at.write(connection, [running], "abc")
        await at.write(connection, [over], "abc", end=True)
        await connection.execute("UPDATE baton.stream SET claim_token = gen_random_uuid()")
        await lose(connection, at, [running, over], 1)
        await until(lambda: at.lost.get(running) is Lost.FENCED)
        assert await connection.fetchval("SELECT max(last_seq) FROM baton.batch") == 1
        assert not at.writer.has_end(Fence(over, 1))


async def test_nothing_comes_back_if_another_worker_may_have_written(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn, lasted=False) as at:
        running, over = await claimed(connection, 2)
        await at.write(connection, [running], "abc")
        await at.write(connection, [over], "abc", end=True)
        await lose(connection, at, [running, over], 1)
        assert (await ended(connection, running)).error_code == "log_rewound"
        assert text(await events(connection, running)) == "a"
        assert text(await events(connection, over)) == "a"
        assert not at.writer.has_end(Fence(over, 1))


async def test_a_stream_that_was_given_away_is_not_kept(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        given, fenced = await claimed(connection, 2)
        outboxes = await at.write(connection, [given, fenced], "abc")
        outboxes[1].lose(Lost.FENCED)
        for outbox in outboxes:
            assert at.recent.of(outbox.fence) is not None
            at.writer.remove(outbox)
            assert at.recent.of(outbox.fence) is None


async def test_a_connection_that_fails_in_between_leaves_no_gap(dsn: str) -> None:
    async with connected(dsn) as connection, Proxy(dsn) as proxy, desk(proxy.dsn) as at:
        ids = await claimed(connection, 3)
        await at.write(connection, ids, "abcdef" * 5)
        proxy.stall()
        await lose(connection, at, ids, 1)
        proxy.resume()
        # Somewhere in the 29 statements that append again.
        for _ in range(5):
            before = at.metrics.flush_failures
            await until(lambda: connection.fetchval("SELECT count(*) > 5 FROM baton.batch"))
            proxy.cut()
            await until(lambda before=before: at.metrics.flush_failures > before or settled(connection))  # type: ignore[misc]
        await until(lambda: settled(connection))
        for stream_id in ids:
            assert text(await events(connection, stream_id)) == "abcdef" * 5
        assert not at.lost


async def settled(connection: Connection) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT bool_and(history = baton.current_history()) AND count(*) > 0 FROM baton.stream"
        )
    )


async def test_after_a_batch_that_is_refused_no_later_one_is_written(dsn: str) -> None:
    async with connected(dsn) as connection:
        refused, other = await claimed(connection, 2)
        current = await history.read(connection)

        def batches(of: UUID, first_epoch: int) -> list[Append]:
            epochs = (first_epoch, 1, 1)
            return [Append(of, epoch, seq, seq, encode_text("x")) for seq, epoch in enumerate(epochs, 1)]

        written = await append_again(connection, [batches(refused, 7), batches(other, 1)], current)
        assert [(item.stream_id, item.first_seq) for item in written] == [(other, 1), (other, 2), (other, 3)]
        assert await events(connection, refused) == []
        assert text(await events(connection, other)) == "xxx"


async def test_a_stream_whose_row_is_gone_does_not_come_back(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        (over,) = await claimed(connection, 1)
        await at.write(connection, [over], "abc", end=True)
        assert at.writer.has_end(Fence(over, 1))
        assert not at.writer.has_end(Fence(over, 1, uuid4()))
        await connection.execute("DELETE FROM baton.batch")
        await connection.execute("DELETE FROM baton.stream")
        at.writer.doubt()
        await until(lambda: not at.writer.has_end(Fence(over, 1)))
        assert await connection.fetchval("SELECT count(*) FROM baton.batch") == 0


async def test_states_come_back_with_their_batches(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        (running,) = await claimed(connection, 1)
        (outbox,) = await at.write(connection, [running], "ab")
        for number, item in enumerate("cde", 3):
            outbox.put(encode_text(item))
            outbox.save(b'{"after":%d}' % number)
            await outbox.flushed()
        # One without a batch.
        outbox.save(b'{"after":"all"}')
        await outbox.flushed()
        saved = "SELECT after_seq, state FROM baton.stream_state"
        before = await connection.fetch(saved)
        assert [tuple(row) for row in before] == [(5, b'{"after":"all"}')]
        # As it was after the third event.
        await connection.execute("UPDATE baton.stream_state SET after_seq = 3, state = $1", b'{"after":3}')
        await lose(connection, at, [running], 3)
        await until(lambda: adopted(connection, running))
        assert await connection.fetch(saved) == before
        assert text(await events(connection, running)) == "abcde"


async def test_a_lost_state_without_new_events_is_saved_again(dsn: str) -> None:
    async with connected(dsn) as connection, desk(dsn) as at:
        fresh, begun = await claimed(connection, 2)
        (first,) = await at.write(connection, [fresh], "")
        (second,) = await at.write(connection, [begun], "ab")
        for outbox in (first, second):
            outbox.save(b'{"number":1}')
            await outbox.flushed()
            outbox.save(b'{"number":2}')
            await outbox.flushed()
        before = await connection.fetch(STATES)
        async with connection.transaction():
            await connection.execute("DELETE FROM baton.stream_state")
            await history.mark_restored(connection)
        at.writer.doubt()
        for stream_id in (fresh, begun):
            await until(lambda stream_id=stream_id: adopted(connection, stream_id))  # type: ignore[misc]
        assert await connection.fetch(STATES) == before
        assert [(row["after_seq"], row["state"]) for row in before] == [(0, b'{"number":2}'), (2, b'{"number":2}')]
        # No batch was lost.
        assert at.metrics.appended_again == 0
