"""The bare prototype of Baton's design (`bare_app`): a producer and a pod, with their own Postgres.

It shows what Baton costs beside the design itself. It may lose and repeat events, so nobody should run it.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from bench.cluster import ROOT
from bench.postgres import postmaster, slow_commits
from bench.processes import free_port, program

from baton.demo.embedded import embedded_postgres

from . import Shape, http_client
from .pair import RunningPair


@dataclass(frozen=True, slots=True)
class Bare:
    """The design without all that makes it safe to run."""

    name: str = "the bare design: INSERT + NOTIFY per flush"
    keeps: bool = True
    serves: str = "pod"
    flags: Sequence[str] = ()

    def versions(self) -> Mapping[str, str]:
        """The versions of its components."""
        return {name: version(name) for name in ("asyncpg", "uvloop")}

    def install(self) -> None:
        """Nothing to install."""

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[RunningPair]:
        """Start Postgres and both processes."""
        async with contextlib.AsyncExitStack() as stack:
            dsn = stack.enter_context(embedded_postgres(folder))
            if shape.slow_commits:
                await slow_commits(dsn)

            async def start(role: str, port: int) -> list[psutil.Process]:
                command = (sys.executable, "-m", "bench.peers.bare_app", role, str(port), dsn)
                started = program(folder, *command, port=port, environment={"PYTHONPATH": str(ROOT)})
                return [await stack.enter_async_context(started)]

            producer, pod = free_port(), free_port()
            parts = {
                "producer": await start("producer", producer),
                "pod": await start("pod", pod),
                "postgres": [await postmaster(dsn)],
            }
            http = await stack.enter_async_context(http_client())
            paths = (f"/{uuid.uuid4()}" for _ in itertools.count())
            yield RunningPair(producer, pod, http, parts, paths)
