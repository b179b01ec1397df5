"""Server-sent events (WHATWG HTML, 9.2): a small ASGI response that follows one subscriber, and the heartbeat.

It is no Starlette response on purpose: all that is pending goes into one `send`, and nothing stands between this loop
and the server. A client's going is heard from `receive`; a pod's own asking it to go is `Subscriber.leaving`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Final

from starlette.types import Receive, Scope, Send

from .dialects import native
from .errors import Unavailable
from .log import Batch
from .metrics import PodMetrics
from .relay import Relays, Subscriber

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_COMMENT: Final = b":\n\n"


class EventStream:
    """Sends a subscriber's events in the native dialect until the stream ends, the client leaves or the pod does."""

    def __init__(
        self,
        subscriber: Subscriber,
        relays: Relays,
        metrics: PodMetrics,
        *,
        reconnect_milliseconds: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
        status: int = 200,
    ) -> None:
        self._subscriber = subscriber
        self._relays = relays
        self._metrics = metrics
        self._reconnect_milliseconds = reconnect_milliseconds
        self._headers = [*HEADERS, *headers]
        self._status = status
        self._disconnected = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
            await self._follow(send)
        finally:
            self._relays.unsubscribe(self._subscriber)
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _follow(self, send: Send) -> None:
        subscriber = self._subscriber
        clock = asyncio.get_running_loop().time
        pending = retry_block(self._reconnect_milliseconds)
        while not self._disconnected:
            pending += await self._take()
            if subscriber.finished or subscriber.relay.over:
                break
            if subscriber.leaving:
                # Spread over a few seconds, so that the next pod does not get all at once.
                pending += retry_block(random.randint(0, 2 * self._reconnect_milliseconds))
                break
            if subscriber.tapped and not pending:
                pending = _COMMENT
            subscriber.tapped = False
            if pending:
                await send({"type": "http.response.body", "body": pending, "more_body": True})
                subscriber.last_sent_at = clock()
                pending = b""
            await subscriber.wait()
        await send({"type": "http.response.body", "body": pending, "more_body": False})

    async def _take(self) -> bytes:
        """Take and encode what is there. Where the log cannot be read just now, the client is asked to come back."""
        subscriber = self._subscriber
        cursor = subscriber.cursor
        try:
            batches = await subscriber.take()
        except Unavailable:
            subscriber.leaving = True
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
        self._subscriber.tap()


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


async def keep_alive(relays: Relays, seconds: float) -> None:
    """Have a comment sent wherever nothing was for `seconds`. One timer serves all connections."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(seconds / 10)
        for subscriber in _silent(relays, clock() - seconds * 0.9):
            subscriber.tap()


def _silent(relays: Relays, since: float) -> Iterator[Subscriber]:
    return (subscriber for subscriber in relays.subscribers() if subscriber.last_sent_at < since)


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
