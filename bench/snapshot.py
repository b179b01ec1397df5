"""Measures the cost of an old snapshot, held by a `pg_dump` or a forgotten transaction: `python -m bench.snapshot`.

One pod and one worker run as processes of their own on an embedded Postgres. Streams that last a second are created
over HTTP at a steady rate, and the time of each create is measured. One more stream lives for the whole run. Twenty
times a second this process runs the statements of a pod and a worker, in transactions that are rolled back, and counts
the buffers that each statement reads. It does so first without a snapshot, and then while a REPEATABLE READ transaction
is open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
import httpx2
import uvloop

from baton.db import pod_rows, queue_lines, rate_buckets, stream_creation, stream_queue, worker_rows
from baton.db.live_counts import LiveCounts
from baton.db.postgres import Connection, Pool
from baton.db.queue_lines import Line
from baton.db.queue_watermark import SWEEP_SECONDS, QueueWatermark
from baton.db.rate_buckets import Rate
from baton.db.stream_creation import NewStream
from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from .buffers import Counted
from .cluster import cluster

LOOKS_PER_SECOND: Final = 20
WARM_UP_SECONDS: Final = 10
STREAM: Final = {"rate": 5, "tokens": 5}
MOST_LIVE: Final = 10_000
LAST_SECONDS: Final = 60
FACTOR: Final = 2.0  # what an old snapshot may cost at most
PROMISED: Final = ("claim", "overdue", "queue state", "create")

_CALLER = "SELECT tenant, caller FROM baton.token_bucket ORDER BY slot DESC LIMIT 1"


@dataclass(slots=True)
class Phase:
    """The figures of one phase, with or without the snapshot."""

    name: str
    created: list[tuple[float, float]] = field(default_factory=list)  # when, and how long it took
    buffers: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    failed: int = 0


class Load:
    """Creates streams at a steady rate, without waiting for earlier responses."""

    def __init__(self, port: int, rate: float) -> None:
        self._address = f"http://127.0.0.1:{port}/v1/streams"
        self._rate = rate
        self.phase = Phase("warm-up")

    async def run(self) -> None:
        """Run until cancelled."""
        due_at = time.monotonic()
        async with httpx2.AsyncClient(timeout=30) as http, asyncio.TaskGroup() as group:
            await self._create(http, {"rate": 1, "tokens": 100_000})
            while True:
                due_at += 1 / self._rate
                await asyncio.sleep(max(0, due_at - time.monotonic()))
                group.create_task(self._create(http, STREAM))

    async def _create(self, http: httpx2.AsyncClient, given: dict[str, int]) -> None:
        phase, started_at = self.phase, time.monotonic()
        try:
            answer = await http.post(self._address, json={"generator": "load", "input": given})
        except httpx2.TransportError as error:
            # A pod closes idle connections. Sometimes it closes one just when it is used again.
            phase.failed += 1
            print(f"a create failed: {error!r}", flush=True)
            return
        phase.failed += answer.status_code != httpx2.codes.CREATED
        phase.created.append((started_at, time.monotonic() - started_at))


class Probe:
    """Runs the statements of a pod and a worker, and counts buffers."""

    def __init__(self, connection: Connection, pool: Pool) -> None:
        self._connection = connection
        self._pool = pool
        self._queue = QueueWatermark()
        self._whole_queue = QueueWatermark(late_check_seconds=SWEEP_SECONDS)
        self._counts = LiveCounts()
        self._worker_id = UUID(int=0)

    async def run(self, load: Load) -> None:
        """Run until cancelled."""
        row = await self._pool.fetchrow("SELECT id FROM baton.worker LIMIT 1")
        assert row is not None
        self._worker_id = row[0]
        for number in range(sys.maxsize):
            for name, action in self._actions():
                if number % 10 and name in {
                    "first queued of all",
                    "overdue",
                    "queue state",
                    "heartbeat",
                    "counters",
                    "owned of",
                    "pod's row",
                }:
                    continue
                counted = Counted(self._connection)
                transaction = self._connection.transaction()
                await transaction.start()
                with contextlib.suppress(asyncpg.PostgresError):
                    await action(cast(Connection, counted))
                await transaction.rollback()
                load.phase.buffers[name].append((time.monotonic(), counted.buffers))
            await asyncio.sleep(1 / LOOKS_PER_SECOND)

    def _actions(self) -> Sequence[tuple[str, Callable[[Connection], Awaitable[Any]]]]:
        return (
            ("first queued", self._first_queued),
            ("claim", self._claim),
            ("first queued of all", self._first_queued_of_all),
            ("overdue", self._overdue),
            ("queue state", lambda connection: stream_queue.state(connection, self._whole_queue.since)),
            ("create", self._create),
            ("token", self._take),
            ("heartbeat", lambda connection: worker_rows.heartbeat(connection, self._worker_id)),
            ("counters", worker_rows.counters),
            ("pod's row", pod_rows.list_all),
            ("owned of", self._owned),
        )

    async def _first_queued(self, connection: Connection) -> None:
        await self._queue.update(lambda since: queue_lines.first(connection, since, ["load"]))

    async def _first_queued_of_all(self, connection: Connection) -> None:
        await self._whole_queue.update(lambda since: queue_lines.first(connection, since))

    async def _claim(self, connection: Connection) -> None:
        place = await worker_rows.place(self._connection, self._worker_id)
        await stream_queue.claim(connection, self._worker_id, ["load"], 1, place=place, since=self._queue.since)

    async def _overdue(self, connection: Connection) -> None:
        await stream_queue.overdue(connection, 600, since=self._whole_queue.since)

    async def _create(self, connection: Connection) -> None:
        new = NewStream("load", STREAM, {}, "retry")
        line = Line(["load"], self._queue.since)
        await stream_creation._insert(connection, new, None, MOST_LIVE, self._counts, line=line)

    async def _take(self, connection: Connection) -> None:
        row = await self._pool.fetchrow(_CALLER)
        if row is not None:
            await rate_buckets.take_in(connection, row["tenant"], row["caller"], Rate(1000, 1000))

    async def _owned(self, connection: Connection) -> None:
        ids = await self._pool.fetch("SELECT id FROM baton.stream WHERE status = 'running' ORDER BY id DESC LIMIT 100")
        await worker_rows.owned(connection, self._worker_id, [row[0] for row in ids])


@contextlib.asynccontextmanager
async def old_snapshot(dsn: str) -> AsyncIterator[None]:
    """Hold a snapshot, like a dump."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "an old snapshot"})
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("SELECT FROM baton.stream LIMIT 1")
            yield
    finally:
        await connection.close()


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> list[Phase]:
    """Measure without the snapshot, and then with it."""
    await migrate(dsn, days_ahead=7)
    further = {"BATON_CREATES_PER_SECOND": "10000", "BATON_CREATES_BURST": "10000"}
    further |= {"BATON_MAX_TENANT_STREAMS": str(MOST_LIVE)}
    calm, held = Phase("calm"), Phase(f"snapshot of {given.seconds:.0f} s")
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool,
        cluster(dsn, folder, 2000, further) as (_, port),
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as probed,
        probed.acquire() as connection,
    ):
        load = Load(port, given.rate)
        tasks = [asyncio.create_task(load.run())]
        await asyncio.sleep(WARM_UP_SECONDS)
        tasks.append(asyncio.create_task(Probe(cast(Connection, connection), pool).run(load)))
        await asyncio.sleep(WARM_UP_SECONDS)
        load.phase = calm
        await asyncio.sleep(given.calm)
        async with old_snapshot(dsn):
            load.phase = held
            await asyncio.sleep(given.seconds)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [calm, held]


def quantiles(values: Sequence[tuple[float, float]], since: float = 0.0) -> tuple[float, float]:
    """Return the median and p99 since a moment."""
    found = sorted(value for moment, value in values if moment >= since)
    return found[len(found) // 2], found[int(len(found) * 0.99)]


def report(phases: Sequence[Phase]) -> int:
    """Print the figures; return the exit status: whether the promised ones stay within the factor."""
    calm, held = phases
    within = True
    end = held.created[-1][0]
    print("| | calm p50 | p99 | with the snapshot p50 | p99 | its last minute p50 | p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in calm.buffers:
        before, during = quantiles(calm.buffers[name]), quantiles(held.buffers[name])
        last = quantiles(held.buffers[name], end - LAST_SECONDS)
        print(f"| {name}, buffers | {' | '.join(f'{value:.0f}' for value in (*before, *during, *last))} |")
        if name in PROMISED:
            within &= last[0] <= FACTOR * before[0] and last[1] <= FACTOR * before[1]
    before, during = quantiles(calm.created), quantiles(held.created)
    last = quantiles(held.created, end - LAST_SECONDS)
    print(f"| a create, ms | {' | '.join(f'{value * 1000:.1f}' for value in (*before, *during, *last))} |")
    within &= during[1] <= FACTOR * before[1]
    print(f"\n{len(calm.created) + len(held.created):,} creates, {calm.failed + held.failed} failed.")
    print(
        "All promised figures are within the factor."
        if within
        else f"Some promised figures exceed {FACTOR:g} times those without the snapshot."
    )
    return 0 if within else 1


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=150, help="creates a second")
    parser.add_argument("--calm", type=float, default=60, help="seconds without the snapshot")
    parser.add_argument("--seconds", type=float, default=600, help="seconds with it")
    given = parser.parse_args()
    print(__doc__)
    print(f"{given.rate:g} creates/s.\n", flush=True)
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        return report(uvloop.run(run(dsn, Path(folder), given)))


if __name__ == "__main__":
    sys.exit(main())
