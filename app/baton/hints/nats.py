"""A NATS server: each hint about events has the subject of its stream, and pods subscribe to what they follow.

So a pod gets what its clients need, and not what all workers write; and Postgres, which wakes every listener for every
notification, has nothing to do with it. NATS delivers at most once, like NOTIFY, and keeps nothing.

Subjects begin with the installation's random id and the database's number, which no other database has (see
`db.database_identity`): `baton.<id>.<number>.baton_queue`, `baton.<id>.<number>.baton_events.<stream>`. Installations
that share a server do not hear each other. Anyone who can publish there can forge: a forged payload has no valid
signature, so it makes pods read the log, as with NOTIFY.

Each connection serves until it is lost, and another one follows with all subscriptions. One task subscribes and
unsubscribes, in the order of the calls; the rest is the client library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import nats.errors
from nats.aio.subscription import Subscription

from ..backoff import Backoff, require_not_cancelled, retry
from ..db import database_identity
from ..db.notifications import EVENTS_CHANNEL
from ..db.postgres import Connection, connect
from .nats_client import FAILURES, ROOT, NatsClient, close, connected
from .transport import HintState, Message, Owner

logger = logging.getLogger(__name__)

# How long a client that is about to follow a stream waits until the server sends its hints.
BEGIN_SECONDS: Final = 1
# What cannot be handed to the connection in this time is dropped.
SEND_SECONDS: Final = 5
# Between two logs of the same trouble.
LOG_SECONDS: Final = 10


class NatsListening:
    """A subscription to one stream, which outlives connections."""

    __slots__ = ("_transport", "arrives", "over", "stream", "subscription")

    def __init__(self, transport: NatsTransport, stream: str) -> None:
        self._transport = transport
        self.stream = stream
        self.subscription: Subscription | None = None
        self.arrives = asyncio.Event()
        self.over = False

    async def begin(self) -> None:
        """Return once the server has the subscription, or after a moment: the first poll finds what was missed."""
        if self._transport.state is HintState.LISTENING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_SECONDS):
                    await self.arrives.wait()

    def end(self) -> None:
        """Unsubscribe soon."""
        self.over = True
        self._transport.forget(self)


class NatsTransport:
    """Subscribes to its owner's channels and to the streams that it listens to, and publishes."""

    by_stream = True

    def __init__(
        self,
        dsn: str,
        servers: Sequence[str],
        owner: Owner,
        *,
        credentials: Path | None = None,
        probe_seconds: float = 5,
        connect_seconds: float = 10,
        name: str = "baton",
    ) -> None:
        self._dsn = dsn
        self._servers = servers
        self._credentials = credentials
        self._owner = owner
        self._probe_seconds = probe_seconds
        self._connect_seconds = connect_seconds
        self._name = name
        self._prefix: str | None = None
        self._client: NatsClient | None = None
        self._wanted: dict[str, NatsListening] = {}
        self._new: list[NatsListening] = []
        self._unneeded: list[Subscription] = []
        self._changed = asyncio.Event()
        self._log_at = 0.0
        self.state = HintState.CONNECTING

    def listen(self, stream: str) -> NatsListening:
        """Subscribe to a stream, now and over each later connection."""
        listening = self._wanted[stream] = NatsListening(self, stream)
        self._new.append(listening)
        self._changed.set()
        return listening

    def forget(self, listening: NatsListening) -> None:
        """Unsubscribe from what is over."""
        del self._wanted[listening.stream]
        if listening.subscription is not None:
            self._unneeded.append(listening.subscription)
            self._changed.set()

    async def send(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Publish messages. Without a server they are dropped."""
        client, prefix = self._client, self._prefix
        if client is None or prefix is None:
            return
        try:
            async with asyncio.timeout(SEND_SECONDS):
                for channel, payload, stream in messages:
                    await client.publish(_subject(prefix, channel, stream), payload.encode())
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await self._note(error)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # the library swallows it while it waits

    async def run(self) -> None:
        """Listen, over a new connection after every failure."""
        await retry(self._serve, errors=FAILURES, on_failure=self._on_failure)

    def _on_failure(self, error: Exception) -> None:
        logger.warning("The connection to NATS is lost; polling until it is back: %r", error)
        self._set(HintState.DEGRADED)

    async def _serve(self, backoff: Backoff) -> None:
        if self._prefix is None:
            self._prefix = await self._read_prefix()
        client = await connected(
            self._servers,
            self._credentials,
            name=self._name,
            timeout_seconds=self._connect_seconds,
            ping_seconds=self._probe_seconds,
            on_error=self._note,
            on_close=self._on_close,
        )
        try:
            require_not_cancelled()
            for channel, handler in self._owner.handlers.items():
                if channel != EVENTS_CHANNEL:
                    await self._subscribe(client, _subject(self._prefix, channel), handler)
            self._unneeded = []
            self._new = list(self._wanted.values())
            await self._update(client, self._prefix)
            self._client = client
            backoff.reset()
            self._set(HintState.LISTENING)
            self._owner.on_gap()
            await self._keep_subscribed(client, self._prefix)
        finally:
            self._client = None
            for listening in self._wanted.values():
                listening.subscription = None
                listening.arrives.clear()
            await close(client)

    async def _keep_subscribed(self, client: NatsClient, prefix: str) -> None:
        """Subscribe and unsubscribe as streams come and go; raise once the connection is lost."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if client.is_closed:
                raise ConnectionError("the server closed it, or does not answer")
            await self._update(client, prefix)

    async def _update(self, client: NatsClient, prefix: str) -> None:
        """Send what has changed, and wait until the server has it."""
        unneeded, self._unneeded = self._unneeded, []
        new, self._new = self._new, []
        for subscription in unneeded:
            await _unsubscribe(client, subscription)
        for listening in new:
            if not listening.over:
                subject = _subject(prefix, EVENTS_CHANNEL, listening.stream)
                handler = self._owner.handlers[EVENTS_CHANNEL]
                listening.subscription = await self._subscribe(client, subject, handler)
        await client.flush(max(1, int(self._connect_seconds)))
        for listening in new:
            listening.arrives.set()
            if listening.over and listening.subscription is not None:
                await _unsubscribe(client, listening.subscription)  # it ended while it was made

    async def _subscribe(self, client: NatsClient, subject: str, handler: Callable[[str], None]) -> Subscription:
        client.handlers[subject.encode()] = handler
        return await client.subscribe(subject)

    async def _read_prefix(self) -> str:
        connection = await connect(self._dsn, timeout_seconds=self._connect_seconds, name=self._name, prepare=False)
        try:
            return subject_prefix(await database_identity.read(connection))
        finally:
            connection.terminate()

    async def _on_close(self) -> None:
        self._changed.set()

    async def _note(self, error: Exception) -> None:
        """Log an error, but not each of many: one for each message that a slow process drops, for example."""
        if isinstance(error, nats.errors.StaleConnectionError):
            return  # the connection is lost, which is logged then
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + LOG_SECONDS
            logger.warning("Trouble with NATS: %r", error)

    def _set(self, state: HintState) -> None:
        self.state = state
        self._owner.on_state(state)


async def _unsubscribe(client: NatsClient, subscription: Subscription) -> None:
    client.handlers.pop(subscription.subject.encode(), None)
    await subscription.unsubscribe()


def subject_prefix(identity: database_identity.DatabaseIdentity) -> str:
    """Return how the subjects of a database begin."""
    return f"{ROOT}.{identity.installation.hex}.{identity.number}"


def _subject(prefix: str, channel: str, stream: str = "") -> str:
    return f"{prefix}.{channel}.{stream}" if stream else f"{prefix}.{channel}"
