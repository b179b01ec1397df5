"""Shows what reads from a standby would serve, and what they would save: `python -m bench.standby`.

First it erases streams on a primary whose asynchronous standby applies WAL later (`recovery_min_apply_delay`), and
reads the log of each on the standby, as a pod would. It counts the streams whose text the standby still returns after
the primary has confirmed the erasure, and measures how long that lasts.

Then it reads whole logs from the primary, over one connection, page by page, as clients do that begin at the start.
Reading is all that standbys could take from a primary.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

import uvloop

from baton.chaos.postgres_pair import PostgresPair
from baton.db import event_log, postgres, stream_creation, stream_ending
from baton.db.event_log import Append
from baton.db.postgres import Connection, Pool
from baton.db.stream_creation import NewStream
from baton.demo.embedded import embedded_server
from baton.schema.migrate import migrate

from .postgres import postmaster
from .processes import cpu_seconds

EVENTS_PER_BATCH: Final = 3
POLL_SECONDS: Final = 0.005
ERASED_BATCHES: Final = 10
_BATCH: Final = b"\n".join([b'{"type":"text","delta":" secret"}'] * EVENTS_PER_BATCH)
_NEW: Final = NewStream("none", {}, {}, "retry")
_REPLAYED: Final = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[Pool, Connection, str]]:
    """Start a primary and its standby; yield a pool to the one, a connection to the other, and the primary's DSN."""
    with embedded_server(folder) as server:
        await migrate(server.dsn, days_ahead=1)
        servers = PostgresPair(server, folder)
        await servers.build_standby()
        standby = await postgres.connect(servers.standby_dsn, name="bench standby")
        try:
            async with postgres.pool(server.dsn, size=4, timeout_seconds=10) as pool:
                yield pool, standby, server.dsn
        finally:
            standby.terminate()
            await servers.drop_standby()


async def written(pool: Pool, batches: int) -> UUID:
    """Create a stream whose log has this many batches."""
    stream, _ = await stream_creation.create(pool, _NEW)
    async with pool.acquire() as connection:
        for number in range(batches):
            first = number * EVENTS_PER_BATCH + 1
            item = Append(stream.id, stream.epoch, first, first + EVENTS_PER_BATCH - 1, _BATCH)
            assert await event_log.append(connection, [item]), "the append was not written"
    return stream.id


async def stale_seconds(pool: Pool, standby: Connection, streams: int, delay_seconds: float) -> list[float]:
    """Erase streams on the primary; return for how long the standby still returns the text of each."""
    ids = [await written(pool, ERASED_BATCHES) for _ in range(streams)]
    position = await pool.fetchval("SELECT pg_current_wal_lsn()::text")
    while not await standby.fetchval(_REPLAYED, position):
        await asyncio.sleep(POLL_SECONDS)
    await standby.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = {round(delay_seconds * 1000)}")
    await standby.execute("SELECT pg_reload_conf()")
    return [await _stale_seconds(pool, standby, stream_id) for stream_id in ids]


async def _stale_seconds(pool: Pool, standby: Connection, stream_id: UUID) -> float:
    assert await stream_ending.erase(pool, stream_id)
    confirmed_at = last_seen_at = time.monotonic()
    while any("secret" in batch.events for batch in await event_log.read(standby, stream_id, 0)):
        last_seen_at = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)
    return last_seen_at - confirmed_at


async def replay(pool: Pool, dsn: str, batches: int, times: int) -> tuple[float, float]:
    """Read a whole log this often; return events a second, and Postgres' µs of CPU for each."""
    stream_id, server = await written(pool, batches), await postmaster(dsn)
    spent, begun, events = cpu_seconds(server), time.monotonic(), 0
    async with pool.acquire() as connection:
        for _ in range(times):
            async for page in event_log.pages(connection, stream_id):
                events += page[-1].last_seq - page[0].first_seq + 1
    return events / (time.monotonic() - begun), (cpu_seconds(server) - spent) / events * 1e6


async def run(folder: Path, given: argparse.Namespace) -> None:
    """Measure both, and print them."""
    async with pair(folder) as (pool, standby, dsn):
        rate, cost = await replay(pool, dsn, given.batches, given.times)
        print(f"Replay from the primary: {rate:,.0f} events/s over one connection, {cost:.2f} µs of Postgres each")
        for delay_seconds in given.delays:
            seconds = await stale_seconds(pool, standby, given.streams, delay_seconds)
            stale = sum(found > 0 for found in seconds)
            print(
                f"Apply delay {delay_seconds:g} s: the standby still served {stale} of {given.streams} erased texts; "
                f"for {statistics.median(seconds):.2f} s in the median, {max(seconds):.2f} s at most",
                flush=True,
            )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10, help="how many are erased for each delay")
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 0.2, 2], help="recovery_min_apply_delay, s")
    parser.add_argument("--batches", type=int, default=2000, help="in the log that is replayed")
    parser.add_argument("--times", type=int, default=50, help="how often it is replayed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(run(Path(folder), given))


if __name__ == "__main__":
    main()
