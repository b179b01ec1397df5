"""A NATS server: each hint about events has the subject of its stream, and pods subscribe to what they follow.

So a pod gets what its clients need, and not what all workers write; and Postgres, which wakes every listener for every
notification, has nothing to do with it. NATS delivers at most once, like NOTIFY, and keeps nothing.

Subjects begin with the installation's random id and the database's number, which no other database has (see
`db.database_identity`): `baton.<id>.<number>.baton_queue`, `baton.<id>.<number>.baton_events.<stream>`. Installations
that share a server do not hear each other. Whoever can publish there can forge: a forged payload has no valid
signature, so it makes pods read the log, as with NOTIFY.

Each connection serves until it is lost, and another one follows with all subscriptions. One task subscribes and
unsubscribes, in the order of the calls; the rest is the client library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from ..backoff import Backoff, retry
from ..db import database_identity, reconnecting
from ..db.notifications import EVENTS_CHANNEL, MAX_BYTES
from ..db.postgres import Connection, connect
from .transport import HintState, Message, Owner

logger = logging.getLogger(__name__)

# How all subjects begin.
ROOT: Final = "baton"
# How long a client that is about to follow a stream waits until the server sends its hints.
BEGIN_SECONDS: Final = 1
# What cannot be handed to the connection in this time is dropped.
SEND_SECONDS: Final = 5
CLOSE_SECONDS: Final = 1
# Between two logs of the same trouble.
LOG_SECONDS: Final = 10

FAILURES: Final = (*reconnecting.FAILURES, nats.errors.Error, TimeoutError, OSError)


class NatsClient(Client):
    """The library's client with two changes, each of a method that it calls itself.

    It sends nothing in plain text to a server that was given as `tls://`. And it calls the handlers of subjects
    directly: the library has a queue and a task for each subscription, which cost half of a pod's time for a message.
    """

    def __init__(self, *, secure: bool) -> None:
        super().__init__()
        self._secure = secure
        self.handlers: dict[bytes, Callable[[str], None]] = {}

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # The library upgrades the connection only if the server asks, and anyone in between can remove that.
        if self._secure and initial_connection and not info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        await super()._process_info(info, initial_connection=initial_connection)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self.handlers.get(subject)
        # Postgres bounds its payloads too. Nobody honest sends a longer one.
        if handler is not None and len(data) <= MAX_BYTES:
            handler(data.decode(errors="replace"))


async def connected(
    servers: Sequence[str],
    credentials: Path | None,
    *,
    name: str,
    timeout_seconds: float,
    ping_seconds: float = 5,
    on_error: Callable[[Exception], Awaitable[None]],
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> NatsClient:
    """Return a connection to one of the servers. It is not replaced when it is lost.

    Raises:
        nats.errors.Error, OSError, TimeoutError: none answers, or it refuses the credentials.
    """
    client = NatsClient(secure=any(server.startswith("tls:") for server in servers))
    refusals: list[Exception] = []

    async def note(error: Exception) -> None:
        if client.is_connected:
            await on_error(error)
        else:
            refusals.append(error)

    try:
        async with asyncio.timeout(timeout_seconds):
            await client.connect(
                list(servers),
                name=name,
                user_credentials=None if credentials is None else str(credentials),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, int(timeout_seconds)),
                ping_interval=max(1, int(ping_seconds)),
                max_outstanding_pings=1,
                skip_subject_validation=True,
                error_cb=note,
                closed_cb=on_close,
            )
    except nats.errors.NoServersError:
        await close(client)
        raise refusals[-1] if refusals else nats.errors.NoServersError from None
    except BaseException:
        await close(client)
        raise
    return client


async def close(client: NatsClient) -> None:
    """Close a connection, also one to a server that does not read."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


async def deliver(servers: Sequence[str], credentials: Path | None, *, timeout_seconds: float) -> float:
    """Send a message over one connection, and wait until another receives it; return after how many seconds.

    Raises:
        any of `FAILURES`: it does not arrive.
    """
    problems: list[Exception] = []

    async def note(error: Exception) -> None:
        problems.append(error)

    subject, heard = f"{ROOT}.check.{secrets.token_hex(8)}", asyncio.Event()

    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for name in ("baton check", "baton check listen"):
            client = await connected(servers, credentials, name=name, timeout_seconds=timeout_seconds, on_error=note)
            stack.push_async_callback(close, client)
            ends.append(client)
        ends[1].handlers[subject.encode()] = lambda _payload: heard.set()
        await ends[1].subscribe(subject)
        await ends[1].flush(max(1, int(timeout_seconds)))
        sent_at = time.monotonic()
        await ends[0].publish(subject)
        try:
            async with asyncio.timeout(timeout_seconds):
                await heard.wait()
        except TimeoutError:
            raise problems[-1] if problems else TimeoutError from None
        return time.monotonic() - sent_at


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
