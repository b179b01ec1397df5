"""A stranger at a NATS server: hears the hints of a database, and sends whatever it likes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..db.database_identity import DatabaseIdentity
from ..db.notifications import EVENTS_CHANNEL
from ..hints.nats import subject_prefix


class NatsMessenger:
    """A connection of its own, which knows how the subjects of the database begin."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    async def hear(self, on_payload: Callable[[str], None]) -> None:
        """Subscribe to the events of all streams."""

        async def hear(message: Msg) -> None:
            on_payload(message.data.decode(errors="replace"))

        await self._client.subscribe(f"{self._prefix}.{EVENTS_CHANNEL}.*", cb=hear)

    async def send(self, channel: str, payload: str) -> None:
        """Publish. A payload about events begins with its stream."""
        subject = f"{self._prefix}.{channel}"
        await self._client.publish(
            f"{subject}.{payload[:32]}" if channel == EVENTS_CHANNEL else subject, payload.encode()
        )


@contextlib.asynccontextmanager
async def stranger(url: str, identity: DatabaseIdentity) -> AsyncIterator[NatsMessenger]:
    """Connect."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        yield NatsMessenger(client, subject_prefix(identity))
    finally:
        await client.close()
