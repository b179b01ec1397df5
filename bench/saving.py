"""Measures the cost of states: `python -m bench.saving`.

It runs W1 (300 streams of 50 tokens/s, one viewer each; streams of 20 s that are replaced as they end) with a generator
that saves nothing, and with one that yields a state of 1 KiB after each token, so that each flush of a stream saves
one. The two alternate, each time on a new database with new processes. The report compares the CPU time and the WAL of
each event that a viewer got, and the delay: medians and ranges. WAL has `full_page_writes` on, and no checkpoint but
the ones of Postgres.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import asyncpg
import uvloop

from .baton import show
from .peers.baton import Baton, RunningBaton
from .steady import WARM_UP_SECONDS, Crowd, Figures, Load, figures, spent
from .workloads import LOADS

BOTH: Final = (Baton("without states"), Baton("1 KiB with each flush", generator="saving"))
SHOWN: Final = {"cpu_us": "µs of CPU/event", "wal": "B of WAL/event", "p50_ms": "ms p50", "p99_ms": "ms p99"}
_CHURN: Final = """
SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS wal, n_tup_ins AS saves, n_dead_tup AS dead, autovacuum_count AS vacuums,
       pg_relation_size(relid) / 1e6 AS heap_mb, pg_indexes_size(relid) / 1e6 AS index_mb
FROM pg_stat_user_tables WHERE relid = 'baton.stream_state'::regclass
"""


async def measure(peer: Baton, load: Load, folder: Path, seconds: float) -> Figures:
    """Measure once."""
    async with peer.open(folder, load.shape()) as system, Crowd(system, load).gathered(()) as viewers:
        await asyncio.sleep(WARM_UP_SECONDS)
        begun, before, churned = await viewers.report(), spent(system), await churn(system)
        await asyncio.sleep(seconds)
        ended, after, churning = await viewers.report(), spent(system), await churn(system)
    found = figures(load, begun, ended, {part: after[part] - before[part] for part in after})
    saves = (churning["saves"] - churned["saves"]) / seconds
    return found | {
        "wal": float(churning["wal"] - churned["wal"]) / ended.events,
        "table": f"{saves:.0f} saves/s, {churning['dead']} dead rows, {churning['vacuums']} vacuums, "
        f"heap {churning['heap_mb']:.1f} MB, index {churning['index_mb']:.1f} MB",
    }


async def churn(system: RunningBaton) -> asyncpg.Record:
    """Return the place in the WAL, and what the table of states has been through."""
    connection = await asyncpg.connect(system.dsn)
    try:
        (row,) = await connection.fetch(_CHURN)
    finally:
        await connection.close()
    return row


def main() -> None:
    """Measure, and print a line for each turn, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="how long each is measured")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", type=int, help="instead of the 300 of W1")
    given = parser.parse_args()
    load = LOADS["w1"] if given.streams is None else replace(LOADS["w1"], streams=given.streams)
    print(__doc__)
    found: dict[str, list[Figures]] = {peer.name: [] for peer in BOTH}
    for turn in range(given.turns):
        for peer in BOTH if turn % 2 else reversed(BOTH):
            with tempfile.TemporaryDirectory() as folder:
                measured = uvloop.run(measure(peer, load, Path(folder), given.seconds))
            found[peer.name].append(measured)
            print(f"{peer.name}: {show(measured)}; {measured['table']}; WAL {measured['wal']:.0f} B/event", flush=True)
    for name, turns in found.items():
        for key, unit in SHOWN.items():
            values = [turn[key] for turn in turns]
            print(f"{name}: {statistics.median(values):.1f} {unit} ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
