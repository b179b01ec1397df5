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
from uuid import UUID

from ..db.stream_queue import Claim
from ..generators import Generator
from ..generators.preset import concurrency_of
from .places import Part, Places
from .run import Run


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
        self._shares = 0

    def join(self, runs: Mapping[UUID, Run], on_room: Callable[[], None]) -> Share:
        """Return the share of a database, whose streams here are `runs`."""
        self._shares += 1
        return Share(self, runs, on_room)

    @property
    def is_shared(self) -> bool:
        """Whether there are several databases."""
        return self._shares > 1


class Share:
    """What one database has of the capacity. A *group* is the generators of one claim, named by the first of them."""

    def __init__(self, capacity: Capacity, runs: Mapping[UUID, Run], on_room: Callable[[], None]) -> None:
        self._capacity = capacity
        self._on_room = on_room
        self._doubted: set[str] = set()  # groups whose last claim found nothing
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
        if room and not claims and self._is_doubtful(group):
            self._doubted.add(group)
            self._on_room()
            return
        self._doubted.discard(group)
        taken_bytes = sum(item.input_bytes for item in claims)
        for part, offered in offers.items():
            part.settle(group, wants=len(claims) >= offered)
        self._input_bytes.settle(group, wants=taken_bytes >= room.input_bytes)
        if claims:
            turn = next(self._capacity.turn)
            for part in (*offers, self._input_bytes):
                part.served = turn

    def _is_doubtful(self, group: str) -> bool:
        """Whether an empty claim may be wrong: a heartbeat that moves the worker's row makes a claim find nothing.

        A database that waits for its part looks twice before it gives the part up.
        """
        waits = any(part.wants(group) for part in self._parts)
        return waits and self._capacity.is_shared and group not in self._doubted

    def _offer(self, parts: Sequence[Part]) -> None:
        for part in (*parts, self._input_bytes):
            part.offer_others()
