"""Pods and a worker as processes of their own, which may all be killed, and start again at the same addresses."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults.servers import free_port
from tests.faults.worker_processes import QUICK
from tests.support.processes import SERVES, Running, environment, running


class Deployment:
    """Two pods and one worker with the generators of `agents`, or `alone` one pod with a worker in it."""

    def __init__(self, dsn: str, *generators: str, alone: bool = False, **settings: Any) -> None:
        named = ",".join(f"{name}=agents:{name}" for name in generators)
        given = {"database_url": dsn, "generators": named, "reconnect_milliseconds": 50} | QUICK | settings
        self._env = environment(**{f"BATON_{name.upper()}": str(value) for name, value in given.items()})
        self._alone = ("--with-worker",) if alone else ()
        self._ports = [free_port() for _ in range(1 if alone else 2)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        self.processes: list[Running] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def start(self) -> None:
        """Start all processes, and wait until they serve and claim."""
        pods = [self._run("serve", *self._alone, ready=SERVES, BATON_PORT=str(port)) for port in self._ports]
        self.processes = await asyncio.gather(*pods, *([] if self._alone else [self.worker()]))

    async def worker(self) -> Running:
        """Start a worker."""
        return await self._run("worker", ready="is ready for")

    async def kill(self) -> None:
        """Kill all processes at once, as the loss of all machines does."""
        for process in self.processes:
            process.signal(signal.SIGKILL)
        for process in self.processes:
            await process.ends()
        self.processes = []

    async def _run(self, *command: str, ready: str, **variables: str) -> Running:
        process = running(*command, env=self._env | variables, cwd=Path(__file__).parent)
        started = await self._stack.enter_async_context(process)
        await started.said(ready)
        return started
