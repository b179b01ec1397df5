"""What runs in a child process: a pod or a worker, with a link to its parent.

The parent passes an `Assignment` as the only argument, with the numbers of inherited sockets. The child reads the
settings itself, as any process of Baton does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from ..commands.long_lived import run, traced
from ..commands.working import work
from ..errors import ConfigurationError
from ..server.graceful_shutdown import DrainingServer
from ..server.serve import serve
from ..settings import Settings
from ..worker.workers import Workers
from . import lifeline
from .assignment import Assignment
from .channel import encoded
from .parent_link import ParentLink, Work

# What an orphan gets beyond the time in which its parts leave.
ORPHAN_SECONDS: Final = 15


def main() -> None:
    """Run the child. A mistake of the user is reported to the parent, which prints it once."""
    given = json.loads(sys.argv[1])
    assignment = Assignment(**given["assignment"])
    end = _inherited(given["channel"])
    listening = None if given["listening"] is None else _inherited(given["listening"])
    try:
        settings = assignment.settings()
        name, process = _names(assignment, settings)
        link = ParentLink(assignment.number)
        job = partial(_serve, settings, listening, link) if listening is not None else partial(_work, settings, link)
        run(settings, lambda: traced(name, lambda: _linked(link, end, job, _leave_seconds(settings))), **process)
    except ConfigurationError as error:
        end.setblocking(True)
        with contextlib.suppress(OSError):
            end.sendall(encoded("refused", sentence=str(error)))
        sys.exit(2)


def _names(assignment: Assignment, settings: Settings) -> tuple[str, dict[str, str]]:
    """Return the name of this process, and what each line of its log says of it."""
    process = {"process": str(assignment.number)}
    if assignment.command == "worker":
        return settings.worker_name, {"worker": settings.worker_name, **process}
    beside = {"worker": settings.worker_name} if settings.with_worker else {}
    return settings.pod_name, {"pod": settings.pod_name, **beside, **process}


async def _linked(
    link: ParentLink, end: socket.socket, job: Callable[[], Coroutine[Any, Any, None]], leave_seconds: float
) -> None:
    """Run a job until it has left, at the wish of the parent, at a signal, or since the parent has died."""
    loop = asyncio.get_running_loop()
    own = end.dup()
    own.setblocking(False)
    await link.open(own)
    working = asyncio.create_task(job())
    link.begin(working)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, link.signalled)
    lifeline.watch(end, lambda: loop.call_soon_threadsafe(link.leave), leave_seconds)
    linked = asyncio.create_task(link.run())
    try:
        await working
    except (asyncio.CancelledError, Exception):
        # What is cut short may fail in any way.
        if not link.abandoned:
            raise
    finally:
        linked.cancel()
        await asyncio.gather(linked, return_exceptions=True)


async def _serve(settings: Settings, listening: socket.socket, link: ParentLink) -> None:
    def attach(server: DrainingServer) -> None:
        pod = server.pod
        pod.siblings = link
        registries = {"pod": pod.metrics.registry}
        if pod.companion is not None:
            registries["worker"] = pod.companion.metrics_registry
        link.attach(Work(server.leave, server.hurry, registries))

    await serve(settings, listening, on_serving=attach)


async def _work(settings: Settings, link: ParentLink) -> None:
    def attach(working: Workers) -> None:
        def leave() -> None:
            # One that has no row yet has claimed nothing, and may wait for the database for long.
            if all(worker.lease.worker_id is None for worker in working.all):
                link.abandon()
            else:
                working.leave()

        registries = {"worker": working.metrics.registry}
        link.attach(Work(leave, working.leave, registries), working.ready)

    await work(settings, attach)


def _leave_seconds(settings: Settings) -> float:
    return settings.drain_seconds + settings.worker_drain_seconds + ORPHAN_SECONDS


def _inherited(number: int) -> socket.socket:
    """Return the socket that the parent passed under this file number, and pass it on to no further process."""
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)
