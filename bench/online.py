"""Measures what viewers notice of migrations and of a dropped partition under load: `python -m bench.online`.

One pod and one worker run as processes of their own on an embedded Postgres; each stream has one viewer, here. Each
token holds the time at which its generator yielded it. The delay of every eighth token is measured when it arrives, on
the same clock. There are three phases: a calm one; one in which all migrations after the second are downgraded and
upgraded again; and one in which `baton maintain` detaches and drops a partition of old streams. Every 5 ms the
measurement looks for ACCESS EXCLUSIVE locks on Baton's tables. Every viewer must get every number once. Failed appends
are counted in the worker's log.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson
import uvloop

from baton import stream_ids
from baton.chaos.viewers import EventSource
from baton.db import partitions, stream_creation
from baton.db.postgres import Connection
from baton.db.stream_creation import NewStream
from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from .cluster import ROOT, cluster

DOWN_TO = "0002"
DAY_SECONDS = 86_400
LOCK_LOOK_SECONDS = 0.005
OLD_DAYS = 40
# How much longer the commands may take than their phases.
COMMANDS_SECONDS = 15

_OLD_PARTITION = """
CREATE TABLE {name} (LIKE baton.batch INCLUDING ALL);
ALTER TABLE baton.batch ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{last}');
INSERT INTO baton.stream (id, generator, input, on_worker_lost, status, finished_at)
SELECT overlay('{first}' placing lpad(to_hex(i), 12, '0') from 25)::uuid, 'load', '1', 'retry', 'completed', now()
FROM generate_series(1, {streams}) AS i;
INSERT INTO baton.batch
SELECT id, n * 10 + 1, n * 10 + 10, 1, false, convert_to(repeat('{event}', 10), 'UTF8')
FROM baton.stream, generate_series(0, 49) AS n WHERE id < '{last}';
"""
_EXCLUSIVE = """
SELECT relation::regclass::text FROM pg_locks
WHERE mode = 'AccessExclusiveLock' AND granted AND relation IN (
    SELECT oid FROM pg_class WHERE relnamespace = 'baton'::regnamespace AND relkind IN ('r', 'p'))
"""


@dataclass(slots=True)
class Measured:
    """The results by phase. Delays are in milliseconds, lock times in seconds."""

    phase: str = "calm"
    delays: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    events: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=dict)
    locked: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wrong: int = 0


class Viewer:
    """Follows one stream, and counts events that are not the next number."""

    def __init__(self, measured: Measured, port: int, stream_id: UUID) -> None:
        self.seq = 0
        self.end = b""
        self._measured = measured
        self._port = port
        request = f"GET /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._source = EventSource(request, self._receive, self._wrong)

    async def follow(self) -> None:
        """Read until the connection ends."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._source, "127.0.0.1", self._port)
        await self._source.over

    def _receive(self, seq: int, line: bytes) -> None:
        measured = self._measured
        measured.events[measured.phase] += 1
        if seq != self.seq + 1:
            measured.wrong += 1
        self.seq = seq
        if not seq & 7 and line.startswith(b'{"type":"text","delta":"'):
            measured.delays[measured.phase].append(time.time() * 1e3 - int(line[24:-2]) / 1e3)
        elif line.startswith(b'{"type":"done"'):
            self.end = line

    def _wrong(self, _what: str) -> None:
        self._measured.wrong += 1


async def old_partition(connection: Connection, count: int) -> None:
    """Create a partition of a day long ago, with this many ended streams of 500 events."""
    midnight = (time.time() // DAY_SECONDS - OLD_DAYS) * DAY_SECONDS
    await connection.execute(
        _OLD_PARTITION.format(
            name=partitions.name_of(midnight),
            first=stream_ids.first_id(midnight),
            last=stream_ids.first_id(midnight + DAY_SECONDS),
            streams=count,
            event='{"type":"text","delta":" answer"}',
        )
    )


async def watch_locks(dsn: str, measured: Measured) -> None:
    """Record how long tables are locked exclusively."""
    connection = await asyncpg.connect(dsn)
    seen_since: dict[str, float] = {}
    while True:
        now = time.monotonic()
        held = {row[0] for row in await connection.fetch(_EXCLUSIVE)}
        seen_since = {name: seen_since.get(name, now) for name in held}
        for name, since in seen_since.items():
            measured.locked[name] = max(measured.locked[name], now - since + LOCK_LOOK_SECONDS)
        await asyncio.sleep(LOCK_LOOK_SECONDS)


async def command(dsn: str, *arguments: str) -> None:
    """Run a command of this checkout to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=ROOT, env=os.environ | {"BATON_DATABASE_URL": dsn}
    )
    assert await process.wait() == 0, arguments


async def cycle(dsn: str) -> None:
    """Downgrade all migrations except the first two, and upgrade again."""
    await command(dsn, "alembic", "downgrade", DOWN_TO)
    await command(dsn, "baton", "migrate")


async def maintain(dsn: str) -> None:
    """Drop expired partitions."""
    await command(dsn, "baton", "maintain")


async def phase(name: str, measured: Measured, action: Callable[[], Awaitable[None]], least_seconds: float) -> None:
    """Run a job under load, for at least this long."""
    measured.phase, started = name, time.monotonic()
    await action()
    await asyncio.sleep(max(0, started + least_seconds - time.monotonic()))
    measured.seconds[name] = time.monotonic() - started


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> Measured:
    """Run all phases."""
    measured = Measured()
    await migrate(dsn, days_ahead=7)
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool,
        cluster(dsn, folder, given.streams) as (_, port),
    ):
        async with pool.acquire() as connection:
            await old_partition(connection, given.old_streams)
        tokens = int(given.rate * (3 * given.seconds + COMMANDS_SECONDS))
        new = NewStream("load", {"rate": given.rate, "tokens": tokens, "stamped": True}, {}, "retry")
        ids = [(await stream_creation.create(pool, new))[0].id for _ in range(given.streams)]
        viewers = [Viewer(measured, port, stream_id) for stream_id in ids]
        following = asyncio.gather(*(viewer.follow() for viewer in viewers))
        watching = asyncio.create_task(watch_locks(dsn, measured))
        measured.phase = "start"
        await asyncio.sleep(3)
        await phase("calm", measured, lambda: asyncio.sleep(0), given.seconds)
        await phase("migrations down and up", measured, lambda: cycle(dsn), given.seconds)
        await phase("partition dropped", measured, lambda: maintain(dsn), given.seconds)
        measured.phase = "end"
        await following
        watching.cancel()
    for viewer in viewers:
        end = orjson.loads(viewer.end or b"{}")
        measured.wrong += viewer.seq != tokens + 1 or end.get("status") != "completed"
    return measured


def report(measured: Measured, folder: Path) -> int:
    """Print the figures; return the exit status."""
    print("| phase | seconds | tokens/s | p50 | p99 | longest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, seconds in measured.seconds.items():
        delays = sorted(measured.delays[name])
        p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
        rate = measured.events[name] / seconds
        print(f"| {name} | {seconds:.0f} | {rate:,.0f} | {p50:.0f} ms | {p99:.0f} ms | {delays[-1]:.0f} ms |")
    log = (folder / "worker.log").read_text()
    failed = sum(log.count(text) for text in ("A flush failed", "is tried again", "refused data"))
    print(f"\nAppends that failed: {failed}. Wrong numbers and ends: {measured.wrong}.")
    for name, seconds in sorted(measured.locked.items()):
        print(f"ACCESS EXCLUSIVE on {name}: {seconds * 1000:.0f} ms at most.")
    return 1 if failed or measured.wrong else 0


def main() -> int:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=15, help="how long each phase takes at least")
    parser.add_argument("--old-streams", type=int, default=2000, help="streams of 500 events in the old partition")
    given = parser.parse_args()
    print(__doc__)
    print(f"{given.streams} streams at {given.rate:g} tokens/s.\n", flush=True)
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        measured = uvloop.run(run(dsn, Path(folder), given))
        return report(measured, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
