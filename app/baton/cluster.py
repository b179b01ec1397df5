"""Two pods on one port and a worker, as child processes, for the demo.

They are left in no case: whoever enters `Cluster.open` has them ended when it leaves, and each is its own process
group, so that a Ctrl-C in the terminal reaches only the parent, which ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx2

from .errors import DemoError

PODS: Final = ("pod-a", "pod-b")
WORKER: Final = "worker"
READY_SECONDS: Final = 30
LEAVE_SECONDS: Final = 3
POLL_SECONDS: Final = 0.05
LAST_LINES: Final = 12

# Whatever a person has set for Baton or its providers is for their own pods and workers.
_FOREIGN: Final = ("BATON_", "OPENAI_", "ANTHROPIC_")

Result = TypeVar("Result")


@dataclass(slots=True)
class Child:
    """A pod or the worker. `ended` is done when the process is, with its exit status."""

    name: str
    pid: int
    log: Path
    ended: asyncio.Task[int]
    dismissed: bool = False

    @property
    def fate(self) -> str:
        """How it ended."""
        status = self.ended.result()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def last_lines(self) -> str:
        """The end of what it logged."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LAST_LINES:]) or "    (it said nothing)"

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended; nothing else can have its pid before it was waited for."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Cluster:
    """The children. Made by `Cluster.open`."""

    def __init__(self, folder: Path, port: int, environment: Mapping[str, str]) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.killed: Child | None = None
        self.children: dict[str, Child] = {}
        self._folder = folder
        self._port = port
        self._environment = environment

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path, port: int, settings: dict[str, str]) -> AsyncIterator[Self]:
        """Start all three with these settings (`BATON_…`), logging into `folder`, and end them when left."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}
        cluster = cls(folder, port, kept | settings)
        try:
            for name in PODS:
                await cluster._start(name, "serve", BATON_POD_NAME=name)
            await cluster._start(WORKER, "worker", BATON_WORKER_NAME=f"demo-{os.getpid()}")
            yield cluster
        finally:
            await cluster._stop()

    @property
    def pods(self) -> list[Child]:
        """The pods that run."""
        return [self.children[name] for name in PODS if not self.children[name].ended.done()]

    async def wait_until_ready(self, http: httpx2.AsyncClient) -> None:
        """Wait until the worker claims and each pod has said that it is ready.

        Raises:
            DemoError: one has ended, or they are not ready in time.
        """
        answered: set[str] = set()
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not self._all_ready(answered):
                    await asyncio.sleep(POLL_SECONDS)
                    self.check()
                    with contextlib.suppress(httpx2.TransportError):
                        reply = await http.get(f"{self.address}/readyz")
                        if reply.is_success:
                            answered.add(reply.headers.get("x-baton-pod", ""))
        except TimeoutError:
            late = next(child for name, child in self.children.items() if name not in answered)
            raise DemoError(
                f"Pods and worker were not ready within {READY_SECONDS} seconds. Ready were: "
                f"{', '.join(sorted(answered)) or 'none'}. The last lines of {late.log}:\n{late.last_lines()}"
            ) from None

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work` as long as all children run that are to run.

        Raises:
            DemoError: one has ended.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                running = {child.ended for child in self.children.values() if not child.dismissed}
                await asyncio.wait({task, *running}, return_when=asyncio.FIRST_COMPLETED)
                self.check()
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def kill(self, name: str) -> None:
        """End a pod with SIGKILL, as when its machine disappears.

        Raises:
            DemoError: there is no pod of that name.
        """
        child = self.children.get(name)
        if child is None:
            raise DemoError(f"{self.address} was answered by {name!r}, which is no pod of this demo.")
        self.killed = child
        child.dismissed = True
        child.signal(signal.SIGKILL)
        await child.ended

    async def next_end(self) -> Child:
        """Wait until one more child ends, and dismiss it."""
        running = {child.ended: child for child in self.children.values() if not child.dismissed}
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        child = running[done.pop()]
        child.dismissed = True
        return child

    def check(self) -> None:
        """Raise DemoError if a child has ended that nobody dismissed."""
        for child in self.children.values():
            if child.ended.done() and not child.dismissed:
                raise DemoError(
                    f"{child.name} has ended ({child.fate}). The last lines of {child.log}:\n{child.last_lines()}"
                )

    def _all_ready(self, answered: set[str]) -> bool:
        # Elsewhere than on Linux one pod gets all connections to the port: there the other's log must do.
        if sys.platform != "linux" and answered:
            answered |= {name for name in PODS if "serves on" in self._log(name)}
        return answered.issuperset(PODS) and "is ready" in self._log(WORKER)

    def _log(self, name: str) -> str:
        return self.children[name].log.read_text(errors="replace")

    async def _start(self, name: str, command: str, **settings: str) -> None:
        log = self._folder / f"{name}.log"
        arguments = ["--port", str(self._port)] if command == "serve" else []
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "baton", command, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **settings},
                cwd=self._folder,  # where no `.env` lies
                process_group=0,
            )
        self.children[name] = Child(name, process.pid, log, asyncio.create_task(process.wait()))

    async def _stop(self) -> None:
        """Ask all to leave, and kill those that do not."""
        if not self.children:
            return
        ended = [child.ended for child in self.children.values()]
        for child in self.children.values():
            child.signal(signal.SIGTERM)
        await asyncio.wait(ended, timeout=LEAVE_SECONDS)
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        await asyncio.wait(ended)
