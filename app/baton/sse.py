"""Server-sent events (WHATWG HTML, 9.2): a small ASGI response that follows one subscriber, and the care of them all.

It is no Starlette response on purpose: all that is pending goes into one `send`, and nothing stands between this loop
and the server. A client's going is heard from `receive`. One timer serves all connections of a pod: it has comments
sent where it was silent for long, sends old connections away to reconnect before a platform would cut them, and cuts
those that accept nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import Receive, Scope, Send

from .dialects import native
from .errors import Unavailable
from .log import Batch
from .metrics import PodMetrics
from .relay import Relays, Subscriber

logger = logging.getLogger(__name__)

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
# Where a server tells how to cut a connection that accepts nothing: closing it would wait for its buffer to empty.
ABORT_EXTENSION: Final = "baton.abort"
_COMMENT: Final = b":\n\n"


class Connections:
    """The open event streams of a pod."""

    def __init__(self, *, heartbeat_seconds: float, write_timeout_seconds: float, max_age_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._max_age_seconds = max_age_seconds
        self._open: set[EventStream] = set()
        self._draining = False

    def add(self, connection: EventStream) -> None:
        """Take a connection into care; it is to leave at a random time shortly before the maximum age."""
        connection.leave_at = _now() + self._max_age_seconds * random.uniform(0.8, 1)
        self._open.add(connection)
        if self._draining:
            # It was let in before the drain began, and had to wait for the database.
            connection.leave()

    def remove(self, connection: EventStream) -> None:
        """Let go of a connection that has ended."""
        self._open.discard(connection)

    async def run(self) -> None:
        """Care for the connections until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._heartbeat_seconds / 10, self._write_timeout_seconds / 5))
            now = _now()
            for connection in list(self._open):
                self._look(connection, now)

    async def drain(self, seconds: float) -> None:
        """Send all clients away, spread over that time, and whoever comes meanwhile at once."""
        self._draining = True
        leaving = list(self._open)
        random.shuffle(leaving)
        for connection in leaving:
            connection.leave()
            await asyncio.sleep(seconds / len(leaving))

    def _look(self, connection: EventStream, now: float) -> None:
        if connection.sending_since is not None:
            if now - connection.sending_since > self._write_timeout_seconds:
                connection.abort()
        elif now >= connection.leave_at:
            connection.leave()
        elif now - connection.last_sent_at >= self._heartbeat_seconds * 0.9:
            connection.subscriber.tap()


class EventStream:
    """Sends a subscriber's events in the native dialect until the stream ends, the client leaves or the pod does."""

    def __init__(
        self,
        subscriber: Subscriber,
        relays: Relays,
        connections: Connections,
        metrics: PodMetrics,
        *,
        reconnect_milliseconds: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.subscriber = subscriber
        self.last_sent_at = _now()
        self.sending_since: float | None = None
        self.leave_at = 0.0
        self._relays = relays
        self._connections = connections
        self._metrics = metrics
        self._reconnect_milliseconds = reconnect_milliseconds
        self._headers = [*HEADERS, *headers]
        self._leaving = False
        self._disconnected = False
        self._abort: Callable[[], object] | None = None
        self._task: asyncio.Task[object] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        self._task = asyncio.current_task()
        self._abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
        watcher = asyncio.create_task(self._watch(receive))
        self._connections.add(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._follow(send)
        finally:
            self._connections.remove(self)
            self._relays.unsubscribe(self.subscriber)
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    def leave(self) -> None:
        """Have the client reconnect: here it is sent away after what it is getting just now."""
        self._leaving = True
        self.subscriber.tap()

    def abort(self) -> None:
        """Cut the connection. The client can resume."""
        logger.warning("A client of stream %s accepts nothing and is cut off.", self.subscriber.relay.stream_id)
        self._metrics.aborted += 1
        self._disconnected = True
        if self._abort is not None:
            self._abort()
        elif self._task is not None:
            self._task.cancel()

    async def _follow(self, send: Send) -> None:
        subscriber = self.subscriber
        pending = retry_block(self._reconnect_milliseconds)
        while not self._disconnected:
            pending += await self._take()
            if subscriber.finished or subscriber.relay.over:
                break
            if self._leaving:
                # Spread over a moment, so that the next pod does not get all at once.
                pending += retry_block(random.randint(0, self._reconnect_milliseconds))
                break
            if subscriber.tapped and not pending:
                pending = _COMMENT
            subscriber.tapped = False
            if pending:
                await self._send(send, pending)
                pending = b""
            await subscriber.wait()
        if subscriber.relay.damaged:
            pending += native.DAMAGED
        await self._send(send, pending, more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self.sending_since = _now()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self.sending_since = None
        self.last_sent_at = _now()

    async def _take(self) -> bytes:
        """Take and encode what is there. Where the log cannot be read just now, the client is asked to come back."""
        subscriber = self.subscriber
        cursor = subscriber.cursor
        try:
            batches = await subscriber.take()
        except Unavailable:
            self._leaving = True
            return b""
        if not batches:
            return b""
        body = b"".join([_encoded(batch, cursor) for batch in batches])
        self._metrics.events_sent += subscriber.cursor - cursor
        self._metrics.bytes_sent += len(body)
        return body

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._disconnected = True
        self.subscriber.tap()


class Retry:
    """An answer of 200 that only says when to come back. Any other status would stop an EventSource for ever."""

    def __init__(self, reconnect_milliseconds: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._body = retry_block(random.randint(reconnect_milliseconds, 3 * reconnect_milliseconds))
        self._headers = [*HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def retry_block(milliseconds: int) -> bytes:
    """A comment, which opens the way through proxies, and the time after which to reconnect."""
    return b": baton\nretry: %d\n\n" % milliseconds


def _encoded(batch: Batch, cursor: int) -> bytes:
    """A batch's bytes: shared by all who take the whole of it."""
    if batch.first_seq <= cursor:
        return native.encode(batch, cursor)
    if batch.encodings is None:
        batch.encodings = {}
    body = batch.encodings.get(native.NAME)
    if body is None:
        body = batch.encodings[native.NAME] = native.encode(batch, cursor)
    return body


def _now() -> float:
    return asyncio.get_running_loop().time()
