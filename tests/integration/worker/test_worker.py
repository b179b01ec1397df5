"""The worker: claiming, keeping its lease, being declared dead, taking over, and leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from tests.support.logbook import (
    ANSWER,
    DEADLINE_SECONDS,
    answer,
    claim_as,
    connected,
    ended,
    events,
    queue,
    queue_many,
    row,
    settings,
    snapshot,
    tail,
    text,
    until,
    until_tail,
    working,
)

from baton.chaos.proxy import Proxy
from baton.db import event_log, notifications
from baton.db.postgres import Connection
from baton.errors import DatabaseUnreachable, SchemaMismatch
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.outcome import Outcome
from baton.worker.workers import Workers


class Held:
    """Yields two words, and waits before the last one until it is released. Counts its starts."""

    def __init__(self) -> None:
        self.started = self.stopped = 0
        self.release = asyncio.Event()

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        self.started += 1
        try:
            yield "who"
            yield " goes"
            await self.release.wait()
            yield " there"
        except asyncio.CancelledError:
            self.stopped += 1
            raise


async def has_ended(connection: Connection, count: int) -> bool:
    return bool(await connection.fetchval("SELECT count(*) = $1 FROM baton.stream WHERE status = 'completed'", count))


async def until_all_completed(connection: Connection, count: int) -> None:
    await until(lambda: has_ended(connection, count))


async def test_a_thousand_streams_at_once_complete_without_a_gap(dsn: str) -> None:
    count, running, most = 1000, 0, 0
    all_run = asyncio.Event()

    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == count:
            all_run.set()
        yield f"{request.input}:"
        await all_run.wait()
        for number in range(20):
            yield f" {number}"
            await asyncio.sleep(0)

    async with connected(dsn) as connection:
        ids = await queue_many(connection, count)
        async with working(dsn, generate, worker_concurrency=count, flush_interval_milliseconds=20):
            await until_all_completed(connection, count)
        for stream_id in ids[::50]:
            await events(connection, stream_id)
        gaps = await connection.fetchval(
            "SELECT count(*) FROM (SELECT first_seq - lag(last_seq, 1, 0) "
            "OVER (PARTITION BY stream_id ORDER BY first_seq) AS step FROM baton.batch) AS steps WHERE step <> 1"
        )
        answers = await connection.fetch(
            "SELECT string_agg(data ->> 'delta', '' ORDER BY seq), count(*) FROM baton.event GROUP BY stream_id"
        )
    assert most == count
    assert gaps == 0
    rest = "".join(f" {number}" for number in range(20))
    assert {item[0] for item in answers} == {f"{number}:{rest}" for number in range(1, count + 1)}
    assert {item[1] for item in answers} == {22}


async def test_a_worker_runs_no_more_streams_than_it_has_slots(dsn: str) -> None:
    running = most = 0

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield "a"
        await asyncio.sleep(0)
        running -= 1

    async with connected(dsn) as connection, working(dsn, generate, worker_concurrency=3):
        await queue_many(connection, 20)
        await until_all_completed(connection, 20)
    assert most == 3


async def test_a_worker_claims_only_inputs_that_it_has_room_for(dsn: str) -> None:
    held = Held()
    for _ in range(3):
        await queue(dsn, given="x" * 2000)
    async with connected(dsn) as connection, working(dsn, held, worker_max_total_input_bytes=3000):
        # The one that exceeds the bound is claimed with the first: any input can be.
        await until(lambda: held.started == 2)
        rows = await connection.fetch("SELECT status FROM baton.stream ORDER BY id")
        assert [row[0] for row in rows] == ["running", "running", "queued"]
        held.release.set()
        await until_all_completed(connection, 3)


async def test_a_notification_wakes_a_worker(dsn: str) -> None:
    slow = {"queue_poll_seconds": 60, "worker_heartbeat_seconds": 60, "lease_seconds": 600}
    async with connected(dsn) as connection, working(dsn, answer, **slow) as worker:
        listening = (
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        )
        await until(lambda: connection.fetchval(listening))
        stream_id = await queue(dsn)
        await notifications.notify(connection, "baton_queue", [""])
        await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == ANSWER
        await until(lambda: not worker.slots.runs)


async def test_heartbeats_wake_a_worker_that_polls_rarely(dsn: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS / 2):
        async with working(dsn, answer, queue_poll_seconds=60) as worker:
            await worker.ready.wait()


async def test_a_worker_leaves_streams_of_unknown_generators_alone(dsn: str) -> None:
    async with connected(dsn) as connection, working(dsn, answer):
        other = await queue(dsn, generator="other")
        mine = await queue(dsn)
        await ended(connection, mine)
        assert (await row(connection, other)).status == "queued"


async def test_a_claim_whose_reply_was_lost_is_handed_back(dsn: str) -> None:
    held = Held()
    async with connected(dsn) as connection, Proxy(dsn) as proxy, working(proxy.dsn, held) as worker:
        await until(lambda: worker.lease.worker_id is not None)
        stream_id = await queue(dsn)
        # The claim took place, and the worker does not know.
        await connection.execute(
            "UPDATE baton.stream SET status = 'running', epoch = epoch + 1, attempts = attempts + 1, worker_id = $1 "
            "WHERE id = $2 AND status = 'queued'",
            worker.lease.worker_id,
            stream_id,
        )
        held.release.set()
        stream = await ended(connection, stream_id)
        assert stream.attempts == 1
        assert text(await events(connection, stream_id)) == ANSWER


async def test_streams_continue_through_a_loss_of_all_connections(dsn: str) -> None:
    held = Held()
    async with connected(dsn) as connection, Proxy(dsn) as proxy, working(proxy.dsn, held):
        ids = await queue_many(connection, 5)
        for stream_id in ids:
            await until_tail(connection, stream_id, 2)
        proxy.stall()
        proxy.cut()
        held.release.set()
        proxy.resume()
        await until_all_completed(connection, 5)
        for stream_id in ids:
            assert text(await events(connection, stream_id)) == ANSWER
            assert (await row(connection, stream_id)).epoch == 1
    assert held.started == 5


@pytest.mark.parametrize("given_away", [True, False], ids=["given to others", "overlooked"])
async def test_a_worker_declared_dead_stops_its_runs_and_registers_again(dsn: str, given_away: bool) -> None:
    held = Held()
    async with connected(dsn) as connection, working(dsn, held) as worker:
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 2)
        before = worker.lease.worker_id
        async with connection.transaction():
            if given_away:
                await connection.execute("UPDATE baton.stream SET status = 'queued', epoch = 2, worker_id = NULL")
            await connection.execute("DELETE FROM baton.worker")
        await until(lambda: held.stopped == 1)
        await until(lambda: worker.lease.worker_id != before)
        held.release.set()
        # It is the only worker there is, and so it takes its own stream over.
        stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
        assert [event["type"] for event in found[:3]] == ["text", "text", "reset"]
        assert text(found) == ANSWER
        assert stream.epoch >= 3
        # It may have claimed once more before it heard that it was declared dead.
        assert 1 <= held.stopped == held.started - 1


async def test_a_stream_claimed_again_while_its_former_run_cleans_up_has_one_run(dsn: str) -> None:
    cleaned, starts = asyncio.Event(), 0

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        nonlocal starts
        starts += 1
        try:
            yield "who goes"
            if starts == 1:
                await asyncio.Event().wait()
            await finish.wait()
            yield " there"
        finally:
            if not finish.is_set():
                await cleaned.wait()

    finish = asyncio.Event()
    async with connected(dsn) as connection, working(dsn, generate) as worker:
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 1)
        async with connection.transaction():
            await connection.execute("UPDATE baton.stream SET status = 'queued', epoch = 2, worker_id = NULL")
            await connection.execute("DELETE FROM baton.worker")
        await until_tail(connection, stream_id, 3)
        former = len(worker.slots.tasks)
        cleaned.set()
        await until(lambda: len(worker.slots.tasks) == former - 1)
        assert list(worker.slots.runs) == [stream_id]
        finish.set()
        assert (await ended(connection, stream_id)).epoch == 3
        assert text(await events(connection, stream_id)) == ANSWER
    assert starts == 2


@pytest.mark.parametrize("policy", ["retry", "fail"])
async def test_a_dead_workers_stream_is_taken_over_or_ended(dsn: str, policy: str) -> None:
    first, second = Held(), Held()
    second.release.set()
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connected(dsn))
        async with working(dsn, first):
            stream_id = await queue(dsn, on_worker_lost=policy)
            await until_tail(connection, stream_id, 2)
        # Its tasks were cancelled as by a kill: the row of the worker and its stream are still there.
        assert (await row(connection, stream_id)).status == "running"
        await stack.enter_async_context(working(dsn, second))
        stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
    if policy == "retry":
        assert (stream.status, stream.attempts) == ("completed", 2)
        assert found[2] == {"type": "reset", "reason": "worker_lost"}
        assert text(found) == ANSWER
    else:
        assert (stream.status, stream.error_code, second.started) == ("failed", "worker_lost", 0)
        assert text(found) == "who goes"
        assert snapshot(found).last_event_id == 3


async def test_a_stream_without_events_is_taken_over_without_a_reset(dsn: str) -> None:
    started = asyncio.Event()

    async def silent(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        started.set()
        await asyncio.Event().wait()
        yield ""

    async with connected(dsn) as connection:
        async with working(dsn, silent):
            stream_id = await queue(dsn, on_worker_lost="fail")
            await started.wait()
        async with working(dsn, answer):
            await ended(connection, stream_id)
        assert [event["type"] for event in await events(connection, stream_id)] == ["text"] * 3 + ["done"]


async def test_a_stream_that_kills_its_workers_ends_after_max_attempts(dsn: str) -> None:
    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        for attempt in (1, 2):
            held = Held()
            async with working(dsn, held, max_attempts=2):
                await until(lambda held=held: held.started == 1)  # type: ignore[misc]
                await until_tail(connection, stream_id, 2 if attempt == 1 else 5)
        async with working(dsn, answer, max_attempts=2):
            stream = await ended(connection, stream_id)
        assert stream.error_code == "worker_lost"
        assert "tried 2 times" in (stream.error_message or "")


async def test_an_end_written_during_a_takeover_is_the_streams_end(dsn: str) -> None:
    outcome = Outcome.completed("length")
    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        (item,) = await claim_as(connection, UUID(int=1), ["test"], 1)
        append = event_log.Append(stream_id, item.epoch, 1, 1, outcome.encode(), outcome, item.claim_token)
        await event_log.append(connection, [append])
        await connection.execute("UPDATE baton.stream SET status = 'queued', epoch = 2, finish_reason = NULL")
        async with working(dsn, answer):
            stream = await ended(connection, stream_id)
        assert (stream.status, stream.finish_reason) == ("completed", "length")
        assert len(await events(connection, stream_id)) == 1


async def leaving(dsn: str, held: Held, connection: Connection, stream_id: UUID) -> None:
    """Run a worker until the stream has two events, and then let it leave."""
    worker = Workers(settings(dsn, lease_seconds=600, worker_drain_seconds=0.2), {"test": held})
    task = asyncio.create_task(worker.run())
    await until_tail(connection, stream_id, 2)
    worker.leave()
    await task


async def test_a_leaving_worker_hands_its_streams_over_at_once(dsn: str) -> None:
    held = Held()
    async with connected(dsn) as connection:
        stream_id = await queue(dsn)
        await leaving(dsn, held, connection, stream_id)
        stream = await row(connection, stream_id)
        assert (stream.status, stream.attempts, held.stopped) == ("queued", 0, 1)
        assert await connection.fetchval("SELECT count(*) FROM baton.worker") == 0
        async with working(dsn, answer, lease_seconds=600):
            await ended(connection, stream_id)
        assert text(await events(connection, stream_id)) == ANSWER


async def test_a_leaving_worker_ends_streams_that_must_not_restart(dsn: str) -> None:
    async with connected(dsn) as connection:
        stream_id = await queue(dsn, on_worker_lost="fail")
        await leaving(dsn, Held(), connection, stream_id)
        assert (await row(connection, stream_id)).error_code == "worker_left"
        assert text(await events(connection, stream_id)) == "who goes"


async def test_a_worker_without_work_leaves(dsn: str) -> None:
    worker = Workers(settings(dsn), {"test": answer})
    task = asyncio.create_task(worker.run())
    await worker.ready.wait()
    worker.leave()
    await task


async def test_a_stream_whose_row_is_erased_stops_its_generator(dsn: str) -> None:
    held = Held()
    async with connected(dsn) as connection, working(dsn, held):
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 2)
        await connection.execute("DELETE FROM baton.stream")
        held.release.set()
        await until(lambda: held.started == 1)
        assert await tail(connection, stream_id) == 2


async def test_a_worker_does_not_start_with_the_wrong_schema(empty_dsn: str) -> None:
    with pytest.raises(SchemaMismatch, match="Run `baton migrate` first"):
        await Workers(settings(empty_dsn), {"test": answer}).run()
    with pytest.raises(DatabaseUnreachable, match=r"No Postgres could be reached at 127\.0\.0\.1:1"):
        await Workers(settings("postgresql://127.0.0.1:1/x"), {"test": answer}).run()


async def test_a_notification_cancels_a_stream_before_any_heartbeat(dsn: str) -> None:
    held = Held()
    slow = {"worker_heartbeat_seconds": 60, "lease_seconds": 600}
    async with connected(dsn) as connection, working(dsn, held, **slow):
        stream_id = await queue(dsn)
        await until_tail(connection, stream_id, 2)
        await connection.execute("UPDATE baton.stream SET cancel_requested_at = now() WHERE id = $1", stream_id)
        await notifications.notify(connection, "baton_cancel", ["nonsense", str(stream_id)])
        assert (await ended(connection, stream_id)).status == "cancelled"
