"""The viewers of a measurement: a separate process in C, so that their cost is small and counted separately.

They check each token's number, and measure its delay by the time that it carries. `bench/native/viewers.c` says how.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Self

import orjson

from .native import compiled

ANSWER_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Target:
    """Where to follow a stream on 127.0.0.1, and the number of its last token, or 0 if it is not known."""

    port: int
    path: str
    last: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What viewers received since the previous report. Times are in seconds since 1970, or 0."""

    at: float
    events: int
    gaps: int
    repeats: int
    bytes: int
    connected: int
    failed: int  # connections that were refused, or not answered with 200
    lost: int  # that ended before the last token
    whole: int  # viewers that got the last token
    resumed: int  # viewers that got a token after a reconnect
    open: int  # now
    first_at: float
    last_at: float
    whole_at: float
    resumed_at: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    cpu_seconds: float  # of the viewers, since their start


class Viewers:
    """The process. Use `Viewers.open`."""

    def __init__(self, process: Process, over: Callable[[str], None]) -> None:
        self._process = process
        self._over = over
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *flags: str, over: Callable[[str], None] = lambda path: None) -> AsyncIterator[Self]:
        """Start the process; end it and all its connections on exit.

        Flags are those of the program; `over` is called with the path of each viewer that gets a stream's last token.

        Raises:
            Missing: it cannot be compiled here.
        """
        process = await asyncio.create_subprocess_exec(compiled("viewers"), *flags, stdin=PIPE, stdout=PIPE)
        viewers = cls(process, over)
        reading = asyncio.create_task(viewers._read())
        try:
            yield viewers
        finally:
            process.kill()
            await asyncio.gather(process.wait(), reading)

    def watch(self, target: Target) -> None:
        """Add a viewer."""
        self._send(f"open {target.port} {target.path} {target.last}")

    def move(self, port: int) -> None:
        """Make viewers that lose their connection reconnect to this port. Needs `--again`."""
        self._send(f"move {port}")

    async def report(self) -> Report:
        """Return the report since the previous one."""
        self._send("report")
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._reports.get()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(b"over "):
                self._over(line[5:-1].decode())
            else:
                self._reports.put_nowait(Report(**orjson.loads(line)))
