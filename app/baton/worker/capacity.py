"""The capacity of a worker process: its slots, the bytes of inputs that it may hold, and the places of its generators.

All databases of the process share it. What holds with several:

- Free places are dealt one at a time, each to the database that has the fewest of those with a queue. So a database
  with a long queue leaves the next free place to one that has fewer, and a database without a queue holds nothing back.
- A claim reserves what it may take, so the process runs no more than it may.
- A database that does not answer holds up the others for `PATIENCE_SECONDS` at most. If its claim is answered after
  that, the process may run a few streams more than its limit, until some have ended.

With one database all that is free is its own. All of it runs on the worker's event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..db.stream_queue import Claim
from ..generators import Generator
from ..generators.preset import concurrency_of
from .run import Run

# How long a database that was offered a place, or that is claiming, holds the others back.
PATIENCE_SECONDS: Final = 1.0


def deal(free: int, taken: Sequence[int]) -> list[int]:
    """Deal free places one at a time, each to the first of those that have the fewest; return how many each gets.

    `taken` says how many each has already.
    """
    by_taken = sorted(range(len(taken)), key=taken.__getitem__)
    size = len(taken)
    while True:
        low = sorted(by_taken[:size])
        level, rest = divmod(free + sum(taken[index] for index in low), size)
        if level >= taken[by_taken[size - 1]]:
            break
        size -= 1  # the one with the most has more than its part
    dealt = [0] * len(taken)
    for rank, index in enumerate(low):
        dealt[index] = level - taken[index] + (rank < rest)
    return dealt


class Part:
    """What one database has of some places.

    It wants more while `wants` has a group of generators whose last claim ended because there were no more places.
    """

    __slots__ = ("_on_room", "_places", "_reserved", "_since", "_taken", "_wants", "served")

    def __init__(self, places: Places, taken: Callable[[], int], on_room: Callable[[], None]) -> None:
        self._places = places
        self._taken = taken
        self._on_room = on_room
        self._wants: set[str] = set()
        self._since: float | None = None  # when it was offered a place, or began to claim, and did not answer yet
        self._reserved = 0
        self.served = 0  # grows with each claim of any database that got something

    @property
    def offered(self) -> int:
        """How many more it may take now."""
        return self._places.offered_to(self)

    @property
    def taken(self) -> int:
        """How many it has."""
        return self._taken()

    def reserved(self, now: float) -> int:
        """Return how many it has reserved for a claim."""
        return self._reserved if self._is_prompt(now) else 0

    def waits(self, now: float) -> bool:
        """Return whether the others leave it its part."""
        return bool(self._wants) and self._is_prompt(now)

    def want_at_first(self, groups: Collection[str], now: float) -> None:
        """Want more until the first claims show whether there is a queue."""
        self._wants, self._since = set(groups), now

    def begin(self, reserved: int, now: float) -> None:
        """Reserve places for a claim."""
        self._reserved, self._since = reserved, now

    def end(self) -> None:
        """Give back what a claim has reserved."""
        self._reserved, self._since = 0, None

    def settle(self, group: str, *, wants: bool) -> None:
        """Note what a claim has shown."""
        self._since = None
        if wants:
            self._wants.add(group)
        else:
            self._wants.discard(group)

    def withdraw(self) -> None:
        """Want nothing, since nothing can be claimed."""
        self._wants.clear()

    def offer(self, now: float) -> None:
        """Have it claim, if it wants more."""
        if self._wants:
            self._since = now if self._since is None else self._since
            self._on_room()

    def offer_others(self) -> None:
        """Have the other databases claim, if they want more."""
        self._places.offer(self)

    def _is_prompt(self, now: float) -> bool:
        return self._since is None or now - self._since < PATIENCE_SECONDS


class Places:
    """Some number of something. `in_use` returns how many are taken at least, whichever database has them."""

    def __init__(
        self, most: int, *, in_use: Callable[[], int] = lambda: 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._in_use = in_use
        self.clock = clock
        self._parts: list[Part] = []

    def join(self, taken: Callable[[], int], on_room: Callable[[], None]) -> Part:
        """Return the part of a database that takes part. `on_room` is called when it wants more and may get it."""
        self._parts.append(Part(self, taken, on_room))
        return self._parts[-1]

    def offered_to(self, part: Part) -> int:
        """Return how many more a database may take now: what is free, without what the others are dealt of it."""
        now = self.clock()
        taken = {other: other.taken for other in self._parts}
        reserved = {other: other.reserved(now) for other in self._parts}
        free = self._most - max(sum(taken.values()), self._in_use()) - sum(reserved.values())
        rivals = [other for other in self._parts if other is part or other.waits(now)]
        if free <= 0 or len(rivals) == 1:
            return free
        rivals.sort(key=lambda other: other.served)
        return deal(free, [taken[other] + reserved[other] for other in rivals])[rivals.index(part)]

    def offer(self, but: Part) -> None:
        """Have the databases that want more claim, except one."""
        for part in self._parts:
            if part is not but:
                part.offer(self.clock())


@dataclass(slots=True)
class Room:
    """What a claim may take, and what it took."""

    streams: int
    input_bytes: int
    claims: Sequence[Claim] | None = None  # None: it is not known

    def __bool__(self) -> bool:
        return self.streams > 0 and self.input_bytes > 0


class Capacity:
    """The capacity of one process."""

    def __init__(
        self,
        generators: Mapping[str, Generator],
        *,
        streams: int,
        input_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = Places(streams, clock=clock)
        self.input_bytes = Places(input_bytes, clock=clock)
        limits = {name: concurrency_of(generator) for name, generator in generators.items()}
        # A stream that was just claimed has not asked for its place yet, and one of another generator may have it.
        self.by_generator = {
            name: Places(limit.most, in_use=lambda limit=limit: limit.taken, clock=clock)  # type: ignore[misc]
            for name, limit in limits.items()
            if limit.most is not None
        }
        self.turn = itertools.count(1)

    def join(self, runs: Mapping[UUID, Run], on_room: Callable[[], None]) -> Share:
        """Return the share of a database, whose streams here are `runs`."""
        return Share(self, runs, on_room)


class Share:
    """What one database has of the capacity. A *group* is the generators of one claim, named by the first of them."""

    def __init__(self, capacity: Capacity, runs: Mapping[UUID, Run], on_room: Callable[[], None]) -> None:
        self._capacity = capacity
        self._slots = capacity.slots.join(lambda: len(runs), on_room)
        self._input_bytes = capacity.input_bytes.join(
            lambda: sum(run.claim.input_bytes for run in runs.values()), on_room
        )

        def count(name: str) -> Callable[[], int]:
            return lambda: sum(run.claim.generator == name for run in runs.values())

        self._by_generator = {name: places.join(count(name), on_room) for name, places in capacity.by_generator.items()}

    def is_limited(self, name: str) -> bool:
        """Whether a generator may run only a number of streams at once."""
        return name in self._by_generator

    def enter(self, groups: Collection[str]) -> None:
        """Begin to claim, over a new connection: there may be a queue."""
        now = self._capacity.slots.clock()
        for part in (self._slots, self._input_bytes):
            part.want_at_first(groups, now)
        for name, part in self._by_generator.items():
            part.want_at_first({name}, now)

    def withdraw(self) -> None:
        """Claim nothing for a while: leave everything to the other databases."""
        for part in self._parts:
            part.withdraw()

    def is_full(self, groups: Collection[str]) -> bool:
        """Whether there is nothing for any group. Then the database waits."""
        full = [part for part in (self._slots, self._input_bytes) if part.offered <= 0]
        for part, group in itertools.product(full, groups):
            part.settle(group, wants=True)
        return bool(full)

    @contextlib.contextmanager
    def room_for(self, group: str) -> Iterator[Room]:
        """Reserve what a claim of a group may take. In the end the claimed streams run; set `claims` before that."""
        limit = self._by_generator.get(group)
        parts = [self._slots] if limit is None else [self._slots, limit]
        offers = [part.offered for part in parts]
        room = Room(min(offers), self._input_bytes.offered)
        now = self._capacity.slots.clock()
        if room:
            for part in parts:
                part.begin(room.streams, now)
            self._input_bytes.begin(room.input_bytes, now)
        else:
            room.claims = ()
        try:
            yield room
        finally:
            for part in (*parts, self._input_bytes):
                part.end()
            if room.claims is not None:
                self._settle(group, room, dict(zip(parts, offers, strict=True)), room.claims)
            if room:
                self._offer(parts)

    def freed(self, generator: str) -> None:
        """Let the others claim after a stream's end here. The database itself is woken by its worker."""
        limit = self._by_generator.get(generator)
        self._offer([self._slots] if limit is None else [self._slots, limit])

    @property
    def _parts(self) -> list[Part]:
        return [self._slots, self._input_bytes, *self._by_generator.values()]

    def _settle(self, group: str, room: Room, offers: Mapping[Part, int], claims: Sequence[Claim]) -> None:
        """Note by what a claim was limited: only that may have to be shared."""
        taken_bytes = sum(item.input_bytes for item in claims)
        for part, offered in offers.items():
            part.settle(group, wants=len(claims) >= offered)
        self._input_bytes.settle(group, wants=taken_bytes >= room.input_bytes)
        if claims:
            turn = next(self._capacity.turn)
            for part in (*offers, self._input_bytes):
                part.served = turn

    def _offer(self, parts: Sequence[Part]) -> None:
        for part in (*parts, self._input_bytes):
            part.offer_others()
