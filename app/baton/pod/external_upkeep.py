"""What pods do for external streams, since there may be no worker: end those that are due, and delete expired ones.

Each pod does it. Every end is conditional, so it does not matter that several pods find the same streams.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Final

import asyncpg

from ..db import external_streams, stream_ending
from ..db.external_streams import Overdue
from ..db.postgres import Pool, translated
from ..errors import Unavailable
from ..hints import hint
from ..hints.hints import Hints
from ..outcome import Outcome
from ..pace import Pace
from ..settings import Settings

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
EXPIRED_SECONDS: Final = 30.0

PRODUCER_LOST: Final = Outcome.failed(
    "producer_lost", "This answer was interrupted and could not be finished: what wrote it has stopped."
)
_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "cancelled": Outcome.cancelled(),
    "producer_lost": PRODUCER_LOST,
    "max_duration": Outcome.failed("max_duration", "The answer took longer than it may."),
    "unwatched": stream_ending.UNWATCHED,
    "rewound": stream_ending.REWOUND,
}


class ExternalUpkeep:
    """The upkeep of one pod, which awaits `run()`."""

    def __init__(self, settings: Settings, pool: Pool, hints: Hints) -> None:
        self._settings = settings
        self._pool = pool
        self._hints = hints
        self._interrupted_at = time.monotonic()
        self._rewound: tuple[str, float] | None = None  # a history with open streams of an older one, and since when
        self._overdue_pace = Pace(factor=20, least_seconds=CHECK_SECONDS)
        self._expired_pace = Pace(factor=100, least_seconds=EXPIRED_SECONDS)

    async def run(self) -> None:
        """Check at intervals until cancelled."""
        while True:
            # Pods that were started together do not check together.
            await asyncio.sleep(random.uniform(0.5, 1.5) * CHECK_SECONDS)
            try:
                await self.check()
            except (Unavailable, asyncpg.PostgresError) as error:
                self._interrupted_at = time.monotonic()
                logger.warning("The pod cannot look after streams that are written over HTTP: %r", error)

    async def check(self) -> None:
        """End and delete what is due.

        Raises:
            Unavailable, asyncpg.PostgresError: the database does not answer.
        """
        if self._overdue_pace.due:
            await self._end_overdue()
        if self._expired_pace.due:
            await self._delete_expired()

    async def _end_overdue(self) -> None:
        with self._overdue_pace.timed():
            async with translated(self._pool):
                rewound = await self._may_end_rewound()
                found = await external_streams.overdue(
                    self._pool,
                    max_duration=self._settings.max_duration_seconds,
                    idle_timeout=self._settings.idle_timeout_seconds,
                    max_life=self._settings.external_max_seconds,
                    rewound=rewound,
                    unwatched=time.monotonic() - self._interrupted_at > self._settings.watchers_known_after_seconds,
                )
        for item in found:
            await self._end(item)

    async def _may_end_rewound(self) -> bool:
        """Whether the producers of open streams had the time to prove that a failover lost nothing of theirs."""
        history = await external_streams.rewound_history(self._pool)
        if history is None:
            self._rewound = None
            return False
        if self._rewound is None or self._rewound[0] != history:
            self._rewound = (history, time.monotonic())
        return time.monotonic() - self._rewound[1] >= self._settings.failover_settle_seconds

    async def _end(self, item: Overdue) -> None:
        async with translated(self._pool):
            if await stream_ending.end_open(self._pool, item.stream_id, _OUTCOMES[item.reason]):
                self._hints.send(hint.of_change(item.stream_id))

    async def _delete_expired(self) -> None:
        with self._expired_pace.timed():
            async with translated(self._pool):
                found = await external_streams.expired(self._pool)
        for stream_id, tenant in found:
            async with translated(self._pool):
                await stream_ending.erase(self._pool, stream_id, tenant)
                self._hints.send(*hint.of_erasure(stream_id))
