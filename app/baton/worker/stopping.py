"""Has generators stop what they began at a provider, for streams that have ended early.

A call of `stop` takes as long as the provider does, so each is a task of its own. The worker's control loop takes the
calls and writes down their results, over its own connection: `work` never waits for a provider. All of it runs on the
worker's event loop.

A call whose worker dies is taken by another one after the lease. A call that fails is repeated with growing pauses, by
any worker, and given up after a day: its error is in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

from ..backoff import Backoff
from ..db import stop_calls
from ..db.postgres import Connection
from ..db.stop_calls import StopCall
from ..generators import Generator, stopper
from ..observability import log_context
from ..pace import Pace

logger = logging.getLogger(__name__)

# How often to look for calls that other processes have left. An end in this worker is followed at once.
LOOK_SECONDS: Final = 1.0
MOST_AT_ONCE: Final = 32
CALL_SECONDS: Final = 30.0
LEASE_SECONDS: Final = 60.0  # longer than a call, and the time until its result is written

_FIRST_PAUSE_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 600.0
_GIVE_UP_SECONDS: Final = 24 * 3600.0
# Calls for a generator that no worker offers.
_FORGET_SECONDS: Final = 7 * 24 * 3600.0
_FORGET_PACE_SECONDS: Final = 3600.0


class Stopping:
    """The calls of one worker. `on_result` is called when `work` has a result to write."""

    def __init__(self, generators: Mapping[str, Generator], *, on_result: Callable[[], None]) -> None:
        found = {name: stopper(generator) for name, generator in generators.items()}
        self._stops = {name: stop for name, stop in found.items() if stop is not None}
        self._on_result = on_result
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._made: set[UUID] = set()  # or given up
        self._failed: dict[UUID, float] = {}  # in how many seconds to try again
        # A scan takes longer while an old snapshot is open.
        self._pace = Pace(factor=20, least_seconds=LOOK_SECONDS)
        self._forget_pace = Pace(factor=20, least_seconds=_FORGET_PACE_SECONDS)

    @property
    def running(self) -> int:
        """How many calls are being made."""
        return len(self._running)

    def hurry(self, generator: str) -> None:
        """Look for calls at once: a stream of this generator has ended here."""
        if generator in self._stops:
            self._pace.hurry()

    async def work(self, connection: Connection) -> None:
        """Write the results of calls, and begin the ones that are due."""
        if not self._stops:
            return
        await self._write_results(connection)
        free = MOST_AT_ONCE - len(self._running)
        if free and self._pace.due:
            with self._pace.timed():
                calls = await stop_calls.take(connection, list(self._stops), free, LEASE_SECONDS)
            for call in calls:
                self._begin(call)
        if self._forget_pace.due:
            with self._forget_pace.timed():
                await self._forget_old(connection)

    async def leave(self, connection: Connection, timeout_seconds: float) -> None:
        """Make the calls of the streams that have just ended here, and leave to other workers what takes longer."""
        self._pace.hurry()
        await self.work(connection)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_seconds)
        left = dict.fromkeys(self._running, 0.0)
        await self.aclose()  # a call that returns meanwhile is repeated, which does no harm
        self._failed |= left
        await self._write_results(connection)

    async def aclose(self) -> None:
        """Cancel the calls that are being made."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, call: StopCall) -> None:
        # A call that outlasted its lease is taken again by this worker.
        if call.stream_id in self._running:
            return
        task = asyncio.create_task(self._make(call), name=f"stop {call.stream_id}")
        self._running[call.stream_id] = task
        task.add_done_callback(lambda _task: self._running.pop(call.stream_id, None))

    async def _make(self, call: StopCall) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._stops[call.generator](call.state)
        except Exception as error:  # noqa: BLE001 - `_note_failure` logs it
            self._note_failure(call, error)
        else:
            self._made.add(call.stream_id)
        self._on_result()

    def _note_failure(self, call: StopCall, error: Exception) -> None:
        fields = log_context.fields_of(call.stream_id)
        if call.age_seconds < _GIVE_UP_SECONDS:
            pause = self._failed[call.stream_id] = _pause_seconds(call.tries)
            logger.warning(
                "The generator %r could not stop the stream %s. Another try follows in %.0f s.",
                call.generator,
                call.stream_id,
                pause,
                exc_info=error,
                extra=fields,
            )
            return
        self._made.add(call.stream_id)
        logger.error(
            "The generator %r could not stop the stream %s for %.0f hours, and is not asked again. Stop it at the "
            "provider, which may still be generating.",
            call.generator,
            call.stream_id,
            call.age_seconds / 3600,
            exc_info=error,
            extra=fields,
        )

    async def _write_results(self, connection: Connection) -> None:
        """Write the results. They are kept if this fails, and written by the next try."""
        made, failed = set(self._made), dict(self._failed)
        if made:
            await stop_calls.delete(connection, made)
            self._made -= made
        if failed:
            await stop_calls.postpone(connection, failed)
            self._failed = {key: value for key, value in self._failed.items() if key not in failed}

    async def _forget_old(self, connection: Connection) -> None:
        for stream_id, generator in await stop_calls.delete_older(connection, _FORGET_SECONDS):
            logger.error(
                "No worker offers the generator %r, so the stream %s was never stopped at its provider. Stop it there.",
                generator,
                stream_id,
                extra=log_context.fields_of(stream_id),
            )


def _pause_seconds(tries: int) -> float:
    """Return how long to wait after a call has failed this often."""
    first_seconds = _FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 20)
    return Backoff(first_seconds=first_seconds, cap_seconds=_LONGEST_PAUSE_SECONDS).next_seconds()
