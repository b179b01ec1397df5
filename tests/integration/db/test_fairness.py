"""The order of the queue: tenants take turns, priorities, and generators that share workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import asyncpg
import pytest
from tests.support.logbook import claim_as, connected, queue_many

from baton.db import queue_lines, stream_creation, stream_queue
from baton.db.live_counts import LiveCounts
from baton.db.queue_lines import Line, QueueLines, line_of
from baton.db.queue_watermark import START
from baton.db.stream_creation import HIGH, LOW, NewStream
from baton.db.stream_queue import Claim

WORKER: Final = UUID(int=1)
NEW: Final = NewStream("one", None, {}, "retry")
BOTH: Final = ("one", "two")


class Queue:
    """A queue, and a worker that claims one stream after another."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.connection = connection

    async def add(self, tenant: str, count: int = 1, new: NewStream = NEW, line: Line | None = None) -> list[UUID]:
        counts, given, line = LiveCounts(), replace(new, tenant=tenant), line or Line(BOTH)
        rows = [
            await stream_creation._insert(self.connection, given, None, None, counts, line=line) for _ in range(count)
        ]
        return [row.id for row in rows]

    async def claim(self, count: int = 1, generators: Sequence[str] = BOTH) -> list[Claim]:
        return await claim_as(self.connection, WORKER, list(generators), count)

    async def next(self, count: int = 1) -> str:
        """Claim streams, each by itself; return the names of their tenants."""
        return "".join([(await self.claim())[0].tenant for _ in range(count)])


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with connected(dsn) as connection:
        yield Queue(connection)


async def test_a_single_stream_waits_for_one_turn_of_a_tenant_with_100(queue: Queue) -> None:
    """Both of the worker's slots are taken, and 98 of the tenant's streams wait."""
    backlog = await queue.add("a", 100)
    await queue.claim(2)
    (single,) = await queue.add("b")
    claimed = [(await queue.claim())[0].stream_id for _ in range(20)]
    assert claimed == [backlog[2], single, *backlog[3:21]]


async def test_tenants_with_backlogs_take_turns(queue: Queue) -> None:
    await queue.add("a", 5)
    await queue.add("b", 3)
    await queue.add("c", 1)
    assert await queue.next(9) == "abcababaa"


async def test_a_tenant_that_sends_one_at_a_time_alternates_with_a_backlog(queue: Queue) -> None:
    await queue.add("a", 10)
    order = ""
    for _ in range(6):
        await queue.add("b")
        order += await queue.next(2)
    assert order == "ab" * 6


async def test_a_priority_changes_how_often_the_turn_comes(queue: Queue) -> None:
    """A `high` stream counts an eighth of a normal one, and a `low` one eight times as much."""
    await queue.add("n", 20)
    await queue.add("h", 20, replace(NEW, priority=HIGH))
    await queue.add("l", 20, replace(NEW, priority=LOW))
    assert await queue.next(29) == "n" + "hhhhhhhhn" * 2 + "hhhh" + "nnnnn" + "l"


async def test_generators_that_share_workers_share_a_line(queue: Queue) -> None:
    """A stream of a generator that nobody else asks for does not wait for all streams of another one."""
    await queue.add("a", 20)
    await queue.add("b", 1, replace(NEW, generator="two"))
    assert await queue.next(2) == "ab"


async def test_a_generator_that_nobody_serves_delays_no_one(queue: Queue) -> None:
    """Its streams would hold the virtual time back, and every newcomer would go before a backlog."""
    await queue.add("stuck", 3, replace(NEW, generator="nobody"), Line(("nobody",)))
    await queue.add("a", 3)
    order = ""
    for _ in range(2):
        await queue.add("b")
        order += await queue.next(2)
    assert order == "abab"


@pytest.mark.parametrize(
    ("offers", "line"),
    [
        ([], ("one",)),
        ([{"one", "two"}], ("one", "two")),
        ([{"one", "two"}, {"two", "three"}], ("one", "two")),
        ([{"one", "two"}, {"one"}], ("one",)),
        ([{"two"}], ("one",)),
    ],
)
def test_a_line_has_what_each_worker_of_a_generator_offers(offers: list[set[str]], line: tuple[str, ...]) -> None:
    assert line_of("one", [frozenset(offer) for offer in offers]) == line


async def test_no_stream_gets_a_position_below_the_first_of_a_worker_that_can_serve_it(queue: Queue) -> None:
    """A worker's watermark relies on it: what it cannot see would wait for a sweep."""
    await queue.connection.execute(
        "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('x', '{one,two}', 1), ('y', '{two}', 1)"
    )
    lines = QueueLines()
    await lines.update(queue.connection)
    await queue.add("a", 5, line=lines.of("one"))
    before = await queue_lines.first(queue.connection, START, ["two"])
    await queue.add("b", 1, replace(NEW, generator="two"), lines.of("two"))
    found = await queue_lines.first(queue.connection, before.bound, ["two"])
    assert found.position is not None


async def test_interrupted_streams_go_first_and_keep_their_order(queue: Queue) -> None:
    await queue.add("a", 3)
    await queue.add("b", 2)
    taken = await queue.claim(3)
    for claim in taken:
        assert await stream_queue.requeue(queue.connection, claim.fence)
    await queue.add("c", 1)
    assert sorted([claim.stream_id for claim in await queue.claim(3)]) == sorted(claim.stream_id for claim in taken)
    # Not even one that is interrupted again and again gets the place that it had.
    (claim,) = await queue.claim()
    for _ in range(3):
        assert await stream_queue.requeue(queue.connection, claim.fence)
        (again,) = await queue.claim()
        assert again.stream_id == claim.stream_id
        claim = again


async def test_an_older_worker_gives_back_without_a_position(queue: Queue) -> None:
    """It sets `queued_at` only, and a trigger sets the place."""
    await queue_many(queue.connection, 1)
    (claim,) = await claim_as(queue.connection, WORKER, ["test"], 1)
    before = await queue.connection.fetchval("SELECT queue_position FROM baton.stream")
    await give_back_as_before(queue, claim)
    after = await queue.connection.fetchval("SELECT queue_position FROM baton.stream")
    assert after > before
    assert len(await claim_as(queue.connection, WORKER, ["test"], 1)) == 1


@pytest.mark.parametrize("generator", BOTH)
async def test_what_an_older_worker_gives_back_goes_first(queue: Queue, generator: str) -> None:
    """Also before streams of another generator that the same workers offer: viewers have a part of its answer."""
    await queue.connection.execute(
        "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('x', '{one,two}', 1)"
    )
    await queue.add("a", 1, replace(NEW, generator=generator))
    await queue.add("b", 1, replace(NEW, generator=generator))
    taken = await queue.claim(2)
    await queue.add("c", 5)
    bound = (await queue_lines.first(queue.connection, START, BOTH)).bound
    for claim in taken:
        await give_back_as_before(queue, claim)
    first = await queue_lines.first(queue.connection, bound, BOTH)
    assert first.position is not None, "no watermark is above it"
    assert {claim.stream_id for claim in await queue.claim(2)} == {claim.stream_id for claim in taken}


async def give_back_as_before(queue: Queue, claim: Claim) -> None:
    """Give a stream back as a worker of the release before does."""
    await queue.connection.execute(
        "UPDATE baton.stream SET status = 'queued', queued_at = clock_timestamp(), epoch = epoch + 1, "
        "worker_id = NULL, interruption = 'worker_left' WHERE id = $1 AND status = 'running' AND epoch = $2",
        claim.stream_id,
        claim.epoch,
    )
