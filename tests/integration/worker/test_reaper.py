"""The reaper: which workers it declares dead, and what happens to their streams."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.support.logbook import claimed, connected, events, row

from baton.db import event_log, stream_queue, worker_rows
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Connection
from baton.events import encode_text
from baton.worker.reaper import Reaper, release

LEASE_SECONDS = 10.0


async def with_stream(connection: Connection) -> tuple[UUID, UUID]:
    """A worker, and a stream that it runs."""
    (stream_id,) = await claimed(connection)
    worker_id = await worker_rows.register(connection, "w", ["test"], 1)
    await connection.execute("UPDATE baton.stream SET worker_id = $1, attempts = 1 WHERE id = $2", worker_id, stream_id)
    return worker_id, stream_id


class Watching:
    """A reaper with a clock that only the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.reaper = Reaper(lease_seconds=LEASE_SECONDS, max_attempts=3, clock=lambda: self.seconds)

    async def check(self, connection: Connection, own_id: UUID) -> None:
        await self.reaper.check(connection, own_id, await worker_rows.counters(connection))

    def pass_lease(self) -> None:
        self.seconds += LEASE_SECONDS + 1


async def test_a_worker_is_dead_once_its_counter_stands_still_for_a_lease(dsn: str) -> None:
    async with connected(dsn) as connection:
        own_id = await worker_rows.register(connection, "own", ["test"], 1)
        dead_id, dead_stream = await with_stream(connection)
        alive_id, alive_stream = await with_stream(connection)
        watching = Watching()
        await watching.check(connection, own_id)
        await watching.check(connection, own_id)
        assert set(await worker_rows.counters(connection)) == {own_id, dead_id, alive_id}
        watching.pass_lease()
        assert await worker_rows.heartbeat(connection, alive_id) is not None
        await watching.check(connection, own_id)
        assert set(await worker_rows.counters(connection)) == {own_id, alive_id}
        assert (await row(connection, dead_stream)).status == "queued"
        assert (await row(connection, alive_stream)).status == "running"
        assert await worker_rows.heartbeat(connection, dead_id) is None


async def test_after_an_interruption_the_reaper_starts_to_watch_again(dsn: str) -> None:
    async with connected(dsn) as connection:
        own_id = await worker_rows.register(connection, "own", ["test"], 1)
        other_id, _ = await with_stream(connection)
        watching = Watching()
        await watching.check(connection, own_id)
        watching.pass_lease()
        watching.reaper.forget()
        await watching.check(connection, own_id)
        assert other_id in await worker_rows.counters(connection)
        watching.pass_lease()
        await watching.check(connection, own_id)
        assert other_id not in await worker_rows.counters(connection)


async def test_streams_whose_worker_has_no_row_are_found(dsn: str) -> None:
    async with connected(dsn) as connection:
        own_id = await worker_rows.register(connection, "own", ["test"], 1)
        _, stream_id = await with_stream(connection)
        _, own_stream = await with_stream(connection)
        await connection.execute("UPDATE baton.stream SET worker_id = $1 WHERE id = $2", own_id, own_stream)
        await connection.execute("UPDATE baton.stream SET worker_id = $1 WHERE id = $2", UUID(int=9), stream_id)
        (lost,) = await worker_rows.orphans(connection, own_id)
        assert lost.stream_id == stream_id


async def test_orphans_are_released_even_if_no_worker_dies(dsn: str) -> None:
    async with connected(dsn) as connection:
        own_id = await worker_rows.register(connection, "own", ["test"], 1)
        _, stream_id = await with_stream(connection)
        await connection.execute("UPDATE baton.stream SET worker_id = $1 WHERE id = $2", UUID(int=9), stream_id)
        watching = Watching()
        await watching.check(connection, own_id)
        assert (await row(connection, stream_id)).status == "running"
        watching.pass_lease()
        await watching.check(connection, own_id)
        assert (await row(connection, stream_id)).status == "queued"


@pytest.mark.parametrize(
    ("policy", "emitted", "attempts", "status"),
    [
        ("retry", 0, 1, "queued"),
        ("retry", 2, 2, "queued"),
        ("retry", 2, 3, "failed"),
        ("fail", 0, 1, "queued"),
        ("fail", 0, 3, "failed"),
        ("fail", 2, 1, "failed"),
    ],
)
async def test_a_lost_stream_is_retried_or_ends_with_its_events(
    dsn: str, policy: str, emitted: int, attempts: int, status: str
) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for seq in range(1, emitted + 1):
            await event_log.append(connection, [Append(stream_id, 1, seq, seq, encode_text("a"))])
        await release(connection, worker_rows.Orphan(Fence(stream_id, 1), attempts, policy), max_attempts=3)
        stream = await row(connection, stream_id)
        assert stream.status == status
        assert stream.epoch == 2
        found = await events(connection, stream_id)
        if status == "failed":
            assert found[-1]["error"]["code"] == "worker_lost"
            assert found[-1]["error"]["message"].endswith("tried 3 times." if attempts == 3 else "not be finished.")
        assert [event["type"] for event in found].count("text") == emitted


async def test_a_stream_with_a_newer_claim_is_left_alone(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        await stream_queue.requeue(connection, Fence(stream_id, 1))
        for policy in ("retry", "fail"):
            await release(connection, worker_rows.Orphan(Fence(stream_id, 1), 3, policy), max_attempts=3)
        assert ((await row(connection, stream_id)).status, (await row(connection, stream_id)).epoch) == ("queued", 2)
