"""Runs a process that lives long, a pod or a worker: with its log, its event loop and its traces.

The parent of several processes imports this, so it imports little.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import uvloop
from rich.console import Console

from ..observability import log_config, tracing
from ..settings import Settings

terminal: Final = Console(stderr=True, highlight=False, soft_wrap=True)


def run(settings: Settings, start: Callable[[], Awaitable[None]], **process: str) -> None:
    """Configure the log, whose lines have the fields of `process`, and run `start` in an event loop."""
    log_config.configure(
        terminal,
        form=settings.log_format,
        level=settings.log_level,
        project=settings.google_cloud_project,
        **process,
    )

    async def started() -> None:
        await start()

    uvloop.run(started())


async def traced(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run the work of a process. If OpenTelemetry's own variables name a collector, export spans to it."""
    if not tracing.wanted():
        await work()
        return
    # This is slow to import, so it is imported only if it is used.
    from ..observability.trace_export import exporting

    with exporting(name):
        await work()
