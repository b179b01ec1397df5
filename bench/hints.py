"""Measures what carries hints: Postgres with one channel, with hash-bucket channels, and NATS: `python -m bench.hints`.

A sender announces 3,000 rows a second as a worker does: 300 in each flush (or `--rows`), one of each of 300 streams,
and of two events each. The code that packs, signs and sends is Baton's, and nothing is written to the log. Listeners do
what a pod does with a hint before it has a client: they receive it by Baton's transport, look for their streams in it,
and check its signature. Each stream has one listener that follows it. Several listeners share a process: on two cores
64 pods would measure the scheduler. So what they cost is the CPU time of their processes, divided by their number.

- One channel: every listener hears every row. This is Baton's default.
- Buckets: a stream's channel is one of 64, by its id, and a listener LISTENs to those of the streams it follows.
- NATS: a subject for each stream, and a listener subscribes to those it follows.

All figures are CPU microseconds for each row: of the sender; of Postgres or the NATS server, with all their processes;
of one listener; and of all together. Then the delay from the commit's time stamp to the listener, which other load on
the machine prolongs. The turns of the ways alternate, and the table has medians.

At the end: how many of the backends of 100 listeners woke up for notifications on a channel that none of them listens
to, by their voluntary context switches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import psutil
import uvloop

from baton.chaos.nats_server import NatsServer
from baton.db import history, notifications, signing_keys
from baton.db.event_log import Append
from baton.db.notifications import EVENTS_CHANNEL
from baton.db.signing_keys import SigningKeys
from baton.demo.embedded import embedded_server
from baton.events import encode_text
from baton.hints.hints import Hints
from baton.hints.nats import NatsTransport
from baton.hints.postgres import PostgresTransport
from baton.hints.sender import Sender
from baton.hints.transport import HintState, Message, Owner, Transport
from baton.schema.migrate import migrate

from .postgres import postmaster

STREAMS: Final = 300
ROWS_A_SECOND: Final = 3000
BUCKETS: Final = 64
MOST_PROCESSES: Final = 4
WARM_SECONDS: Final = 0.5
WAYS: Final = ("one channel", "buckets", "NATS")
ASLEEP: Final = 100
WAKING: Final = 50


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process of listeners needs: the streams of each of them, and how hints arrive."""

    way: str
    dsn: str
    servers: Sequence[str]
    keys: Mapping[int, bytes]
    history: str
    streams: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the listeners of a process did."""

    cpu_seconds: float
    rows: int
    delays: Sequence[float]


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds for each row, and delays in milliseconds. `lost` is a share of the rows."""

    sender: float
    server: float
    listener: float
    total: float
    p50: float
    p99: float
    lost: float


class BucketSender(Sender):
    """Sends what is announced on the channels of the streams' buckets."""

    def _announcements(self, appends: Sequence[Append], committed_at: float, keys: SigningKeys) -> list[Message]:
        by_channel: dict[str, list[Append]] = {}
        for item in appends:
            by_channel.setdefault(bucket_of(item.stream_id.hex), []).append(item)
        return [
            Message(channel, payload)
            for channel, items in by_channel.items()
            for payload in notifications.pack(items, committed_at, keys)
        ]


class Ear:
    """One listener."""

    def __init__(self, setup: Setup, streams: Sequence[str]) -> None:
        self._streams = dict.fromkeys(streams)
        self._keys = SigningKeys(setup.keys, setup.history)
        self.rows = 0
        self.delays: list[float] = []
        self.ready = asyncio.Event()
        channels = {bucket_of(stream) for stream in streams} if setup.way == "buckets" else {EVENTS_CHANNEL}
        owner = Owner(dict.fromkeys(channels, self._hear), self._on_state, lambda: None)
        self.transport = transport_of(setup.way, setup.dsn, setup.servers, owner)
        self._listening = [self.transport.listen(stream) for stream in streams]

    async def begin(self) -> None:
        """Return once it hears its streams."""
        await self.ready.wait()
        for listening in self._listening:
            await listening.begin()

    def _on_state(self, state: HintState) -> None:
        if state is HintState.LISTENING:
            self.ready.set()

    def _hear(self, payload: str) -> None:
        found = list(notifications.unpack(payload, self._streams))
        if found:
            assert notifications.is_signed(self._keys, EVENTS_CHANNEL, payload)
            committed_at = notifications.committed_at(payload)
            assert committed_at is not None
            self.rows += len(found)
            self.delays.append(time.time() - committed_at)


def transport_of(way: str, dsn: str, servers: Sequence[str], owner: Owner) -> Transport:
    """Return Baton's transport of a way."""
    return NatsTransport(dsn, servers, owner) if way == "NATS" else PostgresTransport(dsn, owner)


def bucket_of(stream: str) -> str:
    """Return the channel of a stream."""
    return f"{EVENTS_CHANNEL}_{int(stream[-8:], 16) % BUCKETS}"


def listen(setup: Setup, pipe: Pipe) -> None:
    """Be a process of listeners: say when it is ready, and what it did between two words of the parent."""
    uvloop.run(_listen(setup, pipe))


async def _listen(setup: Setup, pipe: Pipe) -> None:
    ears = [Ear(setup, streams) for streams in setup.streams]
    tasks = [asyncio.create_task(ear.transport.run()) for ear in ears]
    for ear in ears:
        await ear.begin()
    pipe.send("ready")
    await _word(pipe)
    before, rows = time.process_time(), sum(ear.rows for ear in ears)
    for ear in ears:
        ear.delays.clear()
    await _word(pipe)
    used = time.process_time() - before
    delays = [delay for ear in ears for delay in ear.delays]
    pipe.send(Heard(used, sum(ear.rows for ear in ears) - rows, delays))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _word(pipe: Pipe) -> None:
    """Wait for a word of the parent, without a thread."""
    said = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), said.set)
    await said.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    pipe.recv()


@contextlib.contextmanager
def listening(setups: Sequence[Setup]) -> Iterator[list[Pipe]]:
    """Run a process for each setup."""
    context = multiprocessing.get_context("spawn")
    started, pipes = [], []
    for setup in setups:
        here, there = context.Pipe()
        process = context.Process(target=listen, args=(setup, there), daemon=True)
        process.start()
        started.append(process)
        pipes.append(here)
    try:
        yield pipes
    finally:
        for process in started:
            process.join(5)
            process.kill()


class Bench:
    """The servers of a measurement, which all turns share."""

    def __init__(self, dsn: str, nats_server: NatsServer, server: psutil.Process, rows: int, seconds: float) -> None:
        self._dsn = dsn
        self._nats = nats_server
        self._server = server
        self._rows = rows
        self._seconds = seconds

    async def measure(self, way: str, listeners: int) -> Cost:
        """Measure one way with this many listeners."""
        connection = await asyncpg.connect(self._dsn)
        keys = await signing_keys.read(connection, await history.read(connection))
        await connection.close()
        streams = [uuid4() for _ in range(STREAMS)]
        each = [[stream.hex for stream in streams[at::listeners]] for at in range(listeners)]
        count = min(listeners, MOST_PROCESSES)
        setups = [
            Setup(way, self._dsn, [self._nats.url], dict(keys.secrets), keys.history, each[at::count])
            for at in range(count)
        ]
        with listening(setups) as pipes:
            for pipe in pipes:
                await asyncio.to_thread(pipe.recv)
            async with self._sending(way) as hints:
                return await self._turn(hints, streams, pipes, way, listeners)

    @contextlib.asynccontextmanager
    async def _sending(self, way: str) -> AsyncIterator[Hints]:
        ready = asyncio.Event()
        owner = Owner({}, lambda _state: ready.set(), lambda: None)
        transport = transport_of(way, self._dsn, [self._nats.url], owner)
        kind = BucketSender if way == "buckets" else Sender
        hints = Hints(transport, kind(self._dsn, transport, name="bench", with_events=True))
        task = asyncio.create_task(hints.run())
        await ready.wait()
        try:
            yield hints
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _turn(
        self, hints: Hints, streams: Sequence[UUID], pipes: Sequence[Pipe], way: str, listeners: int
    ) -> Cost:
        server = psutil.Process(self._nats.pid) if way == "NATS" else self._server
        seq = await self._send(hints, streams, 0, WARM_SECONDS)
        for pipe in pipes:
            pipe.send("start")
        before_server, before = cpu_seconds(server), time.process_time()
        last = await self._send(hints, streams, seq, self._seconds)
        used, used_server = time.process_time() - before, cpu_seconds(server) - before_server
        for pipe in pipes:
            pipe.send("stop")
        heard: list[Heard] = [await asyncio.to_thread(pipe.recv) for pipe in pipes]
        rows = (last - seq) // 2 * STREAMS
        of_listeners = sum(item.cpu_seconds for item in heard)
        delays = sorted(delay for item in heard for delay in item.delays)
        return Cost(
            used / rows * 1e6,
            used_server / rows * 1e6,
            of_listeners / rows / listeners * 1e6,
            (used + used_server + of_listeners) / rows * 1e6,
            delays[len(delays) // 2] * 1000,
            delays[len(delays) * 99 // 100] * 1000,
            1 - sum(item.rows for item in heard) / rows,
        )

    async def _send(self, hints: Hints, streams: Sequence[UUID], seq: int, seconds: float) -> int:
        """Announce rows for this long; return the last number."""
        loop = asyncio.get_running_loop()
        text = b"\n".join(encode_text(f" word{number}") for number in range(2))
        due = loop.time()
        until = due + seconds
        while due < until:
            for first in range(0, STREAMS, self._rows):
                group = streams[first : first + self._rows]
                hints.send(*[Append(stream, 1, seq + 1, seq + 2, text) for stream in group])
                due += len(group) / ROWS_A_SECOND
                await asyncio.sleep(max(0, due - loop.time()))
            seq += 2
        await hints.settle(5)
        await asyncio.sleep(0.1)  # the last ones arrive
        return seq


async def awake(dsn: str) -> tuple[int, float]:
    """Return how many backends of idle listeners woke for a channel of nobody, and how often for each notification."""
    ears = [await asyncpg.connect(dsn) for _ in range(ASLEEP)]
    for number, ear in enumerate(ears):
        await ear.execute(f"LISTEN own_{number}")
    speaker = await asyncpg.connect(dsn)
    await asyncio.sleep(0.5)
    before = [_switches(ear) for ear in ears]
    for _ in range(WAKING):
        await speaker.execute("NOTIFY nobody_listens")
        await asyncio.sleep(0.02)
    after = [_switches(ear) for ear in ears]
    for ear in (*ears, speaker):
        await ear.close()
    woken = [then - now for now, then in zip(before, after, strict=True)]
    return sum(count >= WAKING / 2 for count in woken), statistics.median(woken) / WAKING


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children, in nanosecond steps: in ticks each one's would be zero."""
    nanoseconds = 0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{member.pid}/task").iterdir()
            nanoseconds += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    return nanoseconds / 1e9


def _switches(ear: Any) -> int:
    voluntary: int = psutil.Process(ear.get_server_pid()).num_ctx_switches().voluntary
    return voluntary


async def run(sizes: Sequence[int], turns: int, rows: int, seconds: float, say: Callable[[str], None]) -> None:
    """Measure everything, and print it."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as server:
        dsn = server.dsn
        connection = await asyncpg.connect(dsn)
        say(await connection.fetchval("SELECT version()"))
        await connection.execute("ALTER SYSTEM SET max_connections = 300")
        await connection.close()
        await asyncio.to_thread(server.restart)
        await migrate(dsn, days_ahead=1)
        async with NatsServer.running() as nats_server:
            bench = Bench(dsn, nats_server, await postmaster(dsn), rows, seconds)
            for listeners in sizes:
                found: dict[str, list[Cost]] = {way: [] for way in WAYS}
                for turn in range(turns):
                    for way in (*WAYS[turn % 3 :], *WAYS[: turn % 3]):
                        found[way].append(await bench.measure(way, listeners))
                for way, costs in found.items():
                    say(_line(way, listeners, costs))
        woken, times = await awake(dsn)
        say(f"{woken} of {ASLEEP} backends woke, {times:.1f} times for each notification.")


def _line(way: str, listeners: int, costs: Sequence[Cost]) -> str:
    def median(name: str) -> float:
        return statistics.median([float(getattr(cost, name)) for cost in costs])

    return (
        f"{listeners:3} listeners, {way:11}: sender {median('sender'):5.1f}, server {median('server'):6.1f}, "
        f"each listener {median('listener'):5.2f}, all {median('total'):6.1f} µs/row; "
        f"p50 {median('p50'):.1f}, p99 {median('p99'):.0f} ms; lost {median('lost'):.1%}"
    )


def main() -> None:
    """Print the method and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=STREAMS, help="rows in each flush: many workers have small ones")
    parser.add_argument("--seconds", type=float, default=4, help="how long each turn is measured")
    given = parser.parse_args()
    print(__doc__)
    uvloop.run(run(given.listeners, given.turns, given.rows, given.seconds, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
