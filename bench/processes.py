"""Starts the processes of a measurement, and reads their CPU time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import psutil

START_SECONDS: Final = 30
LEAVE_SECONDS: Final = 3


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def program(
    folder: Path, *command: str, port: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[psutil.Process]:
    """Run a server, and wait until it listens on its port. Its output goes to a file in the folder.

    Raises:
        RuntimeError: it has ended, or does not listen in time.
    """
    log = folder / f"{Path(command[0]).name}-{port}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    ended = asyncio.create_task(process.wait())
    try:
        if not await _listens(port, ended):
            raise RuntimeError(f"{' '.join(command)} does not listen on port {port}:\n{log.read_text()[-2000:]}")
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({ended}, timeout=LEAVE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await ended


async def _listens(port: int, ended: asyncio.Task[int]) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while not ended.done():
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return True
                await asyncio.sleep(0.02)
    return False


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children, running and ended."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system)
    return total
