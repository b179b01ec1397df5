"""Measures Baton's load on the database: WAL and disk per token, transactions per second: `python -m bench.database`.

One worker runs a number of streams at once, at a steady rate and without viewers, on an embedded Postgres of its own.
WAL is what `pg_stat_get_backend_wal` (Postgres 18) counts for the worker's four connections, from the creation of the
streams to their end. Full-page images are not included: `full_page_writes` is off on this server, since their number
depends on the time between checkpoints and not on Baton. Sizes are those of the tables after the run, with their
indexes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from asyncpg import Record

from baton.db import stream_creation
from baton.db.postgres import Pool
from baton.db.stream_creation import NewStream
from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

_WAL = """
SELECT sum(w.wal_bytes)::bigint, sum(w.wal_fpi)::bigint
FROM pg_stat_activity AS a CROSS JOIN LATERAL pg_stat_get_backend_wal(a.pid) AS w
WHERE a.application_name LIKE 'baton worker%'
"""
_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_LOG = """
SELECT count(*), sum(last_seq - first_seq + 1), count(*) FILTER (WHERE terminal), sum(octet_length(events))
FROM baton.batch
"""
_SIZES = """
SELECT sum(pg_table_size(inhrelid))::bigint, sum(pg_indexes_size(inhrelid))::bigint
FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass
"""
_STREAM_SIZE = "SELECT pg_total_relation_size('baton.stream')"
_RUNNING = "SELECT count(*) FROM baton.stream WHERE status IN ('queued', 'running')"
_WORKERS = "SELECT count(*) FROM baton.worker"


@dataclass(frozen=True, slots=True)
class Cost:
    """The figures of one run. WAL and sizes are in bytes."""

    window_milliseconds: float
    tokens: int  # the terminal events among them
    ends: int
    batches: int
    payload: int
    wal: int
    full_page_images: int
    transactions_per_second: float
    table: int
    indexes: int
    streams: int


async def measure(dsn: str, window_milliseconds: float, count: int, rate: float, seconds: float) -> Cost:
    """Run this many streams to their end in a new database of the server."""
    name = f"bench_{int(window_milliseconds)}"
    server = await asyncpg.connect(dsn)
    await server.execute(f"CREATE DATABASE {name}")
    await server.close()
    dsn = dsn.replace("/postgres?", f"/{name}?")
    await migrate(dsn, days_ahead=7)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        with _worker(dsn, window_milliseconds, count):
            while not await pool.fetchval(_WORKERS):
                await asyncio.sleep(0.1)
            wal_before, images_before = await _one(pool, _WAL)
            xid_before, started = await pool.fetchval(_XID), time.monotonic()
            new = NewStream("load", {"rate": rate, "tokens": int(rate * seconds)}, {}, "retry")
            for _ in range(count):
                await stream_creation.create(pool, new)
            while await pool.fetchval(_RUNNING):
                await asyncio.sleep(0.5)
            took = time.monotonic() - started
            wal, images = await _one(pool, _WAL)
            xids = await pool.fetchval(_XID) - xid_before
        await pool.execute("VACUUM")
        batches, tokens, ends, payload = await _one(pool, _LOG)
        table, indexes = await _one(pool, _SIZES)
        return Cost(
            window_milliseconds,
            tokens,
            ends,
            batches,
            payload,
            wal - wal_before,
            images - images_before,
            xids / took,
            table,
            indexes,
            await pool.fetchval(_STREAM_SIZE),
        )


async def _one(pool: Pool, query: str) -> Record:
    (row,) = await pool.fetch(query)
    return row


@contextmanager
def _worker(dsn: str, window_milliseconds: float, count: int) -> Iterator[None]:
    environment = os.environ | {
        "BATON_DATABASE_URL": dsn,
        "BATON_GENERATORS": "load=bench.load:generate",
        "BATON_FLUSH_INTERVAL_MILLISECONDS": str(window_milliseconds),
        "BATON_WORKER_CONCURRENCY": str(count),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [str(Path(sys.executable).with_name("baton")), "worker"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def show(cost: Cost, streams: int) -> str:
    """Return the figures as a row of a Markdown table."""
    each = cost.tokens
    return (
        f"| {cost.window_milliseconds:g} ms | {cost.wal / each:.0f} B | {each / cost.batches:.1f} "
        f"| {cost.payload / each:.0f} B | {cost.table / each:.0f} MB | {cost.indexes / each:.0f} MB "
        f"| {cost.streams / streams:.0f} B | {cost.transactions_per_second:.0f} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=20, help="how long each stream runs")
    parser.add_argument("--windows", type=float, nargs="+", default=[40, 200], help="BATON_FLUSH_INTERVAL_MILLISECONDS")
    given = parser.parse_args()
    print(__doc__)
    print(f"{given.streams} streams at once, {given.rate:g} tokens/s each, for {given.seconds:g} s; Postgres 18.\n")
    print("| window | WAL/token | tokens/row | events/token | log/million | its indexes | stream row | tx/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with embedded_postgres() as dsn:
        asyncio.run(full_pages_off(dsn))
        for window in given.windows:
            cost = asyncio.run(measure(dsn, window, given.streams, given.rate, given.seconds))
            assert cost.full_page_images == 0, cost
            print(show(cost, given.streams), flush=True)


async def full_pages_off(dsn: str) -> None:
    """Turn off full-page images. The server is used by this measurement alone."""
    server = await asyncpg.connect(dsn)
    await server.execute("ALTER SYSTEM SET full_page_writes = off")
    await server.execute("SELECT pg_reload_conf()")
    await server.close()


if __name__ == "__main__":
    main()
