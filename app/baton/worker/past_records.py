"""What earlier runs of a stream left, read over a worker's connection."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from . import past
from .past import Past
from .records import Records


class PastRecords:
    """The past of one stream (see `past.PastSource`)."""

    def __init__(self, records: Records, stream_id: UUID) -> None:
        self._records = records
        self._stream_id = stream_id

    async def read(self) -> Past:
        """Read the events and the newest state."""
        return await self._records.run(lambda connection: past.read(connection, self._stream_id))

    async def state(self) -> Any:
        """Read the newest state."""
        return await self._records.run(lambda connection: past.state(connection, self._stream_id))
