"""Measures single events: replays, first tokens, idle connections, and viewers whose pod is killed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Final

import asyncpg
import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from .peers import Peer, System
from .peers.baton import RunningBaton
from .steady import Figures, sound, spent
from .viewers import Report, Target, Viewers

REPLAY_EVENTS: Final = 5000
# The rate at which the events are made before they are replayed: about 16 in each of Baton's batches.
FILL_RATE: Final = 400
# How long streams live that must not end before the measurement.
STAYS_SECONDS: Final = 600
IDLE_VIEWERS: Final = 100
SETTLE_SECONDS: Final = 2
LOOK_SECONDS: Final = 0.05
# Connections that are opened at once.
CONNECTING: Final = 500
STORM_STREAMS: Final = 500
STORM_VIEWERS: Final = 4
STORM_RATE: Final = 5
# The streams send nothing until all viewers have connected.
STORM_PAUSE_SECONDS: Final = 20
# An idle backend reports its reads after ten seconds.
STATISTICS_SECONDS: Final = 12

_ROWS = """
SELECT sum(coalesce(t.idx_tup_fetch, 0) + t.seq_tup_read)::bigint FROM pg_stat_user_tables AS t
JOIN pg_inherits AS i ON i.inhrelid = t.relid WHERE i.inhparent = 'baton.batch'::regclass
"""


async def replay(peer: Peer, system: System, clients: int) -> Figures:
    """Return how long it takes until this many clients, at once, have replayed a stream of 5,000 events.

    Clients that the system cuts off get nothing more. The stream has not ended: it waits, as for a slow tool.
    """
    filled = asyncio.Event()
    target = await system.begin(REPLAY_EVENTS, FILL_RATE, stays_seconds=STAYS_SECONDS)
    async with Viewers.open("--leave", over=lambda _path: filled.set()) as viewers:
        viewers.watch(target)
        await filled.wait()
    async with Viewers.open("--leave") as viewers:
        cpu_before, started = spent(system), time.time()
        for _ in range(clients):
            viewers.watch(target)
        reports = await until(viewers, lambda found: sum(r.whole + r.lost + r.failed for r in found) == clients)
        cpu = sum(spent(system).values()) - sum(cpu_before.values())
    events = sum(report.events for report in reports)
    figures = {
        "missed_by": clients - sum(report.whole for report in reports),
        "seconds": max(report.whole_at for report in reports) - started,
        "cpu_us": cpu / max(1, events) * 1e6,
        **sound(*reports),
    }
    if isinstance(system, RunningBaton):
        figures["reads_of_a_batch"] = await reads_of_a_batch(system.dsn)
    return figures


async def first_tokens(peer: Peer, system: System, count: int) -> Figures:
    """Return how long the one token of a stream takes on an idle system."""
    async with Viewers.open(*peer.flags) as viewers:
        reports = []
        for _ in range(count):
            viewers.watch(await system.begin(1, rate=20, pause_seconds=0.1))
            reports += await until(viewers, lambda found: any(report.events for report in found))
    delays = sorted(report.max_ms for report in reports if report.events)
    return {"p50_ms": delays[count // 2], "p99_ms": delays[int(count * 0.99)], **sound(*reports)}


async def idle(peer: Peer, system: System, connections: int) -> Figures:
    """Return by how much the serving process grows for each viewer of a silent stream."""
    targets = [
        await system.begin(1, rate=1, pause_seconds=STAYS_SECONDS) for _ in range(-(-connections // IDLE_VIEWERS))
    ]
    processes = system.parts[peer.serves]
    async with Viewers.open(*peer.flags) as viewers:
        # The first viewer makes the process load code, which counts for no viewer.
        viewers.watch(targets[0])
        reports = await until(viewers, lambda found: found[-1].open == 1)
        before = memory_bytes(processes[0])
        for first in range(1, connections + 1, CONNECTING):
            last = min(first + CONNECTING, connections + 1)
            for number in range(first, last):
                viewers.watch(targets[number % len(targets)])
            reports += await until(viewers, lambda found, wanted=last: found[-1].open >= wanted)  # type: ignore[misc]
        await asyncio.sleep(SETTLE_SECONDS)
        grown = memory_bytes(processes[0]) - before
    return {"kibibytes": grown / connections / 1024, **sound(*reports)}


async def storm(system: RunningBaton) -> Figures:
    """Kill the pod of all viewers; return how long until each has an event from the other pod."""
    first, second = system.pods
    tokens = STORM_RATE * STAYS_SECONDS
    targets = [await system.begin(tokens, STORM_RATE, STORM_PAUSE_SECONDS) for _ in range(STORM_STREAMS)]
    assert first.program.port is not None
    assert second.program.port is not None
    count = STORM_STREAMS * STORM_VIEWERS
    async with Viewers.open("--again") as viewers:
        for target in targets:
            for _ in range(STORM_VIEWERS):
                viewers.watch(Target(first.program.port, target.path, target.last))
        before = await until(viewers, lambda found: found[-1].open == count and sum(r.events for r in found) > count)
        await asyncio.sleep(SETTLE_SECONDS)
        viewers.move(second.program.port)
        reads_before, killed_at = await log_reads(second.program.address), time.time()
        first.dismissed = True
        first.signal(signal.SIGKILL)
        after = await until(viewers, lambda found: sum(report.resumed for report in found) == count)
        reads = await log_reads(second.program.address) - reads_before
    return {
        "seconds": max(report.resumed_at for report in after) - killed_at,
        "reads_per_stream": reads / STORM_STREAMS,
        **sound(*before, *after),
    }


async def until(viewers: Viewers, enough: Callable[[list[Report]], bool]) -> list[Report]:
    """Yield reports until the caller has enough. The caller sets the deadline."""
    reports: list[Report] = []
    while not (reports and enough(reports)):
        await asyncio.sleep(LOOK_SECONDS)
        reports.append(await viewers.report())
    return reports


def memory_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children."""
    return sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))


async def log_reads(address: str) -> float:
    """Return how many pages a pod has read from the log."""
    async with httpx2.AsyncClient() as http:
        text = (await http.get(f"{address}/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return families["baton_log_reads"].samples[0].value


async def reads_of_a_batch(dsn: str) -> float:
    """Return how often each row of the log was read on average."""
    await asyncio.sleep(STATISTICS_SECONDS)
    # In this order, because counting the rows reads them.
    return await fetch(dsn, _ROWS) / await fetch(dsn, "SELECT count(*) FROM baton.batch")


async def fetch(dsn: str, query: str) -> int:
    """Query one number."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()
