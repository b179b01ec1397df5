"""Keeps the results of a stream's steps in the database, under the fence of the claim that runs the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..db import steps
from ..db.fence import Fence
from ..generators.steps import StepKey
from .records import Records


class StepRecords:
    """The store of one run (see `generators.steps.StepStore`). `on_lost` is called if the claim has lost its stream.

    The first run of a stream reads nothing, since there is nothing. A later one reads all results once, at its first
    step.
    """

    def __init__(self, records: Records, fence: Fence, *, first_run: bool, on_lost: Callable[[], None]) -> None:
        self._records = records
        self._fence = fence
        self._on_lost = on_lost
        self._found: dict[steps.Key, bytes] | None = {} if first_run else None
        self._reading = asyncio.Lock()

    async def find(self, key: StepKey) -> bytes | None:
        """Return the result that a former run kept, and forget it here: each key is asked for once in a run."""
        async with self._reading:
            if self._found is None:
                self._found = await self._records.run(lambda connection: steps.read(connection, self._fence.stream_id))
        return self._found.pop(key, None)

    async def keep(self, key: StepKey, result: bytes) -> bytes:
        """Keep a result, however long the database is away; return what is kept.

        If another worker has the stream, or it has ended, this raises `CancelledError`: the run is abandoned.
        """
        kept = await self._records.run(lambda connection: steps.keep(connection, self._fence, key, result))
        if kept is None:
            self._on_lost()
            raise asyncio.CancelledError(f"The result of the step {key.name!r} was refused: the stream is lost.")
        return kept

    def restart(self) -> None:
        """Read the results again, since this run has kept some: its generator is called again."""
        self._found = None
