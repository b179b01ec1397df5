"""Has generators stop what they began at a provider, for streams that have ended early: calls of `stop`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from ..db import stop_calls
from ..db.postgres import Connection
from ..db.stop_calls import StopCall
from ..generators import Generator, stopper
from ..observability import log_context
from .durable_calls import FORGET_SECONDS, LEASE_SECONDS, DurableCalls

logger = logging.getLogger(__name__)

CALL_SECONDS: Final = 30.0


class Stopping(DurableCalls[StopCall, float]):
    """The calls of one worker, for the generators that have a `stop`. A failed one keeps the seconds until its due."""

    def __init__(self, generators: Mapping[str, Generator], *, on_result: Callable[[], None]) -> None:
        super().__init__(left=0.0, first_pause_seconds=2.0, longest_pause_seconds=600.0, on_result=on_result)
        found = {name: stopper(generator) for name, generator in generators.items()}
        self._stops = {name: stop for name, stop in found.items() if stop is not None}

    @property
    def enabled(self) -> bool:
        """Whether this worker makes calls."""
        return bool(self._stops)

    def hurry(self, generator: str) -> None:
        """Look for calls at once: a stream of this generator has ended here."""
        if generator in self._stops:
            self._pace.hurry()

    async def _take(self, connection: Connection, most: int) -> Sequence[StopCall]:
        return await stop_calls.take(connection, list(self._stops), most, LEASE_SECONDS)

    async def _make(self, call: StopCall) -> None:
        async with asyncio.timeout(CALL_SECONDS):
            await self._stops[call.generator](call.state)

    def _postponed(self, call: StopCall, error: Exception, pause_seconds: float) -> float:
        logger.warning(
            "The generator %r could not stop the stream %s. Another try follows in %.0f s.",
            call.generator,
            call.stream_id,
            pause_seconds,
            exc_info=error,
            extra=log_context.fields_of(call.stream_id),
        )
        return pause_seconds

    def _note_given_up(self, call: StopCall, error: Exception) -> None:
        logger.error(
            "The generator %r could not stop the stream %s for %.0f hours, and is not asked again. Stop it at the "
            "provider, which may still be generating.",
            call.generator,
            call.stream_id,
            call.age_seconds / 3600,
            exc_info=error,
            extra=log_context.fields_of(call.stream_id),
        )

    async def _delete(self, connection: Connection, finished: Collection[UUID]) -> None:
        await stop_calls.delete(connection, finished)

    async def _postpone(self, connection: Connection, failed: Mapping[UUID, float]) -> None:
        await stop_calls.postpone(connection, failed)

    async def _forget_old(self, connection: Connection) -> None:
        if not self._stops:
            return
        for stream_id, generator in await stop_calls.delete_older(connection, FORGET_SECONDS):
            logger.error(
                "No worker offers the generator %r, so the stream %s was never stopped at its provider. Stop it there.",
                generator,
                stream_id,
                extra=log_context.fields_of(stream_id),
            )
