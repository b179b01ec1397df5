"""Systems that receive each token by POST, from a publisher in C whose cost is a separate part.

Such a publisher is cheaper than any application that would make the tokens; it is counted, as Baton's generators are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx2
import psutil
from bench.native import compiled
from bench.viewers import Target

# Each has one POST in flight.
CONNECTIONS: Final = 256


@dataclass(frozen=True, slots=True)
class Published:
    """A server and its publisher. `publish_at` and `watch_at` are addresses with the stream's name instead of `{}`."""

    port: int
    publish_at: str
    watch_at: str
    server: Mapping[str, Sequence[psutil.Process]]
    publisher: Process
    http: httpx2.AsyncClient | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def parts(self) -> Mapping[str, Sequence[psutil.Process]]:
        """The parts of the server, and the publisher."""
        return {**self.server, "publisher": [psutil.Process(self.publisher.pid)]}

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Publish tokens. Streams of these systems have no end."""
        if self.publisher.returncode is not None:
            raise RuntimeError(f"The publisher has ended with status {self.publisher.returncode}.")
        name = f"stream{next(self._numbers)}"
        path = self.publish_at.format(name)
        if self.http:
            address, kind = f"http://127.0.0.1:{self.port}{path}", {"Content-Type": "application/json"}
            (await self.http.put(address, headers=kind)).raise_for_status()
        assert self.publisher.stdin is not None
        self.publisher.stdin.write(f"begin {path} {tokens} {rate} {pause_seconds}\n".encode())
        return Target(self.port, self.watch_at.format(name), tokens)


@contextlib.asynccontextmanager
async def publisher(port: int, *flags: str, connections: int = CONNECTIONS) -> AsyncIterator[Process]:
    """Run a publisher for the server at a port."""
    command = (str(compiled("publisher")), str(port), str(connections), *flags)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def producers(port: int, streams: int, linger_milliseconds: float, content_type: str) -> AsyncIterator[Process]:
    """Run a publisher whose streams have fenced producers, each with a connection of its own."""
    # A stream that replaces another one may begin before that one has ended.
    most = streams + streams // 5 + 10
    flags = ("--produce", f"{linger_milliseconds:g}", content_type)
    async with publisher(port, *flags, connections=most) as process:
        yield process
