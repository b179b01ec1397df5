"""Measures what one `baton serve` carries with one process and with two: `python -m bench.several_processes`.

Viewers, Postgres and a worker share the machine with the pods. On two cores they take more than one of them when pods
are busy, so no two processes can get a core each, and throughput cannot double. So there are two measurements:

- **cost**: the same load on 1 and on 2 processes, in turn: CPU of all of them for each event that a viewer gets,
  and how evenly the kernel spreads the viewers. If the cost does not grow, N cores carry N times as much.
- **carried**: each process may use only a part of a core (a control group with a quota), which leaves enough of the
  machine to the others. The number of streams of 50 tokens/s, a viewer each, grows until the delay's p99 passes 250 ms
  or less than 97 % arrives. That is what N slow cores carry, with everything else on other cores.

The quota needs root and control groups. Without them only the cost is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import httpx2
import psutil
import uvloop

from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from .cluster import ROOT
from .peers import http_client, load_input
from .peers.baton import SETTINGS
from .postgres import postmaster
from .processes import free_port, program
from .steady import LEAST_CARRIED, WARM_UP_SECONDS, Crowd, Figures, Load, figures, spent
from .viewers import Target
from .workloads import MOST_DELAY_MS

RATE: Final = 50
COST_STREAMS: Final = 200
FACTOR: Final = 1.5
HALVINGS: Final = 3
PERIOD_MICROSECONDS: Final = 10_000
CLEAR_SECONDS: Final = 30
_GROUPS: Final = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))


@dataclass(frozen=True, slots=True)
class Served:
    """A running `baton serve`, with a worker beside it. A `peers.System`."""

    dsn: str
    port: int
    http: httpx2.AsyncClient
    parts: Mapping[str, Sequence[psutil.Process]]
    serving: Sequence[psutil.Process]  # those that serve clients
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    async def begin(self, tokens: int, rate: float, pause_seconds: float = 0, stays_seconds: float = 0) -> Target:
        """Create a stream."""
        load = load_input(tokens, rate, pause_seconds, stays_seconds)
        url = f"http://127.0.0.1:{self.port}/v1/streams"
        answer = await self.http.post(url, json={"generator": "load", "input": load})
        return Target(self.port, answer.raise_for_status().json()["events_url"], tokens)

    async def subscribers(self) -> list[int]:
        """Return how many viewers each process has."""
        text = (await self.http.get(f"http://127.0.0.1:{self.port}/metrics")).text
        return [int(float(value)) for value in re.findall(r"^baton_subscribers(?:\{.*\})? (\S+)$", text, re.MULTILINE)]

    async def clear(self) -> None:
        """Wait until the streams of the last step, which nobody watches now, are cancelled."""
        connection = await asyncpg.connect(self.dsn)
        try:
            async with asyncio.timeout(CLEAR_SECONDS):
                while await connection.fetchval("SELECT count(*) FROM baton.stream WHERE finished_at IS NULL"):
                    await asyncio.sleep(0.2)
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def served(folder: Path, processes: int) -> AsyncIterator[Served]:
    """Start Postgres, one worker, and a command with this many processes."""
    with embedded_postgres(folder) as dsn:
        await migrate(dsn, days_ahead=7)
        port, worker_port = free_port(), free_port()
        environment = {
            **SETTINGS,
            "BATON_DATABASE_URL": dsn,
            "BATON_ALLOW_ANONYMOUS": "true",
            "BATON_GENERATORS": "load=bench.load:generate",
            "BATON_WORKER_CONCURRENCY": "5000",
            "BATON_WORKER_METRICS_PORT": str(worker_port),
            "BATON_CANCEL_WHEN_UNWATCHED_SECONDS": "1",
            "BATON_WATCH_INTERVAL_SECONDS": "0.5",
            "PYTHONPATH": str(ROOT),
        }
        baton = (sys.executable, "-m", "baton")
        arguments = ("serve", "--port", str(port), "--processes", str(processes))
        async with (
            program(folder, *baton, "worker", port=worker_port, environment=environment) as worker,
            program(folder, *baton, *arguments, port=port, environment=environment) as command,
            http_client() as http,
        ):
            serving = command.children() if processes > 1 else [command]
            parts = {"pod": [command], "worker": [worker], "postgres": [await postmaster(dsn)]}
            yield Served(dsn, port, http, parts, serving)


async def measured(system: Served, streams: int, seconds: float) -> Figures:
    """Measure a load of this many streams, a viewer each."""
    load = Load(streams, RATE)
    async with Crowd(system, load).gathered(()) as viewers:
        await asyncio.sleep(WARM_UP_SECONDS)
        begun, before, busy = await viewers.report(), spent(system), psutil.cpu_times()
        await asyncio.sleep(seconds)
        ended, after, later = await viewers.report(), spent(system), psutil.cpu_times()
        spread = await system.subscribers()
    idle = (later.idle + later.iowait - busy.idle - busy.iowait) / (ended.at - begun.at)
    found = figures(load, begun, ended, {part: after[part] - before[part] for part in after})
    await system.clear()
    return found | {"spread": spread, "machine": (os.cpu_count() or 1) - idle}


async def highest(system: Served, first: int, seconds: float) -> tuple[int, Figures]:
    """Return the most streams that arrive in time, and their figures."""
    fits, too_many, halvings, best = 0, 0, 0, {}
    while halvings < HALVINGS:
        streams = (fits + too_many) // 2 if too_many else round(fits * FACTOR) or first
        halvings += bool(too_many)
        found = await measured(system, streams, seconds)
        if found["p99_ms"] <= MOST_DELAY_MS and found["carried"] >= LEAST_CARRIED:
            fits, best = streams, found
        else:
            too_many = streams
    return fits, best


@contextlib.contextmanager
def limited(processes: Sequence[psutil.Process], share: float) -> Iterator[None]:
    """Let each process use only this share of a core.

    Raises:
        OSError: there are no control groups here that this user may make.
    """
    root = next((root for root in _GROUPS if (root / "cgroup.procs").exists()), _GROUPS[-1])
    with contextlib.ExitStack() as stack:
        for process in processes:
            group = root / f"baton-bench-{process.pid}"
            group.mkdir()
            stack.callback(_remove, group, root)
            quota = round(PERIOD_MICROSECONDS * share)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
            else:
                (group / "cpu.cfs_period_us").write_text(f"{PERIOD_MICROSECONDS}")
                (group / "cpu.cfs_quota_us").write_text(f"{quota}")
            (group / "cgroup.procs").write_text(f"{process.pid}")
        yield


def _remove(group: Path, root: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    group.rmdir()


async def turn(processes: int, given: argparse.Namespace) -> Figures:
    """Measure both once."""
    with tempfile.TemporaryDirectory(prefix="baton-bench-", ignore_cleanup_errors=True) as folder:
        async with served(Path(folder), processes) as system:
            cost = await measured(system, COST_STREAMS, given.seconds)
            found = {
                "cost_us": cost["parts_us"]["pod"],
                "cost_spread": cost["spread"],
                "cost_p99_ms": cost["p99_ms"],
                "cost_machine": cost["machine"],
            }
            try:
                with limited(system.serving, given.share):
                    streams, best = await highest(system, round(200 * given.share * processes), given.seconds)
            except OSError as error:
                print(f"  carried: not measured, because there is no quota here ({error})")
                return found
            return found | {"carried": streams, **{f"carried_{name}": value for name, value in best.items()}}


def main() -> None:
    """Measure, and print a line for each turn, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes, in turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5, help="how long each load is measured")
    parser.add_argument("--share", type=float, default=0.25, help="what each process may use of a core, for `carried`")
    given = parser.parse_args()
    print(__doc__)
    all_found: dict[int, list[Figures]] = {number: [] for number in given.processes}
    for number in range(given.turns):
        for processes in given.processes:
            found = uvloop.run(turn(processes, given))
            all_found[processes].append(found)
            print(f"turn {number + 1}, {processes} processes: {shown(found)}", flush=True)
    for processes, several in all_found.items():
        cost = statistics.median(found["cost_us"] for found in several)
        carried = [found["carried"] for found in several if "carried" in found]
        print(f"{processes} processes, medians: {cost:.1f} µs of pods/event", end="")
        print(f", {statistics.median(carried):.0f} streams carried" if carried else "")


def shown(found: Figures) -> str:
    """Return the figures of one turn as a line."""
    text = (
        f"{found['cost_us']:.1f} µs of pods/event, p99 {found['cost_p99_ms']:.0f} ms, viewers by process "
        f"{found['cost_spread']}, {found['cost_machine']:.2f} cores busy in all"
    )
    if not found.get("carried"):
        return text
    return (
        f"{text}; limited: {found['carried']} streams, {found['carried_rate']:,.0f} events/s, "
        f"p99 {found['carried_p99_ms']:.0f} ms, viewers {found['carried_spread']}, "
        f"{found['carried_machine']:.2f} cores busy in all"
    )


if __name__ == "__main__":
    main()
