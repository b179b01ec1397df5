"""Measures producers that append over HTTP: `python -m bench.producers`.

It runs W1 (300 streams of 50 events/s, one viewer each; streams of 20 s, replaced as they end) in five ways, each time
with new processes, and on Postgres with a new database:

- a worker whose generators yield the events, as in `make bench`; viewers use Baton's API;
- producers who append to Baton over HTTP; viewers use Baton's API;
- the same, and viewers use the Durable Streams protocol;
- producers and viewers of the protocol's own reference server, in memory;
- the same, on disk.

The producers are one process in C (`bench/native/publisher.c`): 300 of the protocol's TypeScript clients would take
more CPU than the servers need. Each has a connection of its own and sends what that client sends: JSON arrays with
`Producer-Id`, `Producer-Epoch` and `Producer-Seq`, and with the last one `Stream-Closed`. Events that become due
while a POST is in progress are sent together in the next one. With `--linger-ms` a POST waits for that time after its
first event, as that client's IdempotentProducer does for 5 ms.

CPU is user and system time of all processes of a part, divided by the events that the viewers got in that time.
"Server" is the sum without producers; a worker is part of it, and makes the events, too. The report has a line for
each measurement, and medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import uvloop

from .baton import show
from .missing import Missing
from .peers import Peer
from .peers.baton import Baton
from .peers.durable_streams import DurableStreams
from .peers.produced import Produced
from .steady import Figures, Load, steady
from .workloads import LOADS


def peers(linger_milliseconds: float) -> list[Peer]:
    """Return the ways to measure."""
    return [
        Baton("Baton, worker"),
        Produced("Baton, producers", linger_milliseconds=linger_milliseconds),
        Produced(
            "Baton, producers and viewers of the protocol",
            linger_milliseconds=linger_milliseconds,
            by_protocol=True,
        ),
        DurableStreams(keeps=False, linger_milliseconds=linger_milliseconds),
        DurableStreams(keeps=True, linger_milliseconds=linger_milliseconds),
    ]


async def measure(peer: Peer, load: Load, folder: Path, seconds: float) -> Figures:
    """Measure once."""
    async with peer.open(folder, load.shape()) as system:
        found = await steady(peer, system, load, seconds)
    return found | {"server_us": found["cpu_us"] - found["parts_us"].get("publisher", 0)}


def main() -> None:
    """Measure all in each turn, beginning with another one each time, and print a line for each and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="how long each is measured")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--rate", type=float, default=50, help="events a second of each stream")
    parser.add_argument("--linger-ms", type=float, default=0)
    parser.add_argument("--only", nargs="*", type=int, help="these ways, counted from 1")
    given = parser.parse_args()
    print(__doc__)
    load = replace(LOADS["w1"], streams=given.streams, rate=given.rate)
    chosen = [peer for at, peer in enumerate(peers(given.linger_ms), 1) if not given.only or at in given.only]
    for peer in chosen:
        peer.install()
    found: dict[str, list[Figures]] = {peer.name: [] for peer in chosen}
    for turn in range(given.turns):
        for peer in chosen[turn % len(chosen) :] + chosen[: turn % len(chosen)]:
            with tempfile.TemporaryDirectory() as folder:
                measured = uvloop.run(measure(peer, load, Path(folder), given.seconds))
            found[peer.name].append(measured)
            print(f"{peer.name}: {show(measured)}", flush=True)
    print(f"\nOffered: {load.offered:,.0f} events/s. Medians of {given.turns}:")
    for name, turns in found.items():
        print(f"{name}: {summary(turns)}")


def summary(turns: list[Figures]) -> str:
    """Return medians, and the range of the CPU."""
    middle = {key: statistics.median(turn[key] for turn in turns) for key in ("rate", "server_us", "p50_ms", "p99_ms")}
    parts = {part: statistics.median(turn["parts_us"][part] for turn in turns) for part in turns[0]["parts_us"]}
    cost = [turn["server_us"] for turn in turns]
    return (
        f"{middle['rate']:,.0f} events/s; "
        f"server {middle['server_us']:.1f} µs/event ({min(cost):.1f} to {max(cost):.1f}); "
        f"{', '.join(f'{part} {each:.1f}' for part, each in parts.items())}; "
        f"p50 {middle['p50_ms']:.1f} ms, p99 {middle['p99_ms']:.1f} ms"
    )


if __name__ == "__main__":
    try:
        main()
    except Missing as error:
        sys.exit(str(error))
