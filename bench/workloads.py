"""The workloads W1 to W9, the search for the highest rate, and the peers that each is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from . import burst
from .peers import Peer, Shape
from .peers.baton import Baton, RunningBaton
from .peers.by_hand import ByHand
from .steady import LEAST_CARRIED, Figures, Load, steady

ONE_EACH: Final = Load(300, 50)
LOADS: Final = {"w1": ONE_EACH, "w2": Load(1000, 50), "w3": Load(1, 200, viewers=500, life_seconds=600)}
MOST_DELAY_MS: Final = 250
# The number of streams, of 50 tokens a second, with which the search for the highest rate starts, and how it continues.
FIRST_STREAMS: Final = 250
FACTOR: Final = 1.5
HALVINGS: Final = 2

Measure = Callable[[Peer, Path], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Workload:
    """A measurement, for the peers that it `is_for`."""

    key: str
    title: str
    measure: Measure
    is_for: Callable[[Peer], bool] = lambda peer: True
    turns: int = 1_000_000  # at most
    starts: int = 1  # of a system in one measurement, roughly


def steadily(load: Load, seconds: float, *, pods: int = 1, workers: int = 1, slow_commits: bool = False) -> Measure:
    """Measure a steady load."""
    shape = replace(load.shape(), pods=pods, workers=workers, slow_commits=slow_commits)

    async def measure(peer: Peer, folder: Path) -> Figures:
        async with peer.open(folder, shape) as system:
            return await steady(peer, system, load, seconds)

    return measure


def highest(seconds: float) -> Measure:
    """Find the most streams of 50 tokens/s that run before the delay's p99 passes 250 ms."""

    async def measure(peer: Peer, folder: Path) -> Figures:
        best: Figures = {"streams": 0, "rate": 0.0}
        fits, too_many, halvings = 0, 0, 0
        while halvings <= HALVINGS:
            streams = (fits + too_many) // 2 if too_many else round(fits * FACTOR) or FIRST_STREAMS
            halvings += bool(too_many)
            figures = await carried(peer, folder / f"{streams}", replace(ONE_EACH, streams=streams), seconds)
            if figures:
                fits, best = streams, {"streams": streams, **figures}
            else:
                too_many = streams
        return best

    return measure


async def carried(peer: Peer, folder: Path, load: Load, seconds: float) -> Figures | None:
    """Return the figures of a load that keeps up; None if it fails twice, since a machine may stall once."""
    for attempt in ("first", "second"):
        tried = folder / attempt
        tried.mkdir(parents=True)
        figures = await steadily(load, seconds)(peer, tried)
        if figures["p99_ms"] <= MOST_DELAY_MS and figures["carried"] >= LEAST_CARRIED:
            return figures
    return None


def replayed(clients: int = 200) -> Measure:
    """Measure replays."""

    async def measure(peer: Peer, folder: Path) -> Figures:
        async with peer.open(folder, Shape(1, clients)) as system:
            return await burst.replay(peer, system, clients)

    return measure


def first_token(count: int) -> Measure:
    """Measure first tokens."""

    async def measure(peer: Peer, folder: Path) -> Figures:
        async with peer.open(folder, Shape(1, 1)) as system:
            return await burst.first_tokens(peer, system, count)

    return measure


def idling(connections: int) -> Measure:
    """Measure idle connections."""

    async def measure(peer: Peer, folder: Path) -> Figures:
        async with peer.open(folder, Shape(connections // burst.IDLE_VIEWERS + 1, connections)) as system:
            return await burst.idle(peer, system, connections)

    return measure


def stormed() -> Measure:
    """Measure a reconnect storm."""
    shape = Shape(burst.STORM_STREAMS, burst.STORM_STREAMS * burst.STORM_VIEWERS, pods=2)

    async def measure(peer: Peer, folder: Path) -> Figures:
        async with peer.open(folder, shape) as system:
            return await burst.storm(cast(RunningBaton, system))

    return measure


def is_default(peer: Peer) -> bool:
    """Whether a peer is Baton with default settings."""
    return isinstance(peer, Baton) and not peer.settings


def is_on_postgres(peer: Peer) -> bool:
    """Whether a peer commits."""
    return isinstance(peer, Baton | ByHand)


def keeps_up(peer: Peer) -> bool:
    """Whether a peer sustains the lowest rate of the search."""
    return "Durable" not in peer.name and "by hand" not in peer.name


def all_workloads(seconds: float) -> list[Workload]:
    """Return the workloads of `make bench`."""
    found = [*compared(seconds)]
    for streams in (10, 100, 300, 1000, 2000):
        load = Load(streams, 20)
        found.append(
            Workload(f"w9.streams.{streams}", f"W9: {streams} streams of 20/s", steadily(load, seconds), is_default)
        )
    for pods in (1, 2, 4, 8, 16):
        measure = steadily(ONE_EACH, seconds, pods=pods)
        found.append(Workload(f"w9.pods.{pods}", f"W9: W1 with {pods} pods", measure, is_default))
    for workers in (1, 2, 4):
        measure = steadily(ONE_EACH, seconds, workers=workers)
        found.append(Workload(f"w9.workers.{workers}", f"W9: W1 with {workers} workers", measure, is_default))
    found.append(Workload("highest", "highest rate with p99 ≤ 250 ms", highest(seconds), keeps_up, turns=1, starts=12))
    return found


def compared(seconds: float) -> list[Workload]:
    """Return the workloads that compare several systems, and the storm."""
    slow = steadily(ONE_EACH, seconds, slow_commits=True)
    return [
        Workload("w1", "W1: 300 streams of 50/s, one viewer each", steadily(LOADS["w1"], seconds)),
        Workload("w2", "W2: 1,000 streams of 50/s", steadily(LOADS["w2"], seconds)),
        Workload("w3", "W3: one stream of 200/s, 500 viewers", steadily(LOADS["w3"], seconds)),
        Workload("w4", "W4: 200 clients replay 5,000 events", replayed(), starts=2),
        Workload("w5", "W5: 2,000 viewers move to another pod", stormed(), is_default),
        Workload("w6", "W6: W1 with commits of 1.5 ms", slow, is_on_postgres),
        Workload("w7", "W7: first token", first_token(40)),
        Workload("w8", "W8: 5,000 idle connections", idling(5000)),
    ]


def quick_workloads(seconds: float) -> list[Workload]:
    """Return the workloads of `make bench-quick`."""
    return [workload for workload in compared(seconds) if workload.key in ("w1", "w2", "w3", "w4", "w5")]
