"""Runs streams at a steady rate, replaces them as they end, and measures the cost of delivery.

All viewers join, and the measurement starts after a pause. It has the CPU time of each part of the system, divided by
the events that the viewers got in that time; the delays of these events; and the share of the offered tokens that
arrived. Gaps and repeats are counted from the first token on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .peers import Peer, Shape, System
from .processes import cpu_seconds
from .viewers import Report, Viewers

WARM_UP_SECONDS: Final = 3
# The shortest life of the first streams, as a part of a full life: long enough for viewers to join.
FIRST_LIFE: Final = 0.25
# How many streams are started at once.
BEGINNING: Final = 16
# The least share of the offered rate; a system that delivers less is saturated.
LEAST_CARRIED: Final = 0.97

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """A load: concurrent streams, tokens a second and viewers of each, and its duration."""

    streams: int
    rate: float
    viewers: int = 1
    life_seconds: float = 20

    @property
    def offered(self) -> float:
        """The events per second that all viewers receive."""
        return self.streams * self.rate * self.viewers

    def shape(self) -> Shape:
        """The capacity that a system needs."""
        return Shape(self.streams, self.streams * self.viewers)


class Crowd:
    """Keeps the streams and viewers of a load running."""

    def __init__(self, system: System, load: Load) -> None:
        self._system = system
        self._load = load
        self._live: set[str] = set()
        self._ended: asyncio.Queue[str] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def gathered(self, flags: tuple[str, ...]) -> AsyncIterator[Viewers]:
        """Start all streams, and replace those that end inside the block. The first ones end at different times."""
        load = self._load
        lives = [
            load.life_seconds * (FIRST_LIFE + (1 - FIRST_LIFE) * number / load.streams)
            for number in range(load.streams)
        ]
        async with Viewers.open(*flags, over=self._over) as viewers:
            for first in range(0, load.streams, BEGINNING):
                await asyncio.gather(*(self._begin(viewers, life) for life in lives[first : first + BEGINNING]))
            replacing = [asyncio.create_task(self._replace(viewers)) for _ in range(BEGINNING)]
            try:
                yield viewers
                for task in replacing:
                    if task.done():
                        task.result()
            finally:
                for task in replacing:
                    task.cancel()
                await asyncio.gather(*replacing, return_exceptions=True)

    async def _begin(self, viewers: Viewers, life_seconds: float) -> None:
        load = self._load
        target = await self._system.begin(max(1, round(load.rate * life_seconds)), load.rate)
        self._live.add(target.path)
        for _ in range(load.viewers):
            viewers.watch(target)

    async def _replace(self, viewers: Viewers) -> None:
        while True:
            await self._ended.get()
            await self._begin(viewers, self._load.life_seconds)

    def _over(self, path: str) -> None:
        """Note the end of a stream, when its first viewer has the last token."""
        if path in self._live:
            self._live.remove(path)
            self._ended.put_nowait(path)


async def steady(peer: Peer, system: System, load: Load, seconds: float) -> Figures:
    """Measure a load for this long."""
    async with Crowd(system, load).gathered(tuple(peer.flags)) as viewers:
        await asyncio.sleep(WARM_UP_SECONDS)
        begun, before = await viewers.report(), spent(system)
        await asyncio.sleep(seconds)
        ended, after = await viewers.report(), spent(system)
    return figures(load, begun, ended, {part: after[part] - before[part] for part in after})


def spent(system: System) -> dict[str, float]:
    """Return the CPU seconds of each part so far."""
    return {part: sum(map(cpu_seconds, processes)) for part, processes in system.parts.items()}


def figures(load: Load, begun: Report, ended: Report, cpu: Mapping[str, float]) -> Figures:
    """Return the figures between two reports."""
    each = 1e6 / max(1, ended.events)
    rate = ended.events / (ended.at - begun.at)
    return {
        "offered": load.offered,
        "rate": rate,
        "carried": rate / load.offered,
        "cpu_us": sum(cpu.values()) * each,
        "parts_us": {part: seconds * each for part, seconds in cpu.items()},
        "viewers_us": (ended.cpu_seconds - begun.cpu_seconds) * each,
        "bytes": ended.bytes / max(1, ended.events),
        "p50_ms": ended.p50_ms,
        "p99_ms": ended.p99_ms,
        "max_ms": ended.max_ms,
        **sound(begun, ended),
    }


def sound(*reports: Report) -> Figures:
    """Return gaps, repeats and the number of events of all reports. No system may have gaps or repeats."""
    names = ("events", "gaps", "repeats", "lost", "failed")
    return {f"all_{name}" if name == "events" else name: sum(getattr(r, name) for r in reports) for name in names}
