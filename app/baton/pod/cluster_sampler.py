"""Writes this pod's counts to its row, and samples the rows of all pods and workers, for the console.

Both happen every few seconds on each pod, also while no console is open, so that a console that opens shows the last
minutes. They cost a pod one write of its own row, and two reads of tables that have one row for each process. A pod
also writes its row when its subscribers change, since a console would otherwise show no viewers for the first seconds
of a stream; it does so at most twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import sub
from typing import Final
from uuid import UUID

import asyncpg

from ..backoff import Backoff, retry
from ..db import pod_rows, worker_rows
from ..db.pod_rows import Note
from ..db.postgres import Pool, translated
from ..errors import Unavailable
from ..observability.metrics.numbers import MILLISECONDS_TO_SECONDS, quantile

logger = logging.getLogger(__name__)

HISTORY_SECONDS: Final = 600
# The shortest pause between two writes of the pod's row, however often subscribers come and go.
NOTE_PAUSE_SECONDS: Final = 0.5
_LEAVING_SECONDS: Final = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes had counted at a moment, in seconds since 1970 on the database's clock."""

    at: float
    tokens: Mapping[UUID, int]
    deliveries: Mapping[UUID, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Point:
    """What happened between two samples; `at` is the time of the later one. The delays are None if nothing was sent."""

    at: float
    seconds: float
    tokens: int
    p50_delay_seconds: float | None
    p95_delay_seconds: float | None  # the 95th percentile

    @classmethod
    def between(cls, before: Sample, after: Sample) -> Point:
        """Add up what each process has added. A new process had nothing before."""
        tokens = sum(max(0, count - before.tokens.get(item, 0)) for item, count in after.tokens.items())
        delays = [0] * (len(MILLISECONDS_TO_SECONDS) + 1)
        for item, counts in after.deliveries.items():
            added = map(sub, counts, before.deliveries.get(item, [0] * len(counts)))
            delays = [total + max(0, more) for total, more in zip(delays, added, strict=False)]
        median, most = (quantile(MILLISECONDS_TO_SECONDS, delays, part) for part in (0.5, 0.95))
        return cls(after.at, after.at - before.at, tokens, median, most)

    def with_tokens(self, tokens: int) -> Point:
        """Add the tokens of the workers of another database in the same interval."""
        return replace(self, tokens=self.tokens + tokens)


class ClusterSampler:
    """Writes and samples. `own` returns the pod's present counts, and `changed` is set when its subscribers change."""

    def __init__(self, pool: Pool, own: Callable[[], Note], changed: asyncio.Event, *, interval_seconds: float) -> None:
        self.points: deque[Point] = deque()
        self.answered_at = time.monotonic()  # when the database last answered
        self._pool = pool
        self._own = own
        self._changed = changed
        self._interval_seconds = interval_seconds
        self._last: Sample | None = None

    async def run(self) -> None:
        """Write and sample until cancelled."""
        await retry(
            self._keep_sampling,
            errors=(Unavailable, asyncpg.PostgresError),
            on_failure=self._on_failure,
            backoff=Backoff(first_seconds=self._interval_seconds, cap_seconds=max(5, self._interval_seconds)),
        )

    async def _keep_sampling(self, backoff: Backoff) -> None:
        while True:
            async with translated(self._pool):
                await self._sample()
            self.answered_at = time.monotonic()
            backoff.reset()
            await self._note_changes(self._interval_seconds)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The pod cannot write its counts to the database: %r", error)
        # Otherwise the counts of the whole gap would look like those of one interval.
        self._last = None

    async def leave(self) -> None:
        """Delete the pod's row, if the database answers at once."""
        try:
            async with translated(self._pool, _LEAVING_SECONDS):
                await pod_rows.remove(self._pool, self._own().id)
        except (Unavailable, asyncpg.PostgresError) as error:
            logger.info("The pod's row stays in the database until it expires: %r", error)

    async def _note_changes(self, seconds: float) -> None:
        """For this many seconds, write the row again whenever the subscribers have changed."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(NOTE_PAUSE_SECONDS, left))
            try:
                async with asyncio.timeout(max(0, end - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                return
            self._changed.clear()
            async with translated(self._pool):
                await pod_rows.note(self._pool, self._own())

    async def _sample(self) -> None:
        self._changed.clear()
        async with self._pool.acquire() as connection:
            await pod_rows.note(connection, self._own())
            at, deliveries = await pod_rows.deliveries(connection)
            sample = Sample(at, await worker_rows.tokens(connection), deliveries)
        if self._last is not None and sample.at > self._last.at:
            self.points.append(Point.between(self._last, sample))
        while self.points and self.points[0].at < sample.at - HISTORY_SECONDS:
            self.points.popleft()
        self._last = sample
