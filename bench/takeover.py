"""Measures the pause when a worker ends in mid-answer: `python -m bench.takeover`.

One pod and two workers run as processes of their own on an embedded Postgres, with default settings. Each stream has
one viewer, here, over one connection of the native API. Its generator saves a state with each token. In each turn the
worker that runs most streams gets SIGKILL or SIGTERM, at a random moment between two heartbeats, and is started again
later. The times are from the signal to the first token of the next run at the viewer, for each stream that the worker
ran. They are divided at the moment at which the stream is back in the queue (`queued_at`), and at the arrival of the
event `resumed`:

- to the queue: after SIGKILL another worker has to notice the death, after SIGTERM the worker hands its streams over;
- to `resumed`: another worker claims the stream, and appends the event that no earlier batch can pass;
- to the token: it reads the log and the state, the generator yields, and the batch is written and relayed.

Before the first turn it measures the reading: how long a worker reads the log of one long answer when it continues it.
Every viewer must get every number of the generator once, in order, and no `reset`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx2
import uvloop

from baton.client import Follower, Received
from baton.db import event_log, stream_creation, stream_ending
from baton.db.event_log import Append
from baton.db.postgres import Connection, connect
from baton.db.stream_creation import NewStream
from baton.demo.cluster import Cluster
from baton.demo.embedded import embedded_postgres
from baton.events import encode_text
from baton.schema.migrate import migrate
from baton.worker import past

from .cluster import cluster

SETTINGS: Final = {"BATON_GENERATORS": "load=bench.load:continuing"}
SIGNALS: Final = (signal.SIGKILL, signal.SIGTERM)
PAUSE_SECONDS: Final = 120
SETTLE_SECONDS: Final = 2
HEARTBEAT_SECONDS: Final = 0.5
# A viewer has every token of streams of this length that the measurement cancels.
TOKENS: Final = 1_000_000
READS: Final = 5
PARTS: Final = ("to_queue", "to_resumed", "to_token")

_RUNNING: Final = """
SELECT worker.name, array_agg(stream.id) AS ids FROM baton.stream JOIN baton.worker ON worker.id = worker_id
WHERE status = 'running' GROUP BY worker.name ORDER BY count(*) DESC LIMIT 1
"""


@dataclass(slots=True)
class Pause:
    """When a viewer got the event `resumed` and then a token, in seconds of `time.monotonic`."""

    resumed_at: float
    token_at: float = 0.0


@dataclass(slots=True)
class Viewer:
    """Follows one stream, and notes each change of its worker."""

    numbers: int = 0
    wrong: int = 0
    pauses: list[Pause] = field(default_factory=list)

    async def follow(self, http: httpx2.AsyncClient, url: str) -> None:
        """Read to the end of the stream."""
        async with contextlib.aclosing(Follower(http, url).run()) as sightings:
            async for sighting in sightings:
                if isinstance(sighting, Received):
                    self._receive(sighting)

    def _receive(self, received: Received) -> None:
        match received.event["type"]:
            case "text":
                self.wrong += received.event["delta"] != f"{self.numbers} "
                self.numbers += 1
                if self.pauses and not self.pauses[-1].token_at:
                    self.pauses[-1].token_at = received.at_seconds
            case "resumed":
                self.pauses.append(Pause(received.at_seconds))
            case "reset":
                self.wrong += 1

    def continued(self, count: int) -> bool:
        """Whether it has a token after its pause with this number."""
        return len(self.pauses) >= count and self.pauses[count - 1].token_at > 0


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one pause, in milliseconds."""

    to_queue: float
    to_resumed: float
    to_token: float

    @property
    def total(self) -> float:
        """From the signal to the token."""
        return self.to_queue + self.to_resumed + self.to_token


class Measurement:
    """The streams, and what was measured so far."""

    def __init__(self, running: Cluster, pool: asyncpg.Pool[Any], http: httpx2.AsyncClient) -> None:
        self.viewers: dict[UUID, Viewer] = {}
        self._running = running
        self._pool = pool
        self._http = http

    async def turn(self, number: signal.Signals) -> list[Parts]:
        """End the worker that has most streams, measure all of its streams, and start it again."""
        await asyncio.sleep(SETTLE_SECONDS + random.random() * HEARTBEAT_SECONDS)
        [(name, ids)] = await self._pool.fetch(_RUNNING)
        counts = {stream_id: len(self.viewers[stream_id].pauses) + 1 for stream_id in ids}
        child = self._running.children[name]
        child.dismissed = True
        ended_at, ended_on = time.monotonic(), time.time()
        child.signal(number)
        async with asyncio.timeout(PAUSE_SECONDS):
            while not all(self.viewers[stream_id].continued(count) for stream_id, count in counts.items()):
                await asyncio.sleep(0.05)
        await child.ended
        found = await self._pool.fetch("SELECT id, queued_at FROM baton.stream WHERE id = ANY ($1)", ids)
        parts = []
        for stream_id, queued_at in found:
            pause = self.viewers[stream_id].pauses[counts[stream_id] - 1]
            to_queue = queued_at.timestamp() - ended_on
            to_resumed = pause.resumed_at - ended_at - to_queue
            parts.append(Parts(*(1000 * part for part in (to_queue, to_resumed, pause.token_at - pause.resumed_at))))
        await self._running.start(name)
        await self._running.wait_until_ready(self._http)
        return parts


async def long_answer(pool: asyncpg.Pool[Any], events: int) -> UUID:
    """Write an answer of that many tokens, two in each batch, as a stream of 50 tokens/s does."""
    stream, _ = await stream_creation.create(pool, NewStream("nobody", None, {}, "fail"))
    await pool.execute("UPDATE baton.stream SET status = 'running', epoch = 1 WHERE id = $1", stream.id)
    pair = b"\n".join([encode_text(" answer")] * 2)
    async with pool.acquire() as connection:
        for first in range(1, events, 2):
            await event_log.append(connection, [Append(stream.id, 1, first, first + 1, pair)])
    await pool.execute("VACUUM ANALYZE baton.batch")
    return stream.id


async def reading(connection: Connection, stream_id: UUID) -> tuple[float, float]:
    """Return how long a worker reads a stream to continue it, and the longest block of its loop, in milliseconds."""
    ticks = [time.perf_counter()]

    async def tick() -> None:
        while True:
            await asyncio.sleep(0)
            ticks.append(time.perf_counter())

    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    await event_log.read_usage(connection, stream_id)
    await past.read(connection, stream_id)
    took = time.perf_counter() - began
    await asyncio.sleep(0)
    ticking.cancel()
    return took * 1000, max(after - before for before, after in pairwise(ticks)) * 1000


async def measure_reading(dsn: str, events: int) -> None:
    """Print what reading costs."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        stream_id = await long_answer(pool, events)
    connection = await connect(dsn, name="bench")
    try:
        found = [await reading(connection, stream_id) for _ in range(READS)]
    finally:
        await connection.execute("DELETE FROM baton.stream WHERE id = $1", stream_id)
        await connection.close()
    times, blocks = ([round(item) for item in items] for items in zip(*found, strict=True))
    print(
        f"Reading an answer of {events:,} events: {statistics.median(times)} ms ({min(times)} to {max(times)}). "
        f"It blocks the worker's loop for {statistics.median(blocks)} ms at most.\n",
        flush=True,
    )


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> int:
    """Measure, and print a row for each turn; return how much was wrong."""
    await migrate(dsn, days_ahead=7)
    await measure_reading(dsn, given.events)
    parts: dict[signal.Signals, list[Parts]] = {number: [] for number in SIGNALS}
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool,
        cluster(dsn, folder, 200, SETTINGS, workers=({}, {})) as (running, port),
        httpx2.AsyncClient() as http,
    ):
        measurement = Measurement(running, pool, http)
        new = NewStream("load", {"rate": given.rate, "tokens": TOKENS}, {}, "retry", may_continue=True)
        ids = [(await stream_creation.create(pool, new))[0].id for _ in range(given.streams)]
        following = []
        for stream_id in ids:
            viewer = measurement.viewers[stream_id] = Viewer()
            url = f"http://127.0.0.1:{port}/v1/streams/{stream_id}/events"
            following.append(asyncio.create_task(viewer.follow(http, url)))
        print(
            "| signal | streams | median | longest | to the queue | to `resumed` | to the token |\n"
            + "| --- " * 7
            + "|"
        )
        for number in SIGNALS * given.turns:
            found = await measurement.turn(number)
            parts[number] += found
            print(row(number.name, found), flush=True)
        for stream_id in ids:
            await stream_ending.request_cancel(pool, stream_id)
        await asyncio.gather(*following)
    summarize(parts)
    return sum(viewer.wrong for viewer in measurement.viewers.values())


def row(name: str, found: Sequence[Parts]) -> str:
    """Return a row of the table: the parts are medians."""
    totals = [parts.total for parts in found]
    cells = [statistics.median(totals), max(totals)]
    cells += [statistics.median(getattr(item, part) for item in found) for part in PARTS]
    return f"| {name} | {len(found)} | " + " | ".join(f"{cell:,.0f} ms" for cell in cells) + " |"


def summarize(found: Mapping[signal.Signals, Iterable[Parts]]) -> None:
    """Print the figures of all turns."""
    print()
    for number, parts in found.items():
        totals = [item.total for item in parts]
        print(f"{number.name}: p50 {statistics.median(totals):,.0f} ms, at most {max(totals):,.0f} ms")


def main() -> int:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20, help="tokens a second of each stream")
    parser.add_argument("--turns", type=int, default=10, help="of each signal")
    parser.add_argument("--events", type=int, default=20_000, help="of the answer whose reading is measured")
    given = parser.parse_args()
    print(__doc__)
    print(f"{given.streams} streams at {given.rate:g} tokens/s; {given.turns} turns of each signal.\n", flush=True)
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        wrong = uvloop.run(run(dsn, Path(folder), given))
    print(f"Wrong numbers and resets: {wrong}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
