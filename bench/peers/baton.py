"""Baton: pods and workers of this checkout, on an embedded Postgres of their own.

Its settings are the defaults, except the limits of streams and viewers, and the settings of the peer.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2
import orjson
import psutil
from bench.cluster import cluster
from bench.postgres import postmaster, slow_commits
from bench.viewers import Target

from baton.db.postgres import connect
from baton.demo.cluster import Child, Cluster
from baton.demo.embedded import embedded_postgres
from baton.schema import numbering
from baton.schema.migrate import migrate
from baton.schema.numbering import NumberedDatabase
from baton.settings import Settings
from baton.version import __version__

from . import Shape, http_client, load_input

# Limits that no measurement reaches, and no wait for generators at the end.
SETTINGS: Final = {
    "BATON_MAX_TENANT_STREAMS": "100000",
    "BATON_CREATES_PER_SECOND": "100000",
    "BATON_CREATES_BURST": "100000",
    "BATON_MAX_SUBSCRIBERS": "15000",
    "BATON_MAX_TENANT_SUBSCRIBERS": "15000",
    "BATON_MAX_STREAM_SUBSCRIBERS": "15000",
    "BATON_MAX_CONNECTIONS": "15000",
    "BATON_WORKER_DRAIN_SECONDS": "0",
    "BATON_DRAIN_SECONDS": "0",
}
# A server takes 100 connections by default.
MOST_POOLED: Final = 64


@dataclass(frozen=True, slots=True)
class RunningBaton:
    """A running Baton."""

    dsn: str
    cluster: Cluster
    http: httpx2.AsyncClient
    parts: Mapping[str, Sequence[psutil.Process]]
    generator: str = "load"
    dsns: Sequence[str] = ()  # of all databases
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def pods(self) -> list[Child]:
        """The running pods."""
        return self.cluster.pods

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Create a stream, on each pod in turn."""
        pod = self.pods[next(self._turn) % len(self.pods)].program
        load = load_input(tokens, rate, pause_seconds, stays_seconds)
        answer = await self.http.post(f"{pod.address}/v1/streams", json={"generator": self.generator, "input": load})
        assert pod.port is not None
        return Target(pod.port, answer.raise_for_status().json()["events_url"], tokens)


@dataclass(frozen=True, slots=True)
class Baton:
    """Baton with some settings."""

    name: str = "Baton"
    settings: Mapping[str, str] = field(default_factory=dict)
    keeps: bool = True
    serves: str = "pod"
    flags: Sequence[str] = ()
    generator: str = "load"

    def versions(self) -> Mapping[str, str]:
        """The versions of this checkout."""
        return {"Baton": __version__, "Python": platform.python_version()}

    def install(self) -> None:
        """Nothing to install."""

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, shape: Shape) -> AsyncIterator[RunningBaton]:
        """Start Postgres, pods and workers."""
        async with contextlib.AsyncExitStack() as stack:
            places = [folder, *(folder / f"database-{number}" for number in range(1, shape.databases))]
            for place in places:
                place.mkdir(exist_ok=True)
            dsns = [stack.enter_context(embedded_postgres(place)) for place in places]
            for dsn in dsns:
                await migrate(dsn, days_ahead=7)
                if shape.slow_commits:
                    await slow_commits(dsn)
            several = {} if shape.databases == 1 else {"BATON_DATABASES": await shared(dsns)}
            # A stream that replaces another one may begin before that one has ended.
            count = shape.streams // shape.workers + shape.streams // 5 + 10
            pool = {"BATON_DATABASE_POOL_SIZE": str(MOST_POOLED // shape.pods)} if shape.pods * 8 > MOST_POOLED else {}
            further = {**SETTINGS, **pool, **several, **self.settings}
            running = cluster(dsns[0], folder, count, further, pods=shape.pods, workers=serving(shape))
            async with running as (children, _), http_client() as http:
                parts = {
                    "pod": [psutil.Process(child.pid) for child in children.pods],
                    "worker": [psutil.Process(c.pid) for c in children.children.values() if not c.program.is_pod],
                    "postgres": [await postmaster(dsn) for dsn in dsns],
                }
                yield RunningBaton(dsns[0], children, http, parts, self.generator, dsns)


async def shared(dsns: Sequence[str]) -> str:
    """Let databases share new streams equally, as `baton migrate` does; return the setting that names them."""
    entries = {_named(number): {"url": dsn, "number": number, "weight": 1} for number, dsn in enumerate(dsns)}
    async with contextlib.AsyncExitStack() as stack:
        numbered = []
        for entry in Settings.load(databases=entries).all_databases:
            connection = await connect(entry.url.get_secret_value(), name="bench")
            stack.push_async_callback(connection.close)
            numbered.append(NumberedDatabase(entry, connection))
        await numbering.number(numbered)
        await numbering.record_weights(numbered)
    return orjson.dumps(entries).decode()


def serving(shape: Shape) -> list[dict[str, str]]:
    """Return what each worker is set to. Several share the databases: each serves as few of them as possible."""
    if shape.workers == 1 or shape.databases == 1:
        return [{} for _ in range(shape.workers)]
    names = [_named(number) for number in range(shape.databases)]
    shares = (names[worker % shape.databases :: shape.workers] for worker in range(shape.workers))
    return [{"BATON_WORKER_DATABASES": ",".join(share)} for share in shares]


def _named(database: int) -> str:
    return f"db{database}"


def with_window(milliseconds: float) -> Baton:
    """Return Baton with another flush interval."""
    settings = {"BATON_FLUSH_INTERVAL_MILLISECONDS": f"{milliseconds:g}"}
    return Baton(f"Baton, {milliseconds:g} ms window", settings)
