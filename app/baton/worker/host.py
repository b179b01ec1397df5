"""What the workers of one process share: they have one event loop, one set of generators, and one capacity.

All of it belongs to that loop, except what `watchdog` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import UUID

from ..generators import Generator
from ..generators.registry import configured_models
from ..observability.metrics import Names, WorkerMetrics
from ..settings import Settings
from .capacity import Capacity
from .end_hook import load_end_hook
from .run import Run
from .telemetry import Telemetry
from .turns import Turns
from .watchdog import Watchdog


class Host:
    """One process. Its settings are those of no particular database."""

    def __init__(self, settings: Settings, generators: Mapping[str, Generator]) -> None:
        """Import the end hook, if the settings name one.

        Raises:
            ConfigurationError: the end hook cannot be used.
        """
        self.generators = generators
        self.names = sorted(generators)
        self.metrics = WorkerMetrics(settings.worker_concurrency, silent_after_seconds=settings.silent_after_seconds)
        # A model may only be a fallback, and have no streams of its own.
        names_in_metrics = Names(generators.keys() | settings.models.keys(), configured_models(settings))
        self.telemetry = Telemetry(self.metrics, names_in_metrics)
        self.end_hook = load_end_hook(settings, self.metrics)
        self.capacity = Capacity(
            generators, streams=settings.worker_concurrency, input_bytes=settings.worker_max_total_input_bytes
        )
        self.turns = Turns()
        self.watchdog = Watchdog(self.runs, self.metrics, hang_seconds=settings.worker_hang_seconds)
        self.ready = asyncio.Event()  # a worker is registered and claiming
        self._runs: list[Mapping[UUID, Run]] = []
        self.metrics.silences = self._silences
        for name in self.names:
            self.metrics.loop_blocked_seconds.add(name, count=0)  # so that the first block is an increase

    def join(self, runs: Mapping[UUID, Run]) -> None:
        """Add the streams of a worker, which may change."""
        self._runs.append(runs)

    def runs(self) -> list[Run]:
        """Return what runs here, of all databases. Any thread may call this."""
        # Copying the values of one dictionary is one step, which no other thread can interrupt.
        return [run for runs in self._runs for run in list(runs.values())]

    def _silences(self) -> list[tuple[str, float]]:
        """Return the generator of each run, and for how many seconds it has been silent. Any thread may call this."""
        return [(run.labels.generator, run.silent_seconds) for run in self.runs()]
