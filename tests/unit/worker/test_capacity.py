"""The capacity of a process, and how its databases share it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from baton.db.stream_queue import Claim
from baton.generators import GenerationRequest, Generator
from baton.generators.preset import Preset
from baton.generators.protocol import Yielded
from baton.worker.capacity import Capacity
from baton.worker.places import PATIENCE_SECONDS, deal
from baton.worker.run import Run


async def silent(_request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
    yield ""


class Item:
    """A claim, and the run of it."""

    def __init__(self, generator: str, input_bytes: int) -> None:
        self.generator = generator
        self.input_bytes = input_bytes

    @property
    def claim(self) -> Item:
        return self


class Process:
    """A process with databases whose queues are numbers. Time passes only in `pass_seconds`."""

    def __init__(self, *, streams: int, input_bytes: int = 1000, databases: int = 2) -> None:
        self.now = 100.0
        generators: dict[str, Generator] = {"any": silent, "one": Preset(silent, "one", {"max_concurrency": 1})}
        capacity = Capacity(generators, streams=streams, input_bytes=input_bytes, clock=lambda: self.now)
        self.databases = [Database(capacity) for _ in range(databases)]

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds

    def settle(self) -> None:
        """Let all workers claim that were woken."""
        while any(database.awake for database in self.databases):
            for database in self.databases:
                if database.awake:
                    database.claim()

    @property
    def running(self) -> list[int]:
        return [len(database.runs) for database in self.databases]


class Database:
    _ids = itertools.count()

    def __init__(self, capacity: Capacity) -> None:
        self.runs: dict[UUID, Run] = {}
        self.share = capacity.join(self.runs, self.wake)
        self.queued = {"any": 0, "one": 0}
        self.input_bytes = 1
        self.awake = False
        self.share.enter(list(self.queued))

    def wake(self) -> None:
        self.awake = True

    def queue(self, count: int, generator: str = "any") -> None:
        self.queued[generator] += count
        self.wake()

    def look(self) -> None:
        """Claim until there is no reason to claim again."""
        self.claim()
        while self.awake:
            self.claim()

    def claim(self) -> None:
        self.awake = False
        if self.share.is_full(list(self.queued)):
            return
        for group in self.queued:
            with self.share.room_for(group) as room:
                if room:
                    fitting = 1 + (room.input_bytes - 1) // self.input_bytes
                    self.take(room, group, min(self.queued[group], room.streams, fitting))

    def take(self, room: Any, group: str, count: int) -> None:
        items = [Item(group, self.input_bytes) for _ in range(count)]
        self.queued[group] -= count
        room.claims = cast(Sequence[Claim], items)
        for item in items:
            self.runs[UUID(int=next(self._ids))] = cast(Run, item)

    def end(self, count: int = 1) -> None:
        for _ in range(count):
            run = self.runs.pop(next(iter(self.runs)))
            self.share.freed(run.claim.generator)
            self.wake()


@given(st.integers(0, 60), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_places_are_dealt_one_at_a_time_to_the_one_with_the_fewest(free: int, taken: list[int]) -> None:
    have = list(taken)
    for _ in range(free):
        have[have.index(min(have))] += 1
    assert deal(free, taken) == [after - before for after, before in zip(have, taken, strict=True)]


def test_a_database_takes_all_that_the_others_do_not_want() -> None:
    process = Process(streams=10)
    first, second = process.databases
    second.look()
    first.queue(20)
    process.settle()
    assert process.running == [10, 0]


def test_databases_with_queues_share_the_slots_equally_from_the_start() -> None:
    process = Process(streams=10, databases=3)
    for database, count in zip(process.databases, (50, 50, 2), strict=True):
        database.queue(count)
    process.settle()
    assert process.running == [4, 4, 2]


def test_the_next_free_slot_goes_to_the_database_that_has_fewer() -> None:
    process = Process(streams=4)
    long, short = process.databases
    short.look()
    long.queue(100)
    process.settle()
    short.queue(1)
    process.settle()
    assert process.running == [4, 0]
    long.end()
    long.claim()
    assert process.running == [3, 0]
    process.settle()
    assert process.running == [3, 1]
    short.end()
    process.settle()
    assert process.running == [4, 0]


def test_one_slot_is_used_in_turn() -> None:
    process = Process(streams=1)
    for database in process.databases:
        database.queue(10)
    process.settle()
    seen = []
    for _ in range(6):
        seen.append(process.running.index(1))
        process.databases[seen[-1]].end()
        process.settle()
    assert seen in ([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0])


def test_no_claim_takes_what_another_has_reserved() -> None:
    process = Process(streams=4)
    first, second = process.databases
    second.look()
    first.queue(4)
    second.queue(4)
    with first.share.room_for("any") as room:
        assert room.streams == 4
        second.claim()
        first.take(room, "any", 1)
    process.settle()
    assert process.running == [2, 2]


def test_a_database_that_does_not_answer_holds_up_the_others_only_shortly() -> None:
    process = Process(streams=4)
    hanging, other = process.databases
    other.look()
    with hanging.share.room_for("any"):
        other.queue(4)
        other.claim()
        assert process.running == [0, 0]
        process.pass_seconds(PATIENCE_SECONDS)
        other.claim()
        assert process.running == [0, 4]
    hanging.queue(4)
    hanging.claim()
    other.end()
    other.queue(4)
    other.claim()
    assert process.running == [0, 3]  # the slot was offered to the one that does not come
    process.pass_seconds(PATIENCE_SECONDS)
    other.claim()
    assert process.running == [0, 4]


def test_a_claim_that_found_nothing_by_chance_loses_no_part() -> None:
    process = Process(streams=1)
    long, short = process.databases
    short.look()
    long.queue(10)
    process.settle()
    short.queue(1)
    process.settle()
    long.end()
    with short.share.room_for("any") as room:
        short.take(room, "any", 0)
    process.settle()
    assert process.running == [0, 1]


def test_a_database_that_is_away_leaves_its_slots_to_the_others() -> None:
    process = Process(streams=4)
    away, other = process.databases
    away.share.withdraw()
    other.queue(10)
    process.settle()
    assert process.running == [0, 4]


def test_the_limit_of_a_generator_counts_over_all_databases() -> None:
    process = Process(streams=10)
    first, second = process.databases
    for database in process.databases:
        database.queue(5, "one")
        database.queue(1)
    process.settle()
    assert sum(process.running) == 3
    holder = first if len(first.runs) == 2 else second
    holder.end(2)
    process.settle()
    assert [len(holder.runs), sum(process.running)] == [0, 2]


def test_inputs_of_one_database_leave_room_for_another() -> None:
    process = Process(streams=100, input_bytes=1000)
    large, small = process.databases
    small.look()
    large.input_bytes = small.input_bytes = 250
    large.queue(10)
    process.settle()
    small.queue(1)
    process.settle()
    assert process.running == [4, 0]
    large.end()
    process.settle()
    assert process.running == [3, 1]
