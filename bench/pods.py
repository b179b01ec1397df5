"""Measures real pods with Postgres' notifications and with NATS: `python -m bench.pods --pods 1 4 16`.

W1 with fewer streams (`--streams`), each with one viewer, on a worker, Postgres and this many pods, all on one machine.
A stream's viewer is on one pod; every pod hears every row over Postgres. CPU is microseconds for each event, by part,
for all pods together. The ways alternate, and the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import uvloop

from baton.chaos.nats_server import NatsServer

from .peers.baton import Baton
from .steady import Figures, Load, steady
from .workloads import LOADS


async def measure(way: str, load: Load, folder: Path, pods: int, seconds: float) -> Figures:
    """Measure once, on a new database."""
    async with NatsServer.running() as server:
        url = {"NATS": server.url, "poll": "poll", "Postgres": ""}[way]
        peer = Baton(way, {"BATON_HINTS_URL": url})
        async with peer.open(folder, replace(load.shape(), pods=pods)) as system:
            parts = {**system.parts, "nats": [psutil.Process(server.pid)]}
            return await steady(peer, replace(system, parts=parts), load, seconds)


def line(way: str, pods: int, found: list[Figures]) -> str:
    """Return the medians in one line."""
    parts = {part: statistics.median(item["parts_us"][part] for item in found) for part in found[0]["parts_us"]}
    shown = ", ".join(f"{part} {cost:.1f}" for part, cost in parts.items())
    total = statistics.median(item["cpu_us"] for item in found)
    p50, p99 = (statistics.median(item[name] for item in found) for name in ("p50_ms", "p99_ms"))
    lost = sum(item["gaps"] + item["lost"] for item in found)
    return f"{pods:3} pods, {way:8}: {total:6.1f} µs/event ({shown}); p50 {p50:.0f}, p99 {p99:.0f} ms; {lost} lost"


def main() -> None:
    """Print the method and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--ways", nargs="*", default=["Postgres", "NATS"], choices=["Postgres", "NATS", "poll"])
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    print(__doc__)
    load = replace(LOADS["w1"], streams=given.streams)
    for pods in given.pods:
        found: dict[str, list[Figures]] = {way: [] for way in given.ways}
        for turn in range(given.turns):
            for way in given.ways[:: -1 if turn % 2 else 1]:
                with tempfile.TemporaryDirectory() as folder:
                    found[way].append(uvloop.run(measure(way, load, Path(folder), pods, given.seconds)))
        for way, figures in found.items():
            print(line(way, pods, figures), flush=True)


if __name__ == "__main__":
    main()
