"""Runs pods and workers as child processes, for the demo, chaos and the benchmarks.

Leaving `Cluster.open` always ends them. Each is a session of its own, so a Ctrl-C in the terminal reaches only the
parent, which ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx2

from ..errors import ConfigurationError, DemoError
from ..server.listening_socket import bind

READY_SECONDS: Final = 30
LEAVE_SECONDS: Final = 3
POLL_SECONDS: Final = 0.05
LAST_LINES: Final = 12

# These variables are not passed on: they are for the user's own pods and workers.
_FOREIGN: Final = ("BATON_", "OPENAI_", "ANTHROPIC_")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs: a pod if it has a port, else a worker. `settings` are for it alone (`BATON_…`)."""

    name: str
    port: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pod(self) -> bool:
        """Whether this is a pod."""
        return self.port is not None

    @property
    def address(self) -> str:
        """The URL of the pod."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the command `baton`."""
        return ("serve", "--host", "127.0.0.1", "--port", str(self.port)) if self.is_pod else ("worker",)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for it alone."""
        return {
            "BATON_POD_NAME" if self.is_pod else "BATON_WORKER_NAME": self.name,
            "BATON_LOG_FORMAT": "text",
            **self.settings,
        }


@dataclass(slots=True)
class Child:
    """A process. `ended` is resolved with its exit status. Its output starts at `log_offset` of `log`."""

    program: Program
    pid: int
    log: Path
    log_offset: int
    ended: asyncio.Task[int]
    dismissed: bool = False
    _ready: bool = False

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def ready(self) -> bool:
        """Whether it has logged that it is ready."""
        self._ready = self._ready or (b"serves on" if self.program.is_pod else b"is ready") in self.logged()
        return self._ready

    def logged(self) -> bytes:
        """Return its output."""
        with self.log.open("rb") as log:
            log.seek(self.log_offset)
            return log.read()

    @property
    def fate(self) -> str:
        """How it ended, in words."""
        status = self.ended.result()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def last_lines(self) -> str:
        """Return the last lines of its output."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LAST_LINES:]) or "    (no output)"

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended. Its pid cannot be reused before it was waited for."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Cluster:
    """The child processes. Use `Cluster.open`."""

    def __init__(self, folder: Path, programs: Sequence[Program], environment: Mapping[str, str]) -> None:
        self.children: dict[str, Child] = {}
        self.programs = {program.name: program for program in programs}
        self._folder = folder
        self._environment = environment

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path, programs: Sequence[Program], settings: Mapping[str, str]) -> AsyncIterator[Self]:
        """Start all programs with these settings (`BATON_…`), with logs in `folder`; end them on exit."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}
        cluster = cls(folder, programs, {**kept, **settings})
        try:
            for name in cluster.programs:
                await cluster.start(name)
            yield cluster
        finally:
            await cluster._stop()

    @property
    def pods(self) -> list[Child]:
        """The running pods."""
        return [child for child in self.children.values() if child.program.is_pod and not child.ended.done()]

    @property
    def address(self) -> str:
        """The URL of the first pod."""
        return next(program.address for program in self.programs.values() if program.is_pod)

    async def wait_until_ready(self, http: httpx2.AsyncClient) -> None:
        """Wait until each worker has logged that it is ready and each pod has answered `/readyz`.

        Raises:
            DemoError: a process ended, or one was not ready in time.
        """
        answered: set[str] = set()
        addresses = {program.address for program in self.programs.values() if program.is_pod}
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not self._all_ready(answered):
                    await asyncio.sleep(POLL_SECONDS)
                    self.check()
                    for address in addresses:
                        with contextlib.suppress(httpx2.TransportError):
                            reply = await http.get(f"{address}/readyz")
                            if reply.is_success:
                                answered.add(reply.headers.get("x-baton-pod", ""))
        except TimeoutError:
            late = next(child for name, child in self.children.items() if name not in answered)
            raise DemoError(
                f"Pods and worker were not ready within {READY_SECONDS} seconds. Ready were: "
                f"{', '.join(sorted(answered)) or 'none'}. The last lines of {late.log}:\n{late.last_lines()}"
            ) from None

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work`, as long as all children that were not dismissed run.

        Raises:
            DemoError: a child ended.
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

    async def kill(self, name: str) -> Child:
        """Kill a pod or a worker with SIGKILL, as if its machine disappeared; return it.

        Raises:
            DemoError: there is no child of that name.
        """
        child = self.children.get(name)
        if child is None:
            raise DemoError(f"{name!r} serves or writes the answer, and this command did not start it.")
        child.dismissed = True
        child.signal(signal.SIGKILL)
        await child.ended
        return child

    async def next_end(self) -> Child:
        """Wait until another child ends, and dismiss it."""
        running = {child.ended: child for child in self.children.values() if not child.dismissed}
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        child = running[done.pop()]
        child.dismissed = True
        return child

    def check(self) -> None:
        """Raise DemoError if a child that was not dismissed has ended."""
        for child in self.children.values():
            if child.ended.done() and not child.dismissed:
                raise _ended(child)

    async def start(self, name: str) -> Child:
        """Start a program, for the first time or again."""
        program = self.programs[name]
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            offset = output.tell()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "baton", *program.arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **program.environment},
                cwd=self._folder,  # has no `.env`
                start_new_session=True,
            )
        child = Child(program, process.pid, log, offset, asyncio.create_task(process.wait()))
        self.children[name] = child
        return child

    async def restart(self, child: Child) -> Child:
        """Restart the program of a child that has ended.

        Raises:
            DemoError: it ended before it was ready, and would do so again.
        """
        if not child.ready:
            raise _ended(child)
        return await self.start(child.name)

    def _all_ready(self, answered: set[str]) -> bool:
        # Except on Linux, one pod gets all connections to a shared port: use the other pod's log.
        if sys.platform != "linux" and answered:
            answered |= {pod.name for pod in self.pods if pod.ready}
        return all(child.name in answered if child.program.is_pod else child.ready for child in self.children.values())

    async def _stop(self) -> None:
        """Send SIGTERM to all, and kill those that do not end."""
        if not self.children:
            return
        ended = [child.ended for child in self.children.values()]
        for child in self.children.values():
            child.signal(signal.SIGTERM)
        await asyncio.wait(ended, timeout=LEAVE_SECONDS)
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        await asyncio.wait(ended)


def _ended(child: Child) -> DemoError:
    return DemoError(f"{child.name} has ended ({child.fate}). The last lines of {child.log}:\n{child.last_lines()}")


@contextlib.contextmanager
def reserved_port(port: int = 0) -> Iterator[int]:
    """Choose a port, or use the given one, and on Linux reserve it even while no pod listens.

    On other systems a socket that is bound but does not listen could receive the pods' connections.

    Raises:
        ConfigurationError: another process listens there.
    """
    if port and _is_taken(port):
        # Another user's pods would share the port and receive some of the requests.
        raise ConfigurationError(f"Another process listens on 127.0.0.1:{port}. Choose another --port.")
    with contextlib.closing(bind("127.0.0.1", port)) as bound:
        chosen: int = bound.getsockname()[1]
        if sys.platform != "linux":
            bound.close()
        yield chosen


def _is_taken(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
