"""Which generators stand in one line, and where a line begins. A stream's position is its place in its line.

**The order is start-time fair queueing** (Goyal, Vin and Cheng, 1996): each stream has a virtual time, and the lowest
one is next. A new stream goes just less than a step behind the first stream in line, or, if its tenant has streams of
the same priority in line, a step behind the last of them. So tenants take turns, and each tenant's streams keep their
order. The lower a priority, the longer its step. If nothing is in line, the current time takes the place of the first.

**A line** is what a position is compared with. A worker serves all of its generators by position, so the positions of
two generators that share workers must be from one virtual time: the line of a generator has it, and each generator
that *every* worker which offers it offers too. A stream then never gets a position below the first one of a worker that
can serve it, which is what workers' watermarks rely on. A generator that no worker offers stands alone, so its streams
cannot stop the virtual time of others.

Workers' rows are read every two seconds. Until then a worker that has just started is unknown, while its watermark
still begins at the start of the index.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..pace import Pace
from . import worker_rows
from .postgres import Connection
from .queue_watermark import START, SWEEP_SECONDS, First, QueueWatermark

WORKERS_SECONDS: Final = 2.0
# The most lines whose beginning a pod remembers. Each costs it a short statement every half second.
MOST_LINES: Final = 16

IN_LINE: Final = "status = 'queued' AND queue_position IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Line:
    """The generators of a line, and a position before which none of its streams is."""

    generators: Sequence[str]
    since: datetime = START


def position(tenant: str, priority: str, generators: str, since: str) -> str:
    """Return SQL for the position of a stream that goes into line; the arguments are SQL too.

    Streams of one tenant that are created at the same moment do not see each other, and may get the same position.
    """
    first = first_position(generators, since)
    return f"""(
    SELECT greatest(v.first + v.step - interval '1 us', (
        SELECT queue_position FROM baton.stream
        WHERE tenant = {tenant} AND priority = {priority} AND {IN_LINE} AND queue_position >= v.first
          AND generator = ANY ({generators})
        ORDER BY queue_position DESC LIMIT 1
    ) + v.step)
    FROM (SELECT coalesce({first}, clock_timestamp()) AS first, {step(priority)} AS step OFFSET 0) AS v
)"""  # noqa: S608


def step(priority: str) -> str:
    """Return SQL for the distance between the positions of two streams of a tenant and priority."""
    return f"CASE {priority} WHEN 1 THEN interval '1 us' WHEN 0 THEN interval '8 us' ELSE interval '64 us' END"


def first_position(generators: str, since: str) -> str:
    """Return SQL for the first position in a line; NULL if nothing is in it."""
    return f"""(
        SELECT queue_position FROM baton.stream
        WHERE {IN_LINE} AND queue_position >= {since} AND generator = ANY ({generators})
        ORDER BY queue_position LIMIT 1
    )"""  # noqa: S608


_FIRST = f"SELECT {first_position('$1::text[]', '$2')}, now()"
_FIRST_OF_ALL = f"""
SELECT (SELECT queue_position FROM baton.stream WHERE {IN_LINE} AND queue_position >= $1
        ORDER BY queue_position LIMIT 1), now()
"""  # noqa: S608


async def first(connection: Connection, since: datetime, generators: Sequence[str] | None = None) -> First:
    """Find the first stream in line of these generators, or of all."""
    if generators is None:
        row = await connection.fetchrow(_FIRST_OF_ALL, since)
    else:
        row = await connection.fetchrow(_FIRST, generators, since)
    assert row is not None
    return First(*row)


def line_of(generator: str, offers: Collection[frozenset[str]]) -> tuple[str, ...]:
    """Return the generators of a generator's line. `offers`: the generators of each worker."""
    sets = [offer for offer in offers if generator in offer]
    return tuple(sorted(frozenset.intersection(*sets))) if sets else (generator,)


class Offers:
    """What workers offer, as it was known a moment ago."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(factor=20, least_seconds=WORKERS_SECONDS, clock=clock)
        self._known: Collection[frozenset[str]] = ()

    def line_of(self, generator: str) -> tuple[str, ...]:
        """Return the generators of a generator's line."""
        return line_of(generator, self._known)

    async def update(self, connection: Connection) -> None:
        """Read the workers' rows, if that is due."""
        if self._pace.due:
            with self._pace.timed():
                self._known = await worker_rows.offers(connection)


class QueueLines:
    """The lines into which a pod puts streams. Creates use what it knows; its own task keeps that up to date."""

    def __init__(self) -> None:
        self._offers = Offers()
        self._watermarks: OrderedDict[tuple[str, ...], QueueWatermark] = OrderedDict()

    def of(self, generator: str) -> Line:
        """Return a generator's line. The first create of a line looks for its first stream from the index's start."""
        generators = self._offers.line_of(generator)
        if generators not in self._watermarks:
            self._watermarks[generators] = QueueWatermark(late_check_seconds=SWEEP_SECONDS)
        self._watermarks.move_to_end(generators)
        while len(self._watermarks) > MOST_LINES:
            self._watermarks.popitem(last=False)
        return Line(generators, self._watermarks[generators].since)

    def forget(self) -> None:
        """Begin at the start of the index again, since another server may have taken over."""
        for watermark in self._watermarks.values():
            watermark.forget()

    async def update(self, connection: Connection) -> None:
        """Read what workers offer, and find the first stream of each line."""
        await self._offers.update(connection)
        for generators, watermark in list(self._watermarks.items()):
            await watermark.update(lambda since, names=generators: first(connection, since, names))  # type: ignore[misc]
