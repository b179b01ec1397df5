"""A design written by hand on Postgres (`by_hand_app`): a producer and a server, with their own Postgres."""

from __future__ import annotations

import contextlib
import itertools
import sys
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
class ByHand:
    """The design written by hand."""

    name: str = "by hand: transaction + NOTIFY per token"
    keeps: bool = True
    serves: str = "server"
    flags: Sequence[str] = ()

    def versions(self) -> Mapping[str, str]:
        """The versions of its components."""
        return {name: version(name) for name in ("sse-starlette", "uvicorn", "asyncpg")}

    def install(self) -> None:
        """Nothing to install."""

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[RunningPair]:
        """Start Postgres and both processes."""
        producer, server = free_port(), free_port()
        uvicorn = (sys.executable, "-m", "uvicorn", "bench.peers.by_hand_app:app", "--port")
        async with contextlib.AsyncExitStack() as stack:
            dsn = stack.enter_context(embedded_postgres(folder))
            if shape.slow_commits:
                await slow_commits(dsn)
            environment = {"DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)}

            async def start(port: int) -> list[psutil.Process]:
                started = program(folder, *uvicorn, str(port), port=port, environment=environment)
                return [await stack.enter_async_context(started)]

            parts = {
                "producer": await start(producer),
                "server": await start(server),
                "postgres": [await postmaster(dsn)],
            }
            http = await stack.enter_async_context(http_client())
            paths = (f"/stream{number}" for number in itertools.count())
            yield RunningPair(producer, server, http, parts, paths)
