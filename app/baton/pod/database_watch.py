"""Measures a database for its pod at intervals: the queue, the partitions, and what an operator should know in time.

All of it runs on the pod's event loop, over the pool of the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

import asyncpg

from ..db import (
    disk_space,
    external_details,
    notifications,
    partitions,
    queue_lines,
    stream_lists,
    stream_queue,
    vacuum_horizon,
)
from ..db.fair_pool import FairPool
from ..db.postgres import Connection, Pool, translated
from ..db.queue_lines import QueueLines
from ..db.queue_watermark import SWEEP_SECONDS, QueueWatermark
from ..db.stream_queue import QueueState
from ..errors import Unavailable
from ..observability.metrics import DatabaseMetrics
from ..observability.metrics.numbers import Histogram

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 15
QUEUE_SECONDS: Final = 0.5


class DatabaseWatch:
    """What a pod knows of the state of one database."""

    def __init__(self, pool: Pool, metrics: DatabaseMetrics, pool_wait_seconds: Histogram) -> None:
        self.queue_lines = QueueLines()
        self._pool = pool
        self._metrics = metrics
        self._pool_wait_seconds = pool_wait_seconds
        self._queue = QueueWatermark(late_check_seconds=SWEEP_SECONDS)
        self._snapshots = vacuum_horizon.HorizonWatch()

    @property
    def disk_full(self) -> bool:
        """Whether the database's disk is full. Clients can read then, so the pod stays ready."""
        return isinstance(self._pool, FairPool) and self._pool.disk_full

    async def run(self) -> None:
        """Measure at intervals what an operator should know, and log problems while there is time to act."""
        while True:
            try:
                reach = await self._measure()
            except (Unavailable, asyncpg.PostgresError) as error:
                logger.warning("The pod cannot measure the database: %r", error)
            else:
                if reach.left_seconds < partitions.LEAST_SECONDS:
                    logger.error(
                        "The log's partitions end in %.1f h; after that nothing can be written. Run `baton maintain`. "
                        "Workers create partitions too: their log says why they cannot.",
                        reach.left_seconds / 3600,
                    )
            await asyncio.sleep(LOOK_SECONDS)

    async def watch_queue(self) -> None:
        """Keep the queue's watermarks up to date, so that reads of it stay short even if vacuum removes nothing."""
        while True:
            try:
                async with translated(self._pool), self._pool.acquire() as connection:
                    await self._queue.update(lambda since: queue_lines.first(connection, since))
                    await self.queue_lines.update(connection)
            except (Unavailable, asyncpg.PostgresError):
                self._queue.forget()
                self.queue_lines.forget()
            await asyncio.sleep(QUEUE_SECONDS)

    async def queue_state(self, connection: Connection) -> QueueState:
        """Return how many streams wait for a worker, and for how many seconds the first one has waited."""
        if self._queue.due:
            await self._queue.update(lambda since: queue_lines.first(connection, since))
        return await stream_queue.state(connection, self._queue.since)

    async def _measure(self) -> partitions.Reach:
        """Measure the partitions' reach, the queues, the oldest snapshot, and the wait for a pooled connection."""
        metrics = self._metrics
        metrics.pool_connections, metrics.pool_idle = self._pool.get_size(), self._pool.get_idle_size()
        asked_at = time.monotonic()
        async with translated(self._pool), self._pool.acquire() as connection:
            self._pool_wait_seconds.observe(time.monotonic() - asked_at)
            reach = await partitions.reach(connection)
            metrics.notify_queue_ratio = await notifications.queue_usage(connection)
            metrics.queue = (await self.queue_state(connection)).by_generator
            metrics.open_streams = await external_details.count_open(connection)
            metrics.waiting = await stream_lists.count_waiting(connection)
            metrics.oldest_snapshot_seconds = await self._snapshots.check(connection)
            await self._check_disk(connection)
        metrics.partitions_end = reach.end
        return reach

    async def _check_disk(self, connection: Connection) -> None:
        """Note whether the disk is full. This also covers a pod that writes nothing, and a disk that has room again."""
        full = not await disk_space.has_room(connection)
        if full:
            logger.error("The database's disk is full. Streams can be read, but nothing can be written.")
        if isinstance(self._pool, FairPool):
            self._pool.disk_full = full
