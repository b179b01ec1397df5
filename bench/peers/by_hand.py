"""A design written by hand on Postgres (`by_hand_app`): a producer and a server, with their own Postgres."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx2
import psutil
from bench.cluster import ROOT
from bench.postgres import postmaster, slow_commits
from bench.processes import free_port, program
from bench.viewers import Target

from baton.demo.embedded import embedded_postgres

from . import Shape, http_client


@dataclass(frozen=True, slots=True)
class RunningByHand:
    """The two processes, and Postgres."""

    producer: int
    server: int
    http: httpx2.AsyncClient
    parts: Mapping[str, Sequence[psutil.Process]]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Make the producer start a stream, to be followed at the server."""
        path = f"/stream{next(self._numbers)}"
        load = {"rate": rate, "tokens": tokens, "marked": True, "pause": pause_seconds, "stays": stays_seconds}
        (await self.http.post(f"http://127.0.0.1:{self.producer}{path}", json=load)).raise_for_status()
        return Target(self.server, path, tokens)


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
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[RunningByHand]:
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
            yield RunningByHand(producer, server, http, parts)
