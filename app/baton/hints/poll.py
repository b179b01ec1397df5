"""No messenger: pods and workers look at the database at a short interval, and never LISTEN or NOTIFY.

For databases behind a pooler or a proxy that loses LISTEN. An event arrives up to one interval later, and each process
asks a few queries in each interval, however little happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..db.postgres import Connection
from .transport import EVERYTHING, HintState, Listening, Message, Owner


class PollTransport:
    """Tells its owner at each interval that hints may have been missed."""

    by_stream = False

    def __init__(self, owner: Owner, *, interval_seconds: float) -> None:
        self._owner = owner
        self._interval_seconds = interval_seconds
        self.state = HintState.CONNECTING

    def listen(self, stream: str) -> Listening:
        """Do nothing: there are no hints."""
        return EVERYTHING

    async def send(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Do nothing: nobody listens."""

    async def run(self) -> None:
        """Ask for a look at the database at each interval, until cancelled."""
        self.state = HintState.POLLING
        self._owner.on_state(self.state)
        while True:
            self._owner.on_gap()
            await asyncio.sleep(self._interval_seconds)
