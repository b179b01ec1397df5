"""A worker in the process of a pod, for small deployments: one process is one service.

The two share an event loop and nothing else: they meet in Postgres, as everywhere. The worker has connections of its
own, and what it writes comes back as a notification. A generator that blocks the loop blocks the pod, too; the
worker's watchdog reports it.

At a signal the worker leaves first (see `Pod.drain`). If it fails, the pod is no longer ready, and `baton serve` ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final, Self

from prometheus_client import CollectorRegistry

from .generators.registry import close_generators, load_generators
from .observability.metrics.exposition import exposed
from .settings import Settings
from .worker.workers import Workers

logger = logging.getLogger(__name__)

# How long the start waits for the worker. Then it keeps trying, and the pod is not ready.
START_SECONDS: Final = 10.0
# What handing over may take once the worker's time is up.
HAND_OVER_SECONDS: Final = 5.0


class EmbeddedWorker:
    """A `pod.companion.Companion`. Made by `open`."""

    def __init__(self, workers: Workers, drain_seconds: float) -> None:
        self._workers = workers
        self._drain_seconds = drain_seconds
        self._leaving = False
        self._task: asyncio.Task[None] | None = None
        self.failed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """Run a worker with the generators of the settings; at the end, let it hand over its streams.

        Raises:
            ConfigurationError: a generator cannot be loaded, or the database does not fit.
        """
        generators = load_generators(settings)
        try:
            embedded = cls(Workers(settings, generators), settings.worker_drain_seconds)
            with exposed(embedded.metrics_registry, settings.host, settings.worker_metrics_port):
                async with embedded._running():
                    yield embedded
        finally:
            await close_generators(generators)

    @property
    def ready(self) -> bool:
        """Whether it claims streams."""
        return self._workers.ready.is_set() and not self._leaving and not self.failed

    def leave(self) -> None:
        """Hand over the streams that can continue, and let the others end within `BATON_WORKER_DRAIN_SECONDS`.

        A second call gives them no time.
        """
        self._leaving = True
        self._workers.leave()

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until it has left, or this time has passed."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_seconds)

    @property
    def metrics_registry(self) -> CollectorRegistry:
        """The worker's metrics."""
        return self._workers.metrics.registry

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        task = self._task = asyncio.create_task(self._workers.run(), name="worker")
        try:
            await self._start(task)
            task.add_done_callback(self._on_end)
            yield
        finally:
            if not self._leaving:
                self.leave()
            await self.wait(self._drain_seconds + HAND_OVER_SECONDS)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _start(self, task: asyncio.Task[None]) -> None:
        """Wait until the worker claims streams; raise what keeps it from starting."""
        ready = asyncio.create_task(self._workers.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=START_SECONDS)
        ready.cancel()
        if task.done():
            task.result()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if self._leaving:
            return
        self.failed = True
        error = None if task.cancelled() else task.exception()
        logger.critical("The worker in this process has failed. Restart the process.", exc_info=error)
