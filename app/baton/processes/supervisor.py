"""The parent of the processes of one command. It serves no client and claims no stream.

It starts the children, replaces those that die, and answers for the metrics of all. At the first SIGTERM or SIGINT all
children drain at the same time, each as a single process does; the command ends with 0 when all have. At the second
signal they end at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from ..commands.long_lived import run
from ..observability.metrics.exposition import exposed
from ..settings import Settings
from .assignment import Assignment, Command
from .families import Families, merged, registry_of, rendered, states
from .listening_sockets import ListeningSockets
from .slot import ChildFailed, Slot
from .spawned import Spawned

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
# How long a pod's event loop may stand still before the process is replaced.
HANG_SECONDS: Final = 30
# How long children may take to end at once, before they are killed.
HURRY_SECONDS: Final = 5
# How long a child may take to send its metrics. Prometheus waits for ten seconds, for all of them.
MEASURE_SECONDS: Final = 1.5
# How long a thread waits for all of them.
COLLECT_SECONDS: Final = 5


class Supervisor:
    """The children of one command. Use `supervise`."""

    def __init__(
        self, settings: Settings, overrides: dict[str, Any], command: Command, sockets: ListeningSockets | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        hang_ticks = math.ceil(_hang_seconds(settings, command) / TICK_SECONDS)
        self._slots = [
            Slot(Assignment.of(settings, overrides, command, number), sockets, self._on_ask, hang_ticks=hang_ticks)
            for number in range(settings.processes)
        ]
        self._signals = 0
        self._answering: dict[Spawned, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run the children until all have left.

        Raises:
            ConfigurationError: a child could not start; the sentence is the first one's.
            SystemExit: a child failed during its start, or did not leave cleanly; the exit code is 1.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        running = [asyncio.create_task(slot.run()) for slot in self._slots]
        watching = [asyncio.create_task(watch) for watch in (self._tick(), self._announce())]
        try:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
            self._leave()
            await asyncio.wait(running)
        finally:
            for task in (*watching, *self._answering.values()):
                task.cancel()
            await asyncio.gather(*watching, *self._answering.values(), return_exceptions=True)
        errors = [error for task in (*done, *running) if (error := task.exception())]
        if errors:
            raise SystemExit(1) if isinstance(errors[0], ChildFailed) else errors[0]

    async def metrics(self, *parts: str) -> list[Metric]:
        """Return the metrics of all children that answer in time, of these parts of their processes."""
        answers = await asyncio.gather(*(_measured(slot.child) for slot in self._slots))
        up = {slot.number: answer is not None for slot, answer in zip(self._slots, answers, strict=True)}
        families = {
            slot.number: [family for part in parts for family in answer.get(part, [])]
            for slot, answer in zip(self._slots, answers, strict=True)
            if answer is not None
        }
        return [*states(up, {slot.number: slot.replaced for slot in self._slots}), *merged(families)]

    def worker_registry(self) -> CollectorRegistry:
        """Return the metrics of the children's workers, for a thread to collect; none once this has ended."""

        def collect() -> list[Metric]:
            try:
                return asyncio.run_coroutine_threadsafe(self.metrics("worker"), self._loop).result(COLLECT_SECONDS)
            except (TimeoutError, RuntimeError):
                return []

        return registry_of(collect)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._leave()
            return
        for slot in self._slots:
            slot.hurry()
            self._loop.call_later(HURRY_SECONDS, slot.kill)

    def _leave(self) -> None:
        for slot in self._slots:
            slot.leave()

    def _on_ask(self, child: Spawned) -> None:
        if child not in self._answering:
            self._answering[child] = task = asyncio.create_task(self._answer(child))
            task.add_done_callback(lambda _: self._answering.pop(child))

    async def _answer(self, child: Spawned) -> None:
        child.answer(rendered(await self.metrics("pod", "worker")).decode())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for slot in self._slots:
                slot.tick()

    async def _announce(self) -> None:
        for slot in self._slots:
            await slot.was_ready.wait()
        logger.info("All %d processes are ready.", len(self._slots))


def supervise(settings: Settings, overrides: dict[str, Any], command: Command) -> None:
    """Run a command in several processes, and return when all have left. `overrides` are from the command line.

    Raises:
        ConfigurationError: an address is not available, or a child could not start.
        SystemExit: a child failed during its start, or did not leave cleanly; the exit code is 1.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))  # there are no children yet
    own = {"pod": settings.pod_name} if command == "serve" else {"worker": settings.worker_name}
    run(settings, lambda: _supervise(settings, overrides, command), **own, process="parent")


async def _supervise(settings: Settings, overrides: dict[str, Any], command: Command) -> None:
    with contextlib.ExitStack() as stack:
        sockets = None
        if command == "serve":
            opened = ListeningSockets.open(settings.host, settings.port, settings.write_timeout_seconds)
            sockets = stack.enter_context(opened)
        supervisor = Supervisor(settings, overrides, command, sockets)
        if command == "worker" or settings.with_worker:
            stack.enter_context(exposed(supervisor.worker_registry(), settings.host, settings.worker_metrics_port))
        await supervisor.run()


async def _measured(child: Spawned | None) -> dict[str, Families] | None:
    """Return a child's metrics; None if there is no child now, or if it does not answer in time."""
    if child is None:
        return None
    try:
        return await asyncio.wait_for(child.measure(), MEASURE_SECONDS)
    except TimeoutError:
        return None


def _hang_seconds(settings: Settings, command: Command) -> float:
    """Return how long an event loop may stand still. A worker that hangs loses its streams itself, before."""
    if command == "worker" or settings.with_worker:
        return max(HANG_SECONDS, settings.worker_hang_seconds + settings.lease_seconds)
    return HANG_SECONDS
