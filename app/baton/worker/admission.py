"""Admission: a worker puts held streams of its generators into line when they are due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..db import queue_lines, stream_admission
from ..db.postgres import Connection
from ..db.queue_lines import Offers
from ..db.queue_watermark import QueueWatermark
from ..db.stream_admission import MOST, Admitting
from ..pace import Pace

# A stream that starts later is admitted about this long after its time, and so is one whose notification was lost.
ADMIT_SECONDS: Final = 0.5
# A stream that ended here makes room at once. What ended elsewhere, in SQL for example, is found by a sweep.
SWEEP_SECONDS: Final = 1.0
# Without a limit nothing is parked, unless there was one before.
RARE_SWEEP_SECONDS: Final = 10.0


class Admission:
    """Admits streams for one worker. `watermark` is the one of the streams that it can serve."""

    def __init__(self, generators: Sequence[str], most_running: int | None, watermark: QueueWatermark) -> None:
        self._generators = generators
        self._most_running = most_running
        self._watermark = watermark
        self._offers = Offers()
        # The reads have no watermark: they are longer while an old snapshot is open.
        self._pace = Pace(factor=20, least_seconds=ADMIT_SECONDS)
        self._hurried_pace = Pace(factor=5)
        sweep_seconds = RARE_SWEEP_SECONDS if most_running is None else SWEEP_SECONDS
        self._sweep_pace = Pace(factor=20, least_seconds=sweep_seconds)
        self._hurried = False
        self._freed: set[str] = set()

    def hurry(self) -> None:
        """Look at once: a stream may be due."""
        self._hurried = True

    def note_freed(self, tenant: str) -> None:
        """Note that a tenant's stream no longer runs here."""
        if self._most_running is not None:
            self._freed.add(tenant)
            self._hurried = True

    async def work(self, connection: Connection) -> bool:
        """Admit what is due, if it is time to look; return whether more may be due."""
        if not (self._pace.due or (self._hurried and self._hurried_pace.due)):
            return False
        with self._pace.timed(), self._hurried_pace.timed():
            self._hurried = False
            if self._sweep_pace.due:
                with self._sweep_pace.timed():
                    await self._sweep(connection)
            freed, self._freed = self._freed, set()
            is_due, with_parked = await stream_admission.look(connection, self._generators, freed)
            if is_due or with_parked:
                how = await self._how(connection)
                self._hurried = await stream_admission.admit(connection, how, with_parked) >= MOST
        return self._hurried

    async def _how(self, connection: Connection) -> Admitting:
        await self._offers.update(connection)
        if self._watermark.due:
            await self._watermark.update(lambda since: queue_lines.first(connection, since, self._generators))
        return Admitting(self._generators, self._offers.line_of, self._watermark.since, self._most_running)

    async def _sweep(self, connection: Connection) -> None:
        """Find parked streams whose tenant may have room."""
        if self._most_running is None:
            await stream_admission.release_parked(connection, self._generators)
        else:
            self._freed.update(await stream_admission.parked_tenants(connection, self._generators))
