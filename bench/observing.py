"""Measures the cost of metrics and logs: `python -m bench.observing`.

It runs W1 (300 streams of 50 tokens/s, one viewer each; streams of 20 s that are replaced as they end) with the default
metrics and logs, and without them: histograms and labeled counters count nothing, and no line is logged about a stream
or a connection (`bench/unobserved`). The two alternate, each time on a new database with new processes. The report
compares the CPU time of pod, worker and Postgres for each event that a viewer got: medians and ranges.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from .baton import show
from .cluster import ROOT
from .peers.baton import Baton
from .steady import Figures, steady
from .workloads import LOADS

WITHOUT: Final = {"PYTHONPATH": f"{ROOT / 'bench' / 'unobserved'}:{ROOT}"}
BOTH: Final = (Baton("with"), Baton("without", WITHOUT))


async def measure(peer: Baton, folder: Path, seconds: float) -> Figures:
    """Measure once."""
    load = LOADS["w1"]
    async with peer.open(folder, load.shape()) as system:
        return await steady(peer, system, load, seconds)


def main() -> None:
    """Measure, and print a line for each turn, the medians, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="how long each is measured")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    print(__doc__)
    costs: dict[str, list[float]] = {peer.name: [] for peer in BOTH}
    for turn in range(given.turns):
        for peer in BOTH if turn % 2 else reversed(BOTH):
            with tempfile.TemporaryDirectory() as folder:
                figures = uvloop.run(measure(peer, Path(folder), given.seconds))
            costs[peer.name].append(figures["cpu_us"])
            print(f"{peer.name}: {show(figures)}", flush=True)
    medians = {name: statistics.median(found) for name, found in costs.items()}
    for name, found in costs.items():
        print(f"{name}: {medians[name]:.1f} µs/event ({min(found):.1f} to {max(found):.1f})")
    print(f"Metrics and logs cost {medians['with'] / medians['without'] - 1:.1%}.")


if __name__ == "__main__":
    main()
