"""resumable-stream (npm) with Redis: one node process creates the streams, another serves the viewers.

The library is for this case: a client that reconnects to a process other than the one that makes the stream. Redis only
forwards messages. The stream itself is in the memory of its producer, so its events are lost with that process.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
from bench.packages import debian, debian_version
from bench.processes import free_port, program
from bench.viewers import Target

from . import Shape, http_client
from .node import command, node_version, npm_version, script


@dataclass(frozen=True, slots=True)
class RunningResumableStream:
    """The two processes, and Redis."""

    producer: int
    relay: int
    http: httpx2.AsyncClient
    parts: Mapping[str, Sequence[psutil.Process]]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Make the producer start a stream, to be followed at the relay."""
        path = f"/streams/{next(self._numbers)}"
        given = {"tokens": tokens, "rate": rate, "pause": pause_seconds, "stays": stays_seconds}
        answer = await self.http.post(f"http://127.0.0.1:{self.producer}{path}", params=given)
        answer.raise_for_status()
        return Target(self.relay, path, tokens)


@dataclass(frozen=True, slots=True)
class ResumableStream:
    """resumable-stream."""

    name: str = "resumable-stream, Redis"
    keeps: bool = False
    serves: str = "relay"
    flags: Sequence[str] = ()

    def versions(self) -> Mapping[str, str]:
        """The versions of the packages."""
        versions = {name: npm_version(name) for name in ("resumable-stream", "redis")}
        return {"Node": node_version(), "Redis": debian_version("redis-server"), **versions}

    def install(self) -> None:
        """Install Redis from Debian, the rest from npm."""
        debian("redis-server")
        script("resumable_stream")

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, _shape: Shape) -> AsyncIterator[RunningResumableStream]:
        """Start Redis, which writes nothing to disk, and both processes."""
        redis, producer, relay = free_port(), free_port(), free_port()
        # By default Redis cuts off a subscriber that has 32 MB waiting. That happens when many viewers ask for a whole
        # stream.
        patient = ("--client-output-buffer-limit", "pubsub 0 0 0")
        quiet = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder), *patient)
        async with contextlib.AsyncExitStack() as stack:

            async def start(*command: str, port: int) -> list[psutil.Process]:
                return [await stack.enter_async_context(program(folder, *command, port=port))]

            async def start_node(role: str, port: int) -> list[psutil.Process]:
                return await start(*command("resumable_stream"), role, str(port), str(redis), port=port)

            parts = {
                "redis": await start("redis-server", "--port", str(redis), *quiet, port=redis),
                "producer": await start_node("producer", producer),
                "relay": await start_node("relay", relay),
            }
            http = await stack.enter_async_context(http_client())
            yield RunningResumableStream(producer, relay, http, parts)
