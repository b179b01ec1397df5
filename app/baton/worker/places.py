"""Places of one kind in a worker process, which its databases share: slots, for example.

Free ones are dealt one at a time, each to the database that has the fewest of those that want more. All of it runs on
the worker's event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

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

    def wants(self, group: str) -> bool:
        """Return whether the last claim of a group ended because there were no more."""
        return group in self._wants

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
