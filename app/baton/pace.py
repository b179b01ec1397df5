"""How often something may be done whose cost is not known before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Pace:
    """Keeps a repeated task to a part of the time: 1/`factor`, and at most once in `least_seconds`.

    A statement that Postgres answers in a moment may take a second while an old snapshot is open. Paced, it then runs
    more rarely instead of taking the whole connection.
    """

    def __init__(
        self, *, factor: float, least_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._factor = factor
        self._least_seconds = least_seconds
        self._clock = clock
        self._due_at = -float("inf")

    @property
    def due(self) -> bool:
        """Whether it may be done again."""
        return self._clock() >= self._due_at

    def put_off(self) -> None:
        """Make it due after the least time."""
        self._due_at = self._clock() + self._least_seconds

    def hurry(self) -> None:
        """Make it due now."""
        self._due_at = -float("inf")

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Do it: what it takes decides when it is due again. A try that fails is not counted."""
        started_at = self._clock()
        yield
        took = self._clock() - started_at
        self._due_at = started_at + max(self._least_seconds, self._factor * took)
