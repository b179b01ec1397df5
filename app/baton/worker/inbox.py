"""The inputs of a worker's streams, from the database: each stream reads its own when it learns that there are some."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from ..db import inputs
from .records import Records


class InputRecords:
    """The inputs of one stream (see `generators.inbox.InputSource`).

    It learns of new ones by `note`, with how many the stream's row counts, and by `hint`, after a notification. It
    reads them only when the generator asks.
    """

    def __init__(self, records: Records, stream_id: UUID, count: int) -> None:
        self._records = records
        self._stream_id = stream_id
        self._count = count
        self._hinted = False
        self._changed = asyncio.Event()

    @property
    def any(self) -> bool:
        """Whether the stream may have got an input."""
        return self._count > 0 or self._hinted

    def note(self, count: int) -> None:
        """Note how many inputs the stream has got."""
        if count > self._count:
            self._count = count
            self._changed.set()

    def hint(self) -> None:
        """Note that the stream may have got another input."""
        self._hinted = True
        self._changed.set()

    def has(self, after: int) -> bool:
        """Whether there may be inputs after a number."""
        return self._hinted or self._count > after

    async def read(self, after: int) -> Sequence[Any]:
        """Read a page of inputs after a number."""
        hinted, self._hinted = self._hinted, False
        try:
            found = await self._records.run(lambda connection: inputs.read(connection, self._stream_id, after))
        except BaseException:
            self._hinted |= hinted  # the generator has cancelled this, and may ask again
            raise
        self._count = max(self._count, found[-1].n) if found else min(self._count, after)
        return [item.data for item in found]

    async def wait(self, after: int) -> None:
        """Wait until there may be inputs after a number."""
        while not self.has(after):
            self._changed.clear()
            await self._changed.wait()
