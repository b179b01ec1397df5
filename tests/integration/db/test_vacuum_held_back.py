"""While an old snapshot stops vacuum, statements must not read more with each stream, state or step that has passed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from bench.buffers import Counted
from tests.integration.db.test_streams import NEW, is_full
from tests.support.external import opened, request, texts
from tests.support.hints import sending
from tests.support.logbook import claim_as, connected, employ, queue_many, until, until_after

from baton.db import (
    event_log,
    queue_lines,
    rate_buckets,
    steps,
    stream_creation,
    stream_queue,
    stream_states,
    worker_rows,
)
from baton.db.external_appends import Appended
from baton.db.live_counts import MARK_EVERY, LiveCounts
from baton.db.postgres import Connection, connect, pool
from baton.db.queue_lines import Line
from baton.db.queue_watermark import CHECK_SECONDS, TRAIL_SECONDS, QueueWatermark
from baton.db.rate_buckets import Rate
from baton.db.stream_queue import Claim
from baton.db.stream_states import State
from baton.errors import TooManyStreams
from baton.events import encode_text
from baton.pod.append_queue import AppendQueue, _Waiting
from baton.settings import Settings

WORKER = UUID(int=1)
PASSED = 20_000
TENANT_LIMIT = 1_000
# From a create that leaves a mark to the next that leaves one.
MARK_MILLISECONDS = MARK_EVERY // timedelta(milliseconds=1) + 1
# After five executions Postgres may change to a plan for any arguments.
WARM_UP = 10
SAVES = 1_000
# Ids of streams that were created within the last hour, one each 100 ms, and how they passed through the queue.
QUEUED = """
INSERT INTO baton.stream (id, generator, input, on_worker_lost, epoch, queued_at, created_at, queue_position)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || substr(md5(i::text), 1, 20))::uuid,
       'test', '1', 'retry', $2, at, at, at
FROM generate_series(1, $1) AS i, LATERAL (SELECT now() - make_interval(secs => 3600 - i * 0.1) AS at) AS moment
"""
STARTED = "UPDATE baton.stream SET status = 'running', worker_id = $1, epoch = epoch + 1 WHERE status = 'queued'"
ENDED = "UPDATE baton.stream SET status = 'completed', worker_id = NULL WHERE status = 'running'"


@asynccontextmanager
async def old_snapshot(dsn: str) -> AsyncIterator[None]:
    async with connected(dsn) as holding, holding.transaction(isolation="repeatable_read", readonly=True):
        await holding.execute("SELECT FROM baton.stream LIMIT 1")
        yield


class Pair:
    """The reads of the queue by a worker and a pod."""

    def __init__(self, connection: Any) -> None:
        self.counted = Counted(connection)
        self._connection = cast(Connection, self.counted)
        self._now = 0.0
        self.floor = QueueWatermark(clock=lambda: self._now)
        self.counts = LiveCounts()

    async def look(self) -> None:
        self._now += TRAIL_SECONDS
        await self.floor.update(lambda since: queue_lines.first(self._connection, since, ["test"]))

    async def claim(self) -> None:
        place = await worker_rows.place(self.counted._connection, WORKER)
        await stream_queue.claim(self._connection, WORKER, ["test"], 5, place=place, since=self.floor.since)

    async def overdue(self) -> None:
        await stream_queue.overdue(self._connection, 600, since=self.floor.since)

    async def queue_state(self) -> None:
        await stream_queue.state(self._connection, self.floor.since)

    async def create(self) -> None:
        line = Line(["test"], self.floor.since)
        await stream_creation._insert(self._connection, NEW, None, TENANT_LIMIT, self.counts, line=line)

    async def take(self) -> None:
        assert await rate_buckets.take_in(self._connection, "", "caller", Rate(1e6, 100_000)) is None

    async def owned(self) -> None:
        await worker_rows.owned(self._connection, WORKER, [])

    async def cost(self, action: Callable[[], Awaitable[None]]) -> int:
        self.counted.buffers = 0
        await action()
        return self.counted.buffers


async def test_an_old_snapshot_makes_queue_reads_no_larger(dsn: str, subtests: pytest.Subtests) -> None:
    async with connected(dsn) as connection, old_snapshot(dsn):
        await employ(connection, WORKER)
        pair = Pair(connection)
        await pass_through(connection, 10)
        actions = (pair.create, pair.claim, pair.overdue, pair.queue_state, pair.owned)
        for _ in range(3):
            await pair.create()
            await pair.look()
        calm = [await pair.cost(action) for action in actions]
        await pass_through(connection, PASSED)
        await pass_through(connection, PASSED // 10, epoch=1)
        # What each of them has done before decides what it knows; the first look after a pause reads what passed in it.
        for _ in range(3):
            await pair.create()
            await pair.look()
        for action, before in zip(actions, calm, strict=True):
            with subtests.test(action.__name__):
                assert await pair.cost(action) <= 2 * before + 20


async def pass_through(connection: Connection, count: int, epoch: int = 0) -> None:
    """Queue, claim and end streams, while one of another generator stays queued."""
    await connection.execute(QUEUED, count, epoch)
    await connection.execute(STARTED, WORKER)
    await connection.execute(ENDED)


async def test_a_bucket_costs_what_its_last_second_costs(dsn: str) -> None:
    async with connected(dsn) as connection, old_snapshot(dsn):
        pair = Pair(connection)
        assert await rate_buckets.take_in(connection, "", "caller", Rate(1e6, 100_000)) is None
        calm = await pair.cost(pair.take)
        for second in range(1, 3_000):
            await connection.execute("UPDATE baton.token_bucket SET slot = slot + 1 + 0 * $1", second)
        assert await pair.cost(pair.take) <= 2 * calm + 10


async def test_a_worker_finds_the_current_version_of_its_row(dsn: str) -> None:
    async with connected(dsn) as connection, old_snapshot(dsn):
        await employ(connection, WORKER)
        await queue_many(connection, 10)
        pair = Pair(connection)
        calm = await pair.cost(pair.claim)
        for _ in range(3_000):
            await worker_rows.heartbeat(connection, WORKER)
        assert await pair.cost(pair.claim) <= calm + 10


class Saving:
    """A running stream that saves: each save replaces the one before it."""

    def __init__(self, connection: Any, claim: Claim) -> None:
        self._connection = connection
        self._claim = claim
        self._seq = 0
        self._saved: int | None = None

    def _state(self) -> State:
        state = State(self._seq, b'"' + b"x" * 1022 + b'"', None, self._saved)
        self._saved = self._seq
        return state

    async def append(self) -> None:
        """Save with a batch."""
        self._seq += 1
        fence, events = self._claim.fence, encode_text("x")
        item = event_log.Append(
            *(fence.stream_id, fence.epoch, self._seq, self._seq, events, None, fence.claim_token), self._state()
        )
        assert await event_log.append(self._connection, [item])

    async def save_alone(self) -> None:
        """Save without one. The number must be another one each time, as after batches."""
        self._seq += 1
        assert await stream_states.save_alone(self._connection, [(self._claim.fence, self._state())], None)

    async def read(self) -> None:
        """Read the newest state."""
        assert await stream_states.read(self._connection, self._claim.stream_id)

    async def keep_step(self) -> None:
        """Keep the result of a step."""
        self._seq += 1
        assert await steps.keep(self._connection, self._claim.fence, ("s", b"digest", self._seq), b"1")


@pytest.mark.parametrize("name", ["append", "save_alone", "read", "keep_step"])
async def test_a_save_reads_no_earlier_ones(dsn: str, name: str) -> None:
    """With the plans that connections keep, which were made while the tables were small."""
    async with by_index(dsn) as connection, old_snapshot(dsn):
        await employ(connection, WORKER)
        await queue_many(connection, 20)
        claims = await claim_as(connection, WORKER, ["test"], 20)
        for claim in claims:
            await Saving(connection, claim).save_alone()
        await connection.execute("ANALYZE baton.stream, baton.stream_state, baton.step")
        saving = Saving(connection, claims[0])
        if name == "read":
            await saving.save_alone()
        act, grow = getattr(saving, name), saving.save_alone if name == "read" else getattr(saving, name)
        for _ in range(WARM_UP):
            await act()
        calm = await blocks_of(connection, act)
        for _ in range(SAVES):
            await grow()
        assert await blocks_of(connection, act) <= 1.5 * calm + 10


@asynccontextmanager
async def by_index(dsn: str) -> AsyncIterator[Connection]:
    """A connection like the ones of a worker that save, while autovacuum leaves the tables that they count alone.

    What autovacuum reads counts as blocks of its table, too.
    """
    connection = await connect(dsn, by_index=True)
    for table in ("stream_state", "step", "external_stream", "producer"):
        await connection.execute(f"ALTER TABLE baton.{table} SET (autovacuum_enabled = false)")
    yield connection
    await connection.close()


async def blocks_of(connection: Connection, action: Callable[[], Awaitable[None]], *tables: str) -> float:
    """Count the blocks of tables, by default those for states and steps, that an action looks at, on average."""
    counted = """
        SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint FROM pg_statio_all_tables
        WHERE schemaname = 'baton' AND relname = ANY ($1)
    """
    names = tables or ("stream_state", "step")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    before: int = await connection.fetchval(counted, names)
    for _ in range(10):
        await action()
    await connection.execute("SELECT pg_stat_force_next_flush()")
    after: int = await connection.fetchval(counted, names)
    return (after - before) / 10


async def test_a_stream_that_commits_late_is_claimed(dsn: str) -> None:
    """It lies below the watermark, which moves back to it."""
    clock = 0.0
    floor = QueueWatermark(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as late:
        await employ(connection, WORKER)
        transaction = late.transaction()
        await transaction.start()
        (stream_id,) = await queue_many(late, 1)

        async def is_below_the_watermark() -> bool:
            nonlocal clock
            clock += CHECK_SECONDS
            await floor.update(lambda since: queue_lines.first(connection, since))
            position: datetime = await late.fetchval("SELECT queue_position FROM baton.stream")
            return floor.since > position

        await until(is_below_the_watermark)
        await transaction.commit()
        place = await worker_rows.place(connection, WORKER)
        assert not await stream_queue.claim(connection, WORKER, ["test"], 1, place=place, since=floor.since)
        clock += 2
        await floor.update(lambda since: queue_lines.first(connection, since))
        (claim,) = await stream_queue.claim(connection, WORKER, ["test"], 1, place=place, since=floor.since)
        assert claim.stream_id == stream_id


async def test_a_sweep_finds_streams_stamped_before_a_clock_change(dsn: str) -> None:
    clock = 0.0
    floor = QueueWatermark(clock=lambda: clock)
    async with connected(dsn) as connection:
        await employ(connection, WORKER)
        for _ in range(2):
            await floor.update(lambda since: queue_lines.first(connection, since))
            clock += 11
        await connection.execute(QUEUED, 1, 0)
        await floor.update(lambda since: queue_lines.first(connection, since))
        assert (await stream_queue.state(connection, floor.since)).total.streams == 0
        clock += 60
        await floor.update(lambda since: queue_lines.first(connection, since))
        assert (await stream_queue.state(connection, floor.since)).total.streams == 1


async def test_a_locked_stream_stays_above_the_watermark(dsn: str) -> None:
    """A claim skips the locked row, and skipped rows do not raise the watermark."""
    clock = 0.0
    floor = QueueWatermark(clock=lambda: clock)
    async with connected(dsn) as connection, connected(dsn) as other:
        await employ(connection, WORKER)
        await connection.execute(QUEUED, 1, 0)
        async with other.transaction():
            await other.execute("SELECT FROM baton.stream FOR UPDATE")
            await floor.update(lambda since: queue_lines.first(connection, since))
            assert await claim_as(connection, WORKER, ["test"], 1) == []
            clock += TRAIL_SECONDS
            await floor.update(lambda since: queue_lines.first(connection, since))
            clock += TRAIL_SECONDS
        place = await worker_rows.place(connection, WORKER)
        assert len(await stream_queue.claim(connection, WORKER, ["test"], 1, place=place, since=floor.since)) == 1


async def test_requeued_streams_are_claimed_first_and_at_once(dsn: str) -> None:
    clock = 0.0
    floor = QueueWatermark(clock=lambda: clock)
    async with connected(dsn) as connection:
        (given_back,) = await queue_many(connection, 1)
        (claim,) = await claim_as(connection, WORKER, ["test"], 1)
        await queue_many(connection, 3)
        await floor.update(lambda since: queue_lines.first(connection, since))
        clock += 10
        assert await stream_queue.requeue(connection, claim.fence)
        place = await worker_rows.place(connection, WORKER)
        (first,) = await stream_queue.claim(connection, WORKER, ["test"], 1, place=place, since=floor.since)
        assert (first.stream_id, first.epoch) == (given_back, 3)
        assert len(await stream_queue.claim(connection, WORKER, ["test"], 9, place=place, since=floor.since)) == 3


@pytest.mark.parametrize("most", [5, 150])
async def test_pods_with_remembered_counts_stay_within_the_limit(dsn: str, most: int) -> None:
    """While streams end and others are created on both pods, exactly as many as the limit are live."""
    async with pool(dsn, size=8, timeout_seconds=10) as one, pool(dsn, size=8, timeout_seconds=10) as two:
        pods = (one, LiveCounts()), (two, LiveCounts())
        for ended in (0, 1, most // 2, most, 3):
            async with one.acquire() as connection:
                await connection.execute(
                    "UPDATE baton.stream SET status = 'completed' WHERE id IN "
                    "(SELECT id FROM baton.stream WHERE status = 'queued' ORDER BY random() LIMIT $1)",
                    ended,
                )
            creates = []
            for number in range(most + 20):
                opened, counts = pods[number % 2]
                creates.append(stream_creation.create(opened, NEW, max_live=most, counts=counts))
            results = await asyncio.gather(*creates, return_exceptions=True)
            assert [result for result in results if not is_full(result)] or not ended
            assert await one.fetchval("SELECT count(*) FROM baton.stream WHERE status = 'queued'") == most


async def test_a_create_that_commits_late_is_counted(dsn: str) -> None:
    """The high watermark waits for its transaction."""
    async with pool(dsn, size=4, timeout_seconds=10) as opened, connected(dsn) as late:
        counts = LiveCounts()
        created, _ = await stream_creation.create(opened, NEW, max_live=200, counts=counts)
        transaction = late.transaction()
        await transaction.start()
        await queue_many(late, 190)
        for _ in range(5):
            await until_after(opened, created.id, MARK_MILLISECONDS)
            created, _ = await stream_creation.create(opened, NEW, max_live=200, counts=counts)
        await transaction.commit()
        for _ in range(4):
            await stream_creation.create(opened, NEW, max_live=200, counts=counts)
        with pytest.raises(TooManyStreams, match="200 answers"):
            await stream_creation.create(opened, NEW, max_live=200, counts=counts)


async def test_the_split_follows_the_creates(dsn: str) -> None:
    """A long stream does not hold the split back, and ended streams are not counted near the limit."""
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        counts = LiveCounts()
        first, _ = await stream_creation.create(opened, NEW, max_live=100, counts=counts)
        stream = first
        for _ in range(20):
            await until_after(opened, stream.id, MARK_MILLISECONDS)
            stream, _ = await stream_creation.create(opened, NEW, max_live=100, counts=counts)
        plan = counts.plan("")
        assert first.id < plan.split <= stream.id
        assert plan.unchecked > 5
        await opened.execute("UPDATE baton.stream SET status = 'completed' WHERE id <> $1", first.id)
        for _ in range(99):
            await stream_creation.create(opened, NEW, max_live=100, counts=counts)
        with pytest.raises(TooManyStreams):
            await stream_creation.create(opened, NEW, max_live=100, counts=counts)
        assert (await opened.fetchval("SELECT count(*) FROM baton.stream WHERE status = 'queued'")) == 100


async def test_tenants_are_counted_apart(dsn: str) -> None:
    async with pool(dsn, size=2, timeout_seconds=10) as opened:
        counts = LiveCounts()
        for tenant in ("a", "b"):
            new = dataclasses.replace(NEW, tenant=tenant)
            for _ in range(3):
                await stream_creation.create(opened, new, max_live=3, counts=counts)
            with pytest.raises(TooManyStreams):
                await stream_creation.create(opened, new, max_live=3, counts=counts)


async def test_an_append_reads_a_block_for_many_earlier_ones(dsn: str) -> None:
    """Each append of a producer adds a version to two rows: of its stream, and of its own."""
    async with by_index(dsn) as connection, old_snapshot(dsn):
        queue, stream_id = AppendQueue(Settings(database_url=dsn), sending(dsn)), (await opened(dsn)).stream_id
        seq = 0

        async def act() -> None:
            nonlocal seq
            item = _Waiting(
                request(stream_id, texts("x"), by=("p", 0, seq)), asyncio.get_running_loop().create_future()
            )
            await queue._answer(connection, [item])
            assert isinstance(item.answer.result(), Appended)
            seq += 1

        for _ in range(WARM_UP):
            await act()
        calm = await blocks_of(connection, act, "external_stream", "producer")
        assert calm > 0
        for _ in range(SAVES):
            await act()
        assert await blocks_of(connection, act, "external_stream", "producer") <= calm + SAVES / 10
