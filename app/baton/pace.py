"""Decides how often to repeat a task whose cost is not known in advance."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Pace:
    """Limits a repeated task to the fraction 1/`factor` of the time, and to one run per `least_seconds`.

    A fast statement may take a second while an old snapshot is open. Paced, it then runs less often instead of
    occupying the whole connection.
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
        """Whether the task may run again."""
        return self._clock() >= self._due_at

    def put_off(self) -> None:
        """Make the task due after `least_seconds`."""
        self._due_at = self._clock() + self._least_seconds

    def hurry(self) -> None:
        """Make the task due now."""
        self._due_at = -float("inf")

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Time one run of the task, which decides when it is due again. A run that raises does not count."""
        started_at = self._clock()
        yield
        took = self._clock() - started_at
        self._due_at = started_at + max(self._least_seconds, self._factor * took)
