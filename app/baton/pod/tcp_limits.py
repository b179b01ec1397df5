"""The TCP connections of a pod: how many there may be, and how long each may stay in its phase.

A connection is in one of these phases, unless its request is being answered:

- `header`: it waits for the header of its next request, or for the rest of it;
- `body`: it waits for the rest of its request's body;
- `idle`: it has its response, and no other request has begun;
- `flush`: it closes once its client has taken what is left.

Every connection may stay in a phase for the same time, so those that entered first are late first: a regular look at
the head of each queue finds the late ones. No connection has a task or a timer of its own, and a move from phase to
phase costs two operations on dicts.

If there are too many connections, the one that has been in `header`, or in `idle`, for longest gives way to the next.
So thousands of connections that never send a request do not keep out those that do.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

from ..observability.metrics import PodMetrics
from .subscriber_limits import Hysteresis

Phase: TypeAlias = Literal["header", "body", "idle", "flush"]

# A new connection has this long to send a request before it may have to give way.
PATIENCE_SECONDS: Final = 1.0
# Closing a connection and accepting the next one takes 0.2 to 0.4 ms, and nothing else runs in that time. When 1,000
# connections were late at once and 50 of them were closed in one turn, the p99 of other clients' delays was 2.8 times
# as high; with 10 it was 1.04 times as high.
SWEPT_AT_ONCE: Final = 10


class Visitor(Protocol):
    """A connection as its limits see it."""

    phase: Phase | None

    def expire(self, phase: Phase) -> None:
        """End: its time for this phase is over."""

    def give_way(self) -> None:
        """End at once, in favor of another connection."""


class TcpLimits:
    """The connections of a pod, counted. The metrics read the count here, and get each rejection."""

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
        self.connections = 0
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
        # In the order in which they entered the phase.
        self._since: dict[Phase, dict[Visitor, float]] = {phase: {} for phase in self._seconds}
        metrics.read("connections", lambda: self.connections)

    @property
    def full(self) -> bool:
        """Whether new clients should go to other pods. Connections that have sent no request yet do not count."""
        self._level.note(self.connections - len(self._since["header"]))
        return self._level.reached

    def enter(self, visitor: Visitor) -> bool:
        """Count a new connection, until `leave`; return whether there is room for it."""
        self.connections += 1
        self.move(visitor, "header")
        if self.connections <= self._max_connections:
            return True
        self._metrics.rejected["connections"] += 1
        return self._make_room()

    def leave(self, visitor: Visitor) -> None:
        """Stop counting a connection, which is lost."""
        self.connections -= 1
        self.move(visitor, None)

    def move(self, visitor: Visitor, phase: Phase | None) -> None:
        """Note a connection's phase from now on; None: its request is being answered."""
        if visitor.phase is not None:
            self._since[visitor.phase].pop(visitor, None)
        visitor.phase = phase
        if phase is not None:
            self._since[phase][visitor] = self._clock()

    def sweep(self) -> None:
        """End connections that are late, at most `SWEPT_AT_ONCE` of each phase. Call it several times a second."""
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
