"""Sends hints without knowing the key: what workers sent, with other text, with other ends, and later."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final, Protocol
from uuid import UUID

from ..db import notifications
from ..db.notifications import CANCEL_CHANNEL, EVENTS_CHANNEL, QUEUE_CHANNEL
from ..db.postgres import Connection
from ..outcome import Outcome

PAUSE_SECONDS: Final = 0.02
KEPT: Final = 100


class Messenger(Protocol):
    """A stranger's access to what carries the hints."""

    async def hear(self, on_payload: Callable[[str], None]) -> None:
        """Call back for each payload about events that others send."""

    async def send(self, channel: str, payload: str) -> None:
        """Send a payload."""


class NotifyMessenger:
    """LISTEN and NOTIFY, over a connection of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def hear(self, on_payload: Callable[[str], None]) -> None:
        """Listen."""

        def hear(_connection: Any, pid: int, _channel: str, payload: Any) -> None:
            if pid != self._connection.get_server_pid():
                on_payload(str(payload))

        await self._connection.add_listener(EVENTS_CHANNEL, hear)

    async def send(self, channel: str, payload: str) -> None:
        """Notify."""
        await notifications.notify(self._connection, channel, [payload])


class Forger:
    """Listens to what workers send, and sends forged copies."""

    def __init__(self, messenger: Messenger, random: Random) -> None:
        self._messenger = messenger
        self._random = random
        self._received: deque[str] = deque(maxlen=KEPT)

    async def run(self, seconds: float) -> int:
        """Send forgeries for this long; return how many were sent."""
        loop, sent = asyncio.get_running_loop(), 0
        until = loop.time() + seconds
        await self._messenger.hear(self._received.append)
        while loop.time() < until:
            await asyncio.sleep(PAUSE_SECONDS)
            if self._received:
                for channel, payload in self._forgeries(self._random.choice(self._received)):
                    await self._messenger.send(channel, payload)
                    sent += 1
        return sent

    def _forgeries(self, genuine: str) -> Iterator[tuple[str, str]]:
        """Yield forged text and ends for likely next positions, an erasure, a cancel, and the same payload again."""
        stream_id = UUID(genuine[:32])
        trailer = notifications.trailer(genuine)
        for record in notifications.unpack(genuine, [stream_id.hex]):
            position = record.last_seq + self._random.choice((1, 1, 1, 2, 3))
            line = Outcome.completed("stop").encode().decode()
            yield EVENTS_CHANNEL, notifications.record(record.stream, position, position, "t", line) + trailer
            if record.events:
                forged = record.events.replace(" ", "x")
                last = position + record.events.count("\n")
                yield EVENTS_CHANNEL, notifications.record(record.stream, position, last, "e", forged) + trailer
        yield EVENTS_CHANNEL, notifications.erasure_payload(stream_id)
        yield CANCEL_CHANNEL, str(stream_id)
        yield QUEUE_CHANNEL, ""
        yield self._random.choice((EVENTS_CHANNEL, CANCEL_CHANNEL)), genuine
