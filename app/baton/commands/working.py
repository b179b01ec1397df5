"""Runs a worker in this process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from ..generators.registry import close_generators, load_generators
from ..observability.garbage_collector import collect_seldom
from ..observability.metrics.exposition import exposed
from ..settings import Settings
from ..worker.workers import Workers


async def work(settings: Settings, on_made: Callable[[Workers], None] | None = None) -> None:
    """Run a worker until a signal ends it. `on_made` gets it before it starts, and handles signals itself.

    Raises:
        ConfigurationError: a generator cannot be loaded, or the database does not fit.
    """
    generators = load_generators(settings)
    working = Workers(settings, generators)
    loop = asyncio.get_running_loop()
    if on_made is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, working.leave)
    else:
        on_made(working)
    try:
        collect_seldom()
        with exposed(working.metrics.registry, settings.host, settings.worker_metrics_port):
            await working.run()
    finally:
        await close_generators(generators)
