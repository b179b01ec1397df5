"""Baton with producers outside: they append over HTTP, by the Durable Streams protocol, and there is no worker."""

from __future__ import annotations

import contextlib
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from bench.cluster import cluster
from bench.postgres import postmaster
from bench.viewers import Target

from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from . import Shape, http_client
from .baton import SETTINGS, Baton, RunningBaton
from .published import producers

CONTENT_TYPE: Final = 'application/json; profile="urn:baton:events"'
# No limit on appends that a measurement reaches, and connections stay open while they are idle.
FURTHER: Final = {
    "BATON_HTTP_KEEP_ALIVE_SECONDS": "600",
    "BATON_APPENDS_PER_SECOND": "1000000",
    "BATON_APPENDS_BURST": "1000000",
}


@dataclass(frozen=True, slots=True)
class RunningProduced(RunningBaton):
    """A running Baton, and its producers."""

    producers: Process | None = None
    by_protocol: bool = False

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Create a stream that is written over HTTP, and have a producer begin."""
        assert self.producers is not None
        assert self.producers.stdin is not None
        if self.producers.returncode is not None:
            raise RuntimeError(f"The producers have ended with status {self.producers.returncode}.")
        pod = self.pods[0].program
        answer = await self.http.post(f"{pod.address}/v1/streams", json={"generator": "external", "input": None})
        stream = answer.raise_for_status().json()
        path = stream["producer"]["url"]
        self.producers.stdin.write(f"begin {path} {tokens} {rate} {pause_seconds}\n".encode())
        assert pod.port is not None
        return Target(pod.port, f"{path}?offset=-1&live=sse" if self.by_protocol else stream["events_url"], tokens)


@dataclass(frozen=True, slots=True)
class Produced(Baton):
    """Baton whose viewers use its own API, or the protocol."""

    name: str = "Baton, producers"
    linger_milliseconds: float = 0
    by_protocol: bool = False
    flags: Sequence[str] = field(default=())

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[RunningProduced]:
        """Start Postgres, a pod and the producers."""
        with embedded_postgres(folder) as dsn:
            await migrate(dsn, days_ahead=7)
            running = cluster(dsn, folder, 1, {**SETTINGS, **FURTHER, **self.settings}, workers=())
            async with running as (children, port), http_client() as http:
                producing = producers(port, shape.streams, self.linger_milliseconds, CONTENT_TYPE)
                async with producing as process:
                    parts: Mapping[str, Sequence[psutil.Process]] = {
                        "pod": [psutil.Process(child.pid) for child in children.pods],
                        "postgres": [await postmaster(dsn)],
                        "publisher": [psutil.Process(process.pid)],
                    }
                    yield RunningProduced(dsn, children, http, parts, producers=process, by_protocol=self.by_protocol)
