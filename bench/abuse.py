"""Measures what viewers notice of abusive clients: `python -m bench.abuse`.

One pod and one worker run as processes of their own on an embedded Postgres; each stream has one viewer, here. Each
token holds the time at which its generator yielded it. The delay of every eighth token is measured when it arrives, on
the same clock. Calm and abused phases alternate. In an abused phase

- deaf clients ask for a stream, half of them for a long one that has ended, and never read;
- half-open ones begin a request, half of them its header, half its body, and send a byte a second.

A client that the pod cuts off reconnects within a second, so the number of abusive clients stays about the same. They
run in a process of their own. The pod's timeouts are shorter than by default, so that abusers are cut off and return
within a phase. Its relays' windows are small, so that they are full before the first phase and do not hide a growth of
memory. The report has the delays of the viewers' tokens, the highest memory of the pod, and what happened to the
abusers. Deaf clients notice that they were cut off only when the kernel has given up the connection. Every viewer must
get every number once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx2
import orjson
import psutil
import uvloop

from baton.db import event_log, stream_creation, stream_ending
from baton.db.event_log import Append
from baton.db.stream_creation import NewStream
from baton.demo.embedded import embedded_postgres
from baton.events import encode_text
from baton.outcome import Outcome
from baton.schema.migrate import migrate

from .attacker import attacking
from .cluster import cluster
from .online import Measured, Viewer, phase

SETTLE_SECONDS: Final = 3
MOST_SECONDS: Final = 600
# By then the windows are full.
START_SECONDS: Final = 10
# How many connect at once.
CONNECTING: Final = 50
LONG_BATCHES: Final = 200
ABUSED: Final = "abused"
TIMES: Final = {
    "BATON_HEADER_TIMEOUT_SECONDS": "4",
    "BATON_BODY_TIMEOUT_SECONDS": "4",
    "BATON_WRITE_TIMEOUT_SECONDS": "4",
    "BATON_SSE_KEEP_ALIVE_SECONDS": "2",
    "BATON_RELAY_WINDOW_BYTES": "8192",
}
HALF_A_HEADER: Final = b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_A_BODY: Final = b"POST /v1/streams HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{"


@dataclass(slots=True)
class Fate:
    """What happened to one kind of abuser."""

    connected: int = 0
    cut: int = 0
    failed: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add the results of more abusers."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)


class Crowd:
    """Abusive clients of one kind, and how many run at once."""

    def __init__(self, requests: list[bytes], drip: bytes, port: int) -> None:
        self.fate = Fate()
        self._requests = requests
        self._drip = drip
        self._port = port
        self._open: dict[int, socket.socket] = {}
        self.complete = asyncio.Event()

    async def attack(self, count: int) -> None:
        """Keep this many connections open until cancelled."""
        try:
            while True:
                for number, opened in list(self._open.items()):
                    if not self._lives(opened):
                        self.fate.cut += 1
                        self._open.pop(number).close()
                missing = [number for number in range(count) if number not in self._open]
                for first in range(0, len(missing), CONNECTING):
                    await asyncio.gather(*map(self._connect, missing[first : first + CONNECTING]))
                self.complete.set()
                await asyncio.sleep(1)
        finally:
            for opened in self._open.values():
                opened.close()

    async def _connect(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        opened = socket.socket()
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(opened, ("127.0.0.1", self._port))
            await loop.sock_sendall(opened, self._requests[number % len(self._requests)])
        except OSError:
            self.fate.failed += 1
            opened.close()
        else:
            self.fate.connected += 1
            self._open[number] = opened

    def _lives(self, opened: socket.socket) -> bool:
        """Check the state of the connection, which is never read; send a byte if there is more to send."""
        established = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"
        if established and self._drip:
            with contextlib.suppress(OSError):
                opened.send(self._drip)
        return established


@dataclass(slots=True)
class Result:
    """The results: delays in milliseconds and highest memory in bytes by phase, and what happened to the abusers."""

    measured: Measured
    fates: Mapping[str, Fate]
    memory: dict[str, int]
    metrics: dict[str, float]
    viewers: int
    whole: int

    def percentile(self, kind: str, share: float) -> float:
        """Return a percentile of the delays: the median over all phases of a kind."""
        found = []
        for name, delays in self.measured.delays.items():
            if name.partition(" ")[0] == kind:
                ordered = sorted(delays)
                found.append(ordered[int(len(ordered) * share)])
        return statistics.median(found)

    def highest_memory(self, kind: str) -> int:
        """Return the pod's highest memory in the phases of a kind."""
        return max(size for name, size in self.memory.items() if name.partition(" ")[0] == kind)


async def long_stream(pool: asyncpg.Pool[asyncpg.Record]) -> UUID:
    """Create a stream of some megabytes that has ended."""
    stream, _ = await stream_creation.create(pool, NewStream("load", None, {}, "fail"))
    await pool.execute("UPDATE baton.stream SET status = 'running', epoch = 1 WHERE id = $1", stream.id)
    lines = [encode_text("x" * 1000)] * 20
    async with pool.acquire() as connection:
        for number in range(LONG_BATCHES):
            first = number * len(lines) + 1
            await event_log.append(connection, [Append(stream.id, 1, first, first + len(lines) - 1, b"\n".join(lines))])
        last, end = LONG_BATCHES * len(lines) + 1, Outcome.completed("stop")
        await event_log.append(connection, [Append(stream.id, 1, last, last, end.encode(), end)])
    return stream.id


async def watch_memory(pod: psutil.Process, measured: Measured, memory: dict[str, int]) -> None:
    """Record the highest memory of each phase."""
    while True:
        memory[measured.phase] = max(memory.get(measured.phase, 0), pod.memory_info().rss)
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def background(*jobs: asyncio.Task[None]) -> AsyncIterator[None]:
    """Run jobs inside the block."""
    try:
        yield
    finally:
        for job in jobs:
            job.cancel()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


def add_to(fates: Mapping[str, Fate], found: Mapping[str, Any]) -> None:
    """Record what happened to the abusers, by kind."""
    for kind, counts in found.items():
        fates[kind].add(counts)


async def attack(port: int, long: str, live: str, deaf: int, half_open: int) -> dict[str, Fate]:
    """Run the abusers until standard input ends."""
    asked = [f"GET /v1/streams/{found}/events HTTP/1.1\r\nHost: localhost\r\n\r\n" for found in (long, live)]
    crowds = {
        "deaf": Crowd([request.encode() for request in asked], b"", port),
        "half-open": Crowd([HALF_A_HEADER, HALF_A_BODY], b" ", port),
    }
    counts = (deaf, half_open)
    attacks = [asyncio.create_task(crowd.attack(n)) for crowd, n in zip(crowds.values(), counts, strict=True)]
    async with background(*attacks):
        await asyncio.gather(*(crowd.complete.wait() for crowd in crowds.values()))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    return {kind: crowd.fate for kind, crowd in crowds.items()}


async def play(measured: Measured, fates: Mapping[str, Fate], arguments: list[str], given: argparse.Namespace) -> None:
    """Run all phases."""
    measured.phase = "start"
    await asyncio.sleep(START_SECONDS)
    for turn in range(1, given.turns + 1):
        await phase(f"calm {turn}", measured, lambda: asyncio.sleep(0), given.seconds)
        measured.phase = "between"
        async with attacking("bench.abuse", *arguments, on_end=partial(add_to, fates)):
            await phase(f"{ABUSED} {turn}", measured, lambda: asyncio.sleep(0), given.seconds)
            measured.phase = "between"
        print(f"turn {turn} of {given.turns}", file=sys.stderr, flush=True)
        await asyncio.sleep(SETTLE_SECONDS)
    measured.phase = "end"


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> Result:
    """Measure."""
    measured = Measured()
    memory: dict[str, int] = {}
    fates = {"deaf": Fate(), "half-open": Fate()}
    await migrate(dsn, days_ahead=7)
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool,
        cluster(dsn, folder, given.streams, TIMES) as (running, port),
    ):
        # The streams are cancelled before they reach this many.
        tokens = int(given.rate * MOST_SECONDS)
        new = NewStream("load", {"rate": given.rate, "tokens": tokens, "stamped": True}, {}, "retry")
        long = await long_stream(pool)
        ids = [(await stream_creation.create(pool, new))[0].id for _ in range(given.streams)]
        viewers = [Viewer(measured, port, stream_id) for stream_id in ids]
        arguments = [str(item) for item in (port, long, ids[0], given.deaf, given.half_open)]
        pod = psutil.Process(running.children["pod"].pid)
        following = asyncio.gather(*(viewer.follow() for viewer in viewers))
        async with background(asyncio.create_task(watch_memory(pod, measured, memory))):
            await play(measured, fates, arguments, given)
            for stream_id in ids:
                await stream_ending.request_cancel(pool, stream_id)
            await following
        whole = [await has_all(pool, stream_id, viewer) for stream_id, viewer in zip(ids, viewers, strict=True)]
        metrics = await counted(port)
    return Result(measured, fates, memory, metrics, len(viewers), sum(whole))


async def has_all(pool: asyncpg.Pool[asyncpg.Record], stream_id: UUID, viewer: Viewer) -> bool:
    """Whether a viewer has seen the end and all events. It checks itself that each event arrived once."""
    tail = await event_log.read_tail(pool, stream_id)
    return viewer.seq == tail.last_seq and tail.outcome is not None and b'"status":"cancelled"' in viewer.end


async def counted(port: int) -> dict[str, float]:
    """Return what the pod's metrics count as closed and rejected."""
    async with httpx2.AsyncClient() as http:
        lines = (await http.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
    wanted = (
        "baton_rejections_total",
        "baton_event_streams_closed_total",
        "baton_tcp_connections ",
        "baton_subscribers ",
    )
    found = (line.rpartition(" ") for line in lines if line.startswith(wanted))
    return {name: float(value) for name, _, value in found if float(value)}


def report(result: Result) -> int:
    """Print the figures; return the exit status."""
    print("| phase | tokens/s | p50 | p99 | memory of the pod |")
    print("| --- | --- | --- | --- | --- |")
    for name, seconds in result.measured.seconds.items():
        delays = sorted(result.measured.delays[name])
        p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
        rate = result.measured.events[name] / seconds
        print(f"| {name} | {rate:,.0f} | {p50:.0f} ms | {p99:.0f} ms | {result.memory[name] / 1e6:.0f} MB |")
    ratios = [result.percentile(ABUSED, share) / result.percentile("calm", share) for share in (0.5, 0.99)]
    print("\nMedians of the phases:")
    for kind in ("calm", ABUSED):
        p50, p99 = result.percentile(kind, 0.5), result.percentile(kind, 0.99)
        print(f"- {kind}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, {result.highest_memory(kind) / 1e6:.0f} MB at most")
    print(f"- {ABUSED} against calm: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f} times\n")
    for kind, fate in result.fates.items():
        print(f"{kind}: {fate.connected} connections, {fate.cut} of them cut off by the pod; {fate.failed} failed.")
    print("The pod counted: " + ", ".join(f"{name} {value:.0f}" for name, value in result.metrics.items()) + ".")
    print(f"Viewers that got everything once: {result.whole} of {result.viewers}. Wrong: {result.measured.wrong}.")
    return 0 if result.whole == result.viewers and not result.measured.wrong and ratios[1] < 2 else 1


def main() -> int:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=300, help="each with one viewer")
    parser.add_argument("--rate", type=float, default=20, help="tokens a second of each stream")
    parser.add_argument("--deaf", type=int, default=200, help="clients that never read")
    parser.add_argument("--half-open", type=int, default=1000, help="clients that never finish a request")
    parser.add_argument("--seconds", type=float, default=8, help="how long each phase takes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--attack", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        port, long, live, deaf, half_open = given.attack
        print(orjson.dumps(uvloop.run(attack(int(port), long, live, int(deaf), int(half_open)))).decode())
        return 0
    print(__doc__)
    times = ", ".join(f"{name}={value}" for name, value in TIMES.items())
    print(
        f"{given.streams} streams at {given.rate:g} tokens/s; {given.deaf} deaf and {given.half_open} half-open "
        f"clients; {given.turns} turns of {given.seconds:g} s calm and as many abused; {times}.\n",
        flush=True,
    )
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = uvloop.run(run(dsn, Path(folder), given))
        print(f"Took {time.monotonic() - started:.0f} s.\n", file=sys.stderr)
        return report(result)


if __name__ == "__main__":
    sys.exit(main())
