"""The heartbeat of a worker: raises its counter in the database, in the side thread and over a connection of its own.

So a generator that blocks the worker's event loop costs its neighbors no lease. The heartbeat raises the counter and
nothing else. Each one is handed to the worker's loop as a `Beat`; registering, upkeep and claims happen there. Before
each one the history of the database is checked over the same connection, since raising a counter could hide that it
has fallen.

Once the worker's loop hangs for longer than `BATON_WORKER_HANG_SECONDS`, no heartbeat is sent: a worker that never
runs again must lose its streams. If it does run again, heartbeats continue, and find the row or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from ..backoff import Backoff
from ..db import worker_rows
from ..db.history import HistoryWatch
from ..db.postgres import Connection, Place, connect
from ..db.reconnecting import keep_connected
from ..settings import Settings
from .lease_history import Heartbeat
from .side_thread import Owner


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of the worker `worker_id`. `place` is that of its row until the next one; None if there is no row.

    `history` is that of the database just before. `connection` is the number of the connection.
    """

    worker_id: UUID | None
    place: Place | None
    history: str
    heartbeat: Heartbeat
    connection: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a heartbeat says of its worker: see `worker_rows.heartbeat`."""

    worker_id: UUID | None
    tokens: int
    silences: Mapping[UUID, float]


class Heart:
    """Beats until its `run()` is cancelled.

    `report` and `hangs` are called in the side thread. All other callbacks are called on the worker's loop.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        report: Callable[[], Report],
        hangs: Callable[[], bool],
        on_beat: Callable[[Beat], None],
        on_failure: Callable[[Exception], None],
        on_new_history: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._report = report
        self._hangs = hangs
        self._on_beat = on_beat
        self._on_failure = on_failure
        self._on_new_history = on_new_history
        self._wanted = 0  # the number of the newest connection that the worker's loop has asked for
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def renew(self, number: int) -> None:
        """Open a new connection with this number, above 0, and beat at once. For the worker's loop."""
        self._wanted = number
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._hurry.set)

    async def run(self, owner: Owner) -> None:
        """Beat until cancelled, over a new connection after each failure."""
        # Before the first look at `_wanted`: so `renew` wakes this loop, or has set the number before.
        self._loop = asyncio.get_running_loop()
        watch = HistoryWatch(lambda: owner.call(self._on_new_history))
        number = 0

        async def connecting() -> Connection:
            nonlocal number
            while not self._wanted:
                await self._hurry.wait()
                self._hurry.clear()
            number = self._wanted
            return await connect_control(self._settings, name="baton worker heartbeat")

        def on_failure(error: Exception) -> None:
            if not isinstance(error, _Renewed):
                owner.call(self._on_failure, error)

        await keep_connected(
            connecting,
            lambda connection, backoff: self._serve(connection, backoff, owner, watch, number),
            on_failure=on_failure,
            backoff=Backoff(cap_seconds=self._settings.lease_seconds / 4),
        )

    async def _serve(
        self, connection: Connection, backoff: Backoff, owner: Owner, watch: HistoryWatch, number: int
    ) -> None:
        while True:
            beat_at = time.monotonic() + self._settings.worker_heartbeat_seconds
            if not self._hangs():
                owner.call(self._on_beat, await self._beat(connection, watch, number))
                backoff.reset()
            while self._wanted == number and (seconds := beat_at - time.monotonic()) > 0:
                await self._sleep(seconds)
            if self._wanted != number:
                raise _Renewed

    async def _beat(self, connection: Connection, watch: HistoryWatch, number: int) -> Beat:
        counters = await watch.check(connection)
        heartbeat = Heartbeat(time.monotonic(), counters)
        report = self._report()
        place = None
        if report.worker_id is not None:
            place = await worker_rows.heartbeat(connection, report.worker_id, report.tokens, report.silences)
        return Beat(report.worker_id, place, watch.history or "", heartbeat, number)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, unless another connection is wanted."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()


class _Renewed(ConnectionError):
    """The worker's loop has asked for a new connection."""


async def connect_control(settings: Settings, *, name: str) -> Connection:
    """Open a connection on which a worker's lease depends.

    After an outage the other workers watch again as soon as they are back. There are two such connections, one opened
    after the other. So finding that one is dead, or hangs while it is opened, must take less than half a lease.
    """
    return await connect(
        settings.dsn, timeout_seconds=max(1.0, settings.lease_seconds / 3), name=name, prepare=settings.prepare
    )
