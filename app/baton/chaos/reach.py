"""Which databases each pod can reach: the faults that are between them are noted here.

A pod that has reached a database for a moment must be able to create streams. So it is known of each refusal whether a
fault excuses it. Times are of `time.monotonic`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

# How long a pod may need to use a database again after a fault is over: it connects again with a growing pause.
MOMENT_SECONDS: Final = 10.0


class Reach:
    """The faults between each pod and each database."""

    def __init__(self, pods: Iterable[str], databases: Iterable[int], clock: Callable[[], float] = time.monotonic):
        self._pods = frozenset(pods)
        self._databases = tuple(databases)
        self._clock = clock
        self._faults: Counter[tuple[str, int]] = Counter()  # under way
        self._ended: defaultdict[tuple[str, int], float] = defaultdict(lambda: float("-inf"))

    @contextlib.contextmanager
    def cut(self, processes: Iterable[str], databases: Iterable[int]) -> Iterator[None]:
        """Note that pods may not reach databases inside the block. Workers are left out."""
        pairs = [(pod, number) for pod in self._pods.intersection(processes) for number in databases]
        self._faults.update(pairs)
        try:
            yield
        finally:
            self._faults.subtract(pairs)
            self._ended.update(dict.fromkeys(pairs, self._clock()))

    def note_away(self, pod: str) -> None:
        """Note that a pod does not serve at this moment."""
        with self.cut([pod], self._databases):
            pass

    def reached(self, pod: str, since: float) -> list[int]:
        """Return the databases that a pod could reach all the time since `since`, and for a moment before."""
        steady = since - MOMENT_SECONDS
        return [
            number for number in self._databases if not self._faults[pod, number] and self._ended[pod, number] < steady
        ]
