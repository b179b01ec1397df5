"""Measures the CPU cost per event and process: `python -m bench.baton --workload w1 --seconds 20 --flush-ms 2`.

Postgres, a pod, a worker and the viewers are processes of this machine. The generator that makes the tokens is part of
the worker; the viewers are counted separately.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import uvloop

from .missing import Missing
from .peers.baton import Baton, with_window
from .steady import Figures, Load, steady
from .workloads import LOADS


async def run(peer: Baton, load: Load, folder: Path, given: argparse.Namespace) -> Figures:
    """Measure once, on a new database."""
    shape = replace(load.shape(), pods=given.pods, workers=given.workers, slow_commits=given.slow_commits)
    shape = replace(shape, databases=given.databases)
    async with peer.open(folder, shape) as system:
        pids = (f"{part} {process.pid}" for part, found in system.parts.items() for process in found)
        print("Pids, for a profiler:", ", ".join(pids), file=sys.stderr, flush=True)
        return await steady(peer, system, load, given.seconds)


def show(figures: Figures) -> str:
    """Return the figures in one line."""
    parts = ", ".join(f"{part} {cost:.1f}" for part, cost in figures["parts_us"].items())
    return (
        f"{figures['rate']:,.0f} of {figures['offered']:,.0f} events/s; {figures['cpu_us']:.1f} µs/event ({parts}; "
        f"viewers {figures['viewers_us']:.1f}); p50 {figures['p50_ms']:.1f}, p99 {figures['p99_ms']:.1f}, "
        f"longest {figures['max_ms']:.0f} ms; {figures['bytes']:.0f} B/event; {figures['gaps']} gaps, "
        f"{figures['repeats']} repeats, {figures['lost']} lost, {figures['failed']} failed"
    )


def main() -> None:
    """Measure, and print a line for each turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=LOADS, default="w1")
    parser.add_argument("--streams", type=int, help="instead of the workload's")
    parser.add_argument("--seconds", type=float, default=20, help="how long to measure")
    parser.add_argument("--flush-ms", type=float, help="BATON_FLUSH_INTERVAL_MILLISECONDS")
    parser.add_argument("--slow-commits", action="store_true", help="commit_delay = 1500, as in W6")
    parser.add_argument("--pods", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--databases", type=int, default=1, help="each a Postgres server of its own")
    parser.add_argument("--turns", type=int, default=1)
    given = parser.parse_args()
    peer = Baton() if given.flush_ms is None else with_window(given.flush_ms)
    load = LOADS[given.workload]
    if given.streams:
        load = replace(load, streams=given.streams)
    for _ in range(given.turns):
        with tempfile.TemporaryDirectory() as folder:
            print(show(uvloop.run(run(peer, load, Path(folder), given))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Missing as error:
        sys.exit(str(error))
