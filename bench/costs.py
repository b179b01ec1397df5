"""What parts of Baton's work cost, in CPU: `python -m bench.costs` measures it on this machine, in eight minutes.

Loads that differ in one thing each give the cost of that thing. Streams of 50 tokens/s put several tokens into a row,
and streams of 10 put each token into a row of its own; the same streams over four databases make four times as many
flushes; and so on. `MEASURED` has the figures that `bench.model` computes with.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import asyncpg
import uvloop

from .peers.baton import Baton
from .steady import WARM_UP_SECONDS, Crowd, Load, spent

_ROWS: Final = "SELECT count(*) FROM baton.batch"
# Longer than a measurement: no stream ends in it.
_LONG: Final = 2000


@dataclass(frozen=True, slots=True)
class Parts:
    """CPU by process: in µs, unless it says something else."""

    worker: float
    postgres: float
    pod: float

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.worker + other.worker, self.postgres + other.postgres, self.pod + other.pod)

    def __mul__(self, factor: float) -> Parts:
        return Parts(self.worker * factor, self.postgres * factor, self.pod * factor)

    @property
    def total(self) -> float:
        """All processes together."""
        return self.worker + self.postgres + self.pod


@dataclass(frozen=True, slots=True)
class Costs:
    """What each of these costs, in µs of CPU; `idle` and `timer` are shares of a core.

    A row is what one flush writes of one stream, delivered to one viewer. `heard` is a row that a further pod receives
    and does not follow. A life is a stream's creation, claim, first viewer and end. `idle` is for each database: of
    each worker, of Postgres, and of each pod. `timer` is the generator's, in each worker process.
    """

    token: Parts
    row: Parts
    flush: Parts
    life: Parts
    heard: Parts
    viewer: float  # a row that a further viewer of the same pod gets
    idle: Parts
    timer: float
    rows_per_second: float  # of a stream with more tokens than that, at the default window


@dataclass(frozen=True, slots=True)
class Measured:
    """One load, per second."""

    tokens: float
    rows: float
    starts: float
    cpu: Parts  # µs


async def resting(folder: Path, seconds: float) -> Parts:
    """Return what processes without streams take, in µs a second."""
    async with Baton().open(folder, Load(1, 1).shape()) as system:
        await asyncio.sleep(WARM_UP_SECONDS)
        before = spent(system)
        await asyncio.sleep(seconds)
        after = spent(system)
    return _parts({part: (after[part] - before[part]) / seconds * 1e6 for part in after})


async def measured(
    load: Load, folder: Path, seconds: float, *, pods: int = 1, workers: int = 1, databases: int = 1
) -> Measured:
    """Run a load on new databases."""
    peer = Baton()
    shape = replace(load.shape(), pods=pods, workers=workers, databases=databases)
    async with peer.open(folder, shape) as system, Crowd(system, load).gathered(()) as viewers:
        await asyncio.sleep(WARM_UP_SECONDS)
        rows, before = await _rows(system.dsns), spent(system)
        begun = await viewers.report()
        await asyncio.sleep(seconds)
        ended, after = await viewers.report(), spent(system)
        rows = await _rows(system.dsns) - rows
    took = ended.at - begun.at
    each = {part: (after[part] - before[part]) / took * 1e6 for part in after}
    starts = load.streams / load.life_seconds if load.life_seconds < _LONG else 0
    return Measured(ended.events / load.viewers / took, rows / took, starts, _parts(each))


async def _rows(dsns: Sequence[str]) -> int:
    found = 0
    for dsn in dsns:
        connection = await asyncpg.connect(dsn)
        found += await connection.fetchval(_ROWS)
        await connection.close()
    return found


def _parts(cpu: Mapping[str, float]) -> Parts:
    return Parts(cpu["worker"], cpu["postgres"], cpu["pod"])


def solved(runs: Mapping[str, Measured], rest: Parts, viewers: int, pods: int) -> Costs:
    """Return the costs from a run of each of the `LOADS`, and from what processes take that rest."""
    timer = max(0.0, runs["timer"].cpu.worker - rest.worker)
    idle = rest + Parts(timer, 0, 0)
    many, slow, spread = (_without(runs[name], idle) for name in ("many", "slow", "spread"))
    flushes = many.rows / LOADS["many"].streams
    further = DATABASES - 1
    flush = _clamped(spread.cpu + slow.cpu * -1 + rest * -further) * (1 / (further * flushes))
    token, row = _of_two(many, slow, flush * flushes)
    lives = _without(runs["lives"], idle)
    base = token * lives.tokens + row * lives.rows + flush * flushes
    life = _clamped(lives.cpu + base * -1) * (1 / lives.starts)
    watched = _without(runs["watched"], idle)
    written = watched.cpu.pod - token.pod * watched.tokens - (row.pod + flush.pod) * watched.rows
    more = runs["pods"]
    without = token * more.tokens + row * more.rows + flush * flushes
    without += Parts(idle.worker, idle.postgres, pods * idle.pod + (pods - 1) * flush.pod * flushes)
    heard = _clamped(more.cpu + without * -1) * (1 / (more.rows * (pods - 1)))
    return Costs(
        token,
        row,
        flush,
        life,
        Parts(0, heard.postgres, heard.pod),
        max(0.0, written / (watched.rows * (viewers - 1))),
        rest * 1e-6,
        timer * 1e-6,
        flushes,
    )


def _of_two(many: Measured, slow: Measured, flushes: Parts) -> tuple[Parts, Parts]:
    """Solve tokens·t + rows·r = CPU for two runs, without what their flushes cost."""
    first, second = (_clamped(run.cpu + flushes * -1) for run in (many, slow))
    determinant = many.tokens * slow.rows - slow.tokens * many.rows
    token = _clamped((first * slow.rows + second * -many.rows) * (1 / determinant))
    row = _clamped((first + token * -many.tokens) * (1 / many.rows))
    return token, row


def _without(run: Measured, idle: Parts) -> Measured:
    return replace(run, cpu=_clamped(run.cpu + idle * -1))


def _clamped(parts: Parts) -> Parts:
    return Parts(max(0.0, parts.worker), max(0.0, parts.postgres), max(0.0, parts.pod))


LOADS: Final = {
    "many": Load(300, 50, life_seconds=_LONG),
    "slow": Load(300, 10, life_seconds=_LONG),
    "spread": Load(300, 10, life_seconds=_LONG),
    "lives": Load(300, 50, life_seconds=20),
    "watched": Load(1, 200, viewers=500, life_seconds=_LONG),
    "pods": Load(300, 50, life_seconds=_LONG),
    "timer": Load(1, 0.1, life_seconds=_LONG),
}
PODS: Final = 8
DATABASES: Final = 4

# Medians of three turns on two cores that did nothing else. `heard` is from the benchmark's W9 with 16 pods: with 8 it
# is near the noise (0.5 and 2.2).
MEASURED: Final = Costs(
    token=Parts(3.5, 0.4, 0.0),
    row=Parts(18.2, 7.8, 18.2),
    flush=Parts(490, 700, 95),
    life=Parts(2500, 4100, 5100),
    heard=Parts(0, 0.7, 2.6),
    viewer=9.9,
    idle=Parts(0.005, 0.0025, 0.005),
    timer=0.01,
    rows_per_second=22,
)


def main() -> None:
    """Measure, and print the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="how long each load is measured")
    parser.add_argument("--turns", type=int, default=3, help="medians of these are taken")
    given = parser.parse_args()
    runs: dict[str, list[Measured]] = {name: [] for name in LOADS}
    rests = []
    for _ in range(given.turns):
        with tempfile.TemporaryDirectory() as folder:
            rests.append(uvloop.run(resting(Path(folder), given.seconds)))
        for name, load in LOADS.items():
            with tempfile.TemporaryDirectory() as folder:
                more = {"pods": PODS if name == "pods" else 1, "databases": DATABASES if name == "spread" else 1}
                runs[name].append(uvloop.run(measured(load, Path(folder), given.seconds, **more)))
            print(f"{name}: {runs[name][-1]}", flush=True)
    middle = {name: _middle(found) for name, found in runs.items()}
    rest = sorted(rests, key=lambda parts: parts.total)[len(rests) // 2]
    print(solved(middle, rest, LOADS["watched"].viewers, PODS))


def _middle(runs: list[Measured]) -> Measured:
    """Return the run with the median of all CPU."""
    return sorted(runs, key=lambda run: run.cpu.total)[len(runs) // 2]


if __name__ == "__main__":
    main()
