"""What a pod or a worker has of the hints of one database: it sends and listens, whatever carries them."""

from __future__ import annotations

import asyncio

from .sender import Sendable, Sender
from .transport import HintState, Listening, Transport


class Hints:
    """A transport, and a sender unless nobody listens. Its owner awaits `run()`."""

    def __init__(self, transport: Transport, sender: Sender | None) -> None:
        self._transport = transport
        self._sender = sender

    @property
    def state(self) -> HintState:
        """What the transport is doing."""
        return self._transport.state

    def send(self, *hints: Sendable) -> None:
        """Send hints soon, after the commit of what they are about. Any of them may be lost."""
        if self._sender is not None:
            self._sender.send(hints)

    def listen(self, stream: str) -> Listening:
        """Listen to the hints about a stream's events. The stream is its id in hexadecimal."""
        return self._transport.listen(stream)

    def renew_keys(self) -> None:
        """Read the signing keys again: the database may have gone back in time."""
        if self._sender is not None:
            self._sender.renew_keys()

    async def settle(self, timeout_seconds: float) -> None:
        """Wait until all hints were sent or dropped, but not for longer."""
        if self._sender is not None:
            await self._sender.settle(timeout_seconds)

    async def run(self) -> None:
        """Listen and send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._transport.run())
            if self._sender is not None:
                tasks.create_task(self._sender.run())
