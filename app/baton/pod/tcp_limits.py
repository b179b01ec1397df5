"""The TCP connections of a pod: how many there may be, and how long each may take over what it is at.

A connection is in one of these phases, or else it is being answered:

- `header`: the header of its next request has yet to come, or the rest of it;
- `body`: the rest of its request's body has yet to come;
- `idle`: it has had its answer, and no other request has begun;
- `flush`: it is to be closed, once its client has taken what is left.

A phase may take all connections the same time, so those that entered it first are over first: one look now and then at
the head of each queue finds whoever is late. There is neither a task nor a timer for a connection, and a move from
phase to phase costs two operations on dicts.

Where there are too many, the one that has been asking, or idle, for longest gives way to the next. So thousands that
never ask anything do not keep those out that do.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

from ..observability.metrics import PodMetrics
from .subscriber_limits import Hysteresis

Phase: TypeAlias = Literal["header", "body", "idle", "flush"]

# Whoever has just come is given a moment to ask.
PATIENCE_SECONDS: Final = 1.0
# To end a connection and have the next one takes 0.2 to 0.4 ms, in which nobody else is served. With 50 in one go, of
# 1,000 that were late at once, the 99th percentile of others' delays was 2.8 times as high as in calm; with 10, 1.04.
SWEPT_AT_ONCE: Final = 10


class Visitor(Protocol):
    """A connection as it is looked at here."""

    phase: Phase | None

    def expire(self, phase: Phase) -> None:
        """Learn that the time for a phase is over."""

    def give_way(self) -> None:
        """Be closed at once."""


class Intake:
    """The connections of a pod."""

    def __init__(
        self,
        metrics: PodMetrics,
        *,
        max_connections: int,
        header_timeout_seconds: float,
        body_timeout_seconds: float,
        http_keep_alive_seconds: float,
        flush_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._max_connections = max_connections
        self._level = Hysteresis(max_connections)
        self._clock = clock
        self._seconds: dict[Phase, float] = {
            "header": header_timeout_seconds,
            "body": body_timeout_seconds,
            "idle": http_keep_alive_seconds,
            "flush": flush_seconds,
        }
        # In the order in which they came.
        self._since: dict[Phase, dict[Visitor, float]] = {phase: {} for phase in self._seconds}

    @property
    def full(self) -> bool:
        """Whether new clients are better sent to other pods. Those that have not asked yet do not count."""
        self._level.note(self._metrics.connections - len(self._since["header"]))
        return self._level.reached

    def enter(self, visitor: Visitor) -> bool:
        """Count a new connection, which is to `leave` when it is lost; return whether there is room for it."""
        self._metrics.connections += 1
        self.move(visitor, "header")
        if self._metrics.connections <= self._max_connections:
            return True
        self._metrics.rejected["connections"] += 1
        return self._make_room()

    def leave(self, visitor: Visitor) -> None:
        """Let go of a connection that is no more."""
        self._metrics.connections -= 1
        self.move(visitor, None)

    def move(self, visitor: Visitor, phase: Phase | None) -> None:
        """Take note of what a connection is at from now on; None: it is being answered."""
        if visitor.phase is not None:
            self._since[visitor.phase].pop(visitor, None)
        visitor.phase = phase
        if phase is not None:
            self._since[phase][visitor] = self._clock()

    def sweep(self) -> None:
        """End what has taken too long, though not all at once. To be called several times a second."""
        now = self._clock()
        for phase, since in self._since.items():
            late = itertools.takewhile(lambda entry: now - entry[1] >= self._seconds[phase], since.items())  # noqa: B023
            for visitor, _ in list(itertools.islice(late, SWEPT_AT_ONCE)):
                self.move(visitor, None)
                visitor.expire(phase)

    def _make_room(self) -> bool:
        now = self._clock()
        for since in (self._since["header"], self._since["idle"]):
            for visitor, entered in since.items():
                if now - entered < PATIENCE_SECONDS:
                    break
                self.move(visitor, None)
                visitor.give_way()
                return True
        return False
