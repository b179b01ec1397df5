"""Open connections: a small ASGI response that follows one subscriber in its dialect, and the care of them all.

It is no Starlette response on purpose: all that is pending goes into one `send`, and nothing stands between this loop
and the server, since it goes on outside of the application's layers once its header is sent (`epilogue`). That a client
has gone is told by the server (`Direct`), or else heard from `receive`. One timer serves all connections of a pod: it
has comments sent where it was silent for long, sends old connections away to reconnect before a platform would cut
them, and aborts those that accept nothing.

Most clients take a clean end for the end of the stream. So a connection that must end earlier ends cleanly only where
the clients of its dialect come back; any other is cut, which its client reports as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope, Send

from ..db.event_log import Batch
from ..dialects.dialect import Header, Reader
from ..errors import POD_FAULT, ConnectionCut, LogDamaged, TooManyQueries, Unavailable
from ..observability import log_context, tracing
from ..observability.metrics import PodMetrics
from ..observability.metrics.pod_metrics import Closing, Leaving
from ..observability.tracing import Span
from .epilogue import after_layers
from .relay import Relays, Subscriber

logger = logging.getLogger(__name__)

# Where a server tells how to end a connection in mid-response. Closing it sends first what the client has yet to take;
# aborting it waits for nothing.
CLOSE_EXTENSION: Final = "baton.close"
ABORT_EXTENSION: Final = "baton.abort"
# Where a server offers a `Direct` way to the socket.
DIRECT_EXTENSION: Final = "baton.direct"


class Direct(Protocol):
    """A way to the connection that needs no task: neither to send a piece, nor to hear that the client has gone."""

    def watch(self, on_lost: Callable[[], None]) -> bool:
        """Have `on_lost` called when the connection is lost, at once if it is, and return True.

        Where something of the request is still to come, only `receive` can tell: then return False.
        """
        ...

    def write(self, body: bytes) -> bool:
        """Send a piece, and return True, if the response goes on and the client has taken most of what was sent."""
        ...


class Connections:
    """The open event streams of a pod."""

    def __init__(self, *, sse_keep_alive_seconds: float, write_timeout_seconds: float, max_age_seconds: float) -> None:
        self._sse_keep_alive_seconds = sse_keep_alive_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._max_age_seconds = max_age_seconds
        self._open: set[Connection] = set()
        self.draining = False  # the pod is leaving

    def add(self, connection: Connection) -> None:
        """Take a connection into care; it is to leave at a random time shortly before the maximum age."""
        connection.leave_at = _now() + self._max_age_seconds * random.uniform(0.8, 1)
        self._open.add(connection)
        if self.draining:
            # It was let in before the drain began, and had to wait for the database.
            connection.leave("drained")

    def remove(self, connection: Connection) -> None:
        """Let go of a connection that has ended."""
        self._open.discard(connection)

    async def run(self) -> None:
        """Care for the connections until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._sse_keep_alive_seconds / 10, self._write_timeout_seconds / 5))
            now = _now()
            for connection in list(self._open):
                self._look(connection, now)

    async def drain(self, seconds: float) -> None:
        """Send all clients away, spread over that time, and whoever comes meanwhile at once."""
        self.draining = True
        leaving = list(self._open)
        random.shuffle(leaving)
        for connection in leaving:
            connection.leave("drained")
            await asyncio.sleep(seconds / len(leaving))

    def _look(self, connection: Connection, now: float) -> None:
        if connection.sending_since is not None:
            if now - connection.sending_since > self._write_timeout_seconds:
                connection.abort()
        elif not connection.admitted():
            connection.leave("revoked")
        elif connection.renews and now >= connection.leave_at:
            connection.leave("max_age")
        elif now - connection.last_sent_at >= self._sse_keep_alive_seconds * 0.9:
            connection.subscriber.tap()


class Connection:
    """Sends a subscriber's events until the stream ends, the client leaves or the pod does.

    With `window_seconds` it waits so long between two sends, for clients that had rather get few large pieces.
    `on_gone` is awaited when the client leaves before the end, and not when the pod sends it away, as it does with
    whoever is not `admitted` any more.
    """

    # There may be very many.
    __slots__ = (
        "_began_after",
        "_began_at",
        "_committed_at",
        "_connections",
        "_counts",
        "_cutting",
        "_direct",
        "_ending",
        "_events",
        "_extensions",
        "_failed",
        "_gone",
        "_headers",
        "_leaving",
        "_live",
        "_metrics",
        "_on_gone",
        "_opening",
        "_reader",
        "_reconnect_milliseconds",
        "_relays",
        "_size_bytes",
        "_stuck",
        "_task",
        "_window_seconds",
        "admitted",
        "last_sent_at",
        "leave_at",
        "renews",
        "sending_since",
        "subscriber",
    )

    def __init__(
        self,
        subscriber: Subscriber,
        reader: Reader[Any],
        relays: Relays,
        connections: Connections,
        metrics: PodMetrics,
        *,
        reconnect_milliseconds: int,
        opening: bytes = b"",
        headers: Sequence[Header] = (),
        window_seconds: float = 0.0,
        on_gone: Callable[[], Awaitable[None]] | None = None,
        admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.subscriber = subscriber
        self.last_sent_at = _now()
        self.sending_since: float | None = None
        self.leave_at = 0.0
        self.renews = reader.dialect.reconnects
        self.admitted = admitted
        self._reader = reader
        self._relays = relays
        self._connections = connections
        self._metrics = metrics
        self._counts = metrics.of_dialect(reader.dialect.name)
        self._reconnect_milliseconds = reconnect_milliseconds
        self._opening = opening
        self._headers: Sequence[Header] = [*reader.dialect.headers, *headers]
        self._window_seconds = window_seconds
        self._on_gone = on_gone
        self._leaving: Leaving | None = None  # why it sends its client away
        self._failed = False  # the dialect could not tell what there is
        self._stuck = False  # the client accepted nothing
        self._ending = False  # nothing more is to be had
        self._live = False  # the client has caught up once
        self._began_at = _now()
        self._began_after = subscriber.cursor
        self._events = 0
        self._size_bytes = 0
        self._committed_at: float | None = None  # when the newest event to be sent was
        self._gone = False  # the connection is no more
        self._cutting: asyncio.Future[None] | None = None  # done when it is no more
        self._extensions: Mapping[str, Any] = {}
        self._direct: Direct | None = None
        self._task: asyncio.Task[object] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the header; the rest follows when the layers have returned (see `epilogue`)."""
        self._task = asyncio.current_task()
        self._extensions = scope.get("extensions", {})
        try:
            await self._call(send, {"type": "http.response.start", "status": 200, "headers": self._headers})
        except BaseException:
            self._relays.unsubscribe(self.subscriber)
            raise
        self._headers = ()
        await after_layers(scope, receive, send, self._go_on)

    async def _go_on(self, receive: Receive, send: Send) -> None:
        relay, dialect = self.subscriber.relay, self._reader.dialect.name
        about: dict[str, tracing.Value | None] = {
            "baton.stream.id": str(relay.stream_id),
            "baton.dialect": dialect,
            "baton.from_cursor": self._began_after,
        }
        log_context.enter_stream(relay.stream_id)
        with tracing.span("follow", relay.traceparent, kind="server", attributes=about, link=tracing.here()) as span:
            await self._serve(receive, send, span)

    async def _serve(self, receive: Receive, send: Send, span: Span) -> None:
        direct: Direct | None = self._extensions.get(DIRECT_EXTENSION)
        # Whoever wants few large pieces is sent what has gathered.
        self._direct = None if self._window_seconds else direct
        watcher = None
        if direct is None or not direct.watch(self._lose):
            watcher = asyncio.create_task(self._watch(receive))
        self._connections.add(self)
        self._counts.connections += 1
        try:
            await self._follow(send)
        except asyncio.CancelledError:
            if not self._connections.draining:
                raise
            await self._give_up()
        finally:
            self._counts.connections -= 1
            self._connections.remove(self)
            self._relays.unsubscribe(self.subscriber)
            self._tell_closed(span)
            if watcher is not None:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher

    def leave(self, why: Leaving) -> None:
        """Have the client reconnect: here it is sent away after what it is getting just now. The first call counts."""
        self._leaving = self._leaving or why
        self.subscriber.tap()

    def abort(self) -> None:
        """Abort the connection of a client that accepts nothing. It can resume."""
        self._stuck = True
        self._lose()
        abort = self._extensions.get(ABORT_EXTENSION)
        if abort is not None:
            abort()
        elif self._task is not None:
            self._task.cancel()

    async def _give_up(self) -> None:
        """Abort the connection as the server ends the response of a pod that leaves; the client can resume.

        The server would log a cancelled response, and one that returns early, as errors of this code. So this returns
        when the server knows that the connection is lost.
        """
        self._leaving = self._leaving or "drained"
        abort = self._extensions.get(ABORT_EXTENSION)
        if abort is None:
            raise asyncio.CancelledError
        abort()
        await self._lost()

    async def _follow(self, send: Send) -> None:
        subscriber, dialect = self.subscriber, self._reader.dialect
        pending, self._opening = dialect.greeting(self._reconnect_milliseconds) + self._opening, b""
        while not self._gone:
            pending += await self._take()
            if subscriber.finished or subscriber.relay.over or self._reader.over or self._leaving or self._failed:
                break
            if subscriber.tapped and not pending:
                pending = dialect.comment
            subscriber.tapped = False
            if pending:
                await self._send(send, pending)
                pending = b""
                await self._let_gather()
            self._live = True
            await subscriber.wait(self._push)
        if self._gone:
            await self._tell_gone()
        else:
            await self._end(send, pending)

    async def _end(self, send: Send, pending: bytes) -> None:
        """Send what is left and end the connection: in the way that says whether this is the stream's end."""
        self._ending = True
        reader, relay = self._reader, self.subscriber.relay
        over = reader.over
        if not over and (relay.damaged or self._failed):
            code, message = (LogDamaged.code, f"{LogDamaged.title}.") if relay.damaged else _UNTELLABLE
            last, over = reader.dialect.broken(reader.state, code, message)
            pending += last
        elif reader.dialect.reconnects and not self.subscriber.finished:
            # Spread over a moment, so that the next pod does not get all at once.
            pending += reader.dialect.greeting(random.randint(0, self._reconnect_milliseconds))
        if over == "ended" or reader.dialect.reconnects:
            await self._send(send, pending, more=False)
            return
        if pending:
            await self._send(send, pending)
        await self._cut()

    async def _cut(self) -> None:
        """End the connection, once all was sent, so that no client takes it for the end of the stream."""
        close = self._extensions.get(CLOSE_EXTENSION)
        if close is None:
            raise ConnectionCut(
                f"A client of stream {self.subscriber.relay.stream_id} is cut off, since it would take a clean end for "
                "the end of the stream. `baton serve` does so without this error."
            )
        # A client that accepts nothing is aborted after a time, as while sending.
        self.sending_since = _now()
        close()
        await self._lost()

    async def _lost(self) -> None:
        """Wait until the connection is no more."""
        if not self._gone:
            self._cutting = asyncio.get_running_loop().create_future()
            await self._cutting

    def _push(self, batch: Batch) -> bool:
        """Send a batch at once, where that needs no waiting; else leave it to the task."""
        if self._direct is None:
            return False
        try:
            encoded = self._reader.peek(batch)
        except Exception:  # noqa: BLE001 - the task meets it again, and tells
            return False
        if encoded is None:
            return False
        body = encoded.body
        if body and not self._direct.write(body):
            return False
        self._reader.advance(encoded)
        self._count(batch.last_seq - batch.first_seq + 1, len(body), batch)
        if body:
            self._sent()
        if encoded.over:
            self.subscriber.tap()
        return True

    async def _let_gather(self) -> None:
        """Leave events that come within the window to the next send; the stream's end does not wait."""
        if self._window_seconds:
            await self.subscriber.pause(self._window_seconds)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self.sending_since = _now()
        await self._call(send, {"type": "http.response.body", "body": body, "more_body": more})
        self.sending_since = None
        self._sent()

    def _sent(self) -> None:
        self.last_sent_at = _now()
        if self._committed_at is not None:
            delay = time.time() - self._committed_at
            self._metrics.delivery_seconds.observe(delay if delay > 0 else 0.0)
            self._committed_at = None

    async def _call(self, send: Send, message: Message) -> None:
        try:
            await send(message)
        except OSError:
            # So servers may say that the client has gone.
            self._lose()

    async def _take(self) -> bytes:
        """Take and encode what is there. Where the log cannot be read just now, the client is asked to come back."""
        subscriber = self.subscriber
        cursor = subscriber.cursor
        try:
            batches = await subscriber.take(until_tapped=True)
        except (Unavailable, TooManyQueries):
            self._leaving = self._leaving or "database_unavailable"
            return b""
        return self._encode(batches, subscriber.cursor - cursor) if batches else b""

    def _encode(self, batches: Sequence[Batch], count: int) -> bytes:
        """Encode batches in which so many events are new."""
        try:
            body = self._reader.read(batches)
        except Exception:
            # The same would happen again wherever the client comes back.
            logger.exception(
                "Events of stream %s cannot be told in %s.",
                self.subscriber.relay.stream_id,
                self._reader.dialect.name,
            )
            self._failed = True
            return b""
        self._count(count, len(body), batches[-1])
        return body

    def _count(self, events: int, size_bytes: int, last: Batch) -> None:
        self._counts.events += events
        self._counts.size_bytes += size_bytes
        self._events += events
        self._size_bytes += size_bytes
        if self._live:
            self._committed_at = last.committed_at

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._lose()

    def _lose(self) -> None:
        """Learn that the connection is no more."""
        self._gone = True
        self.subscriber.tap()
        if self._cutting is not None and not self._cutting.done():
            self._cutting.set_result(None)

    def _reason(self) -> Closing:
        if self._stuck:
            return "write_timeout"
        if self._failed or self.subscriber.relay.damaged:
            return "error"
        if self._leaving:
            return self._leaving
        if self._ending:
            return "ended"
        if self._gone:
            return "client_disconnected"
        # The server gives up what still waits when the pod leaves.
        return "drained" if self._connections.draining else "error"

    def _tell_closed(self, span: Span) -> None:
        """Say how it went, once for each connection: in the metrics, in the log, and in its span."""
        reason, dialect = self._reason(), self._reader.dialect.name
        self._metrics.closed.add(dialect, reason)
        counts = {"cursor": self.subscriber.cursor, "events": self._events, "size_bytes": self._size_bytes}
        span.set({"baton.reason": reason, **{f"baton.{name}": number for name, number in counts.items()}})
        level = logging.WARNING if reason in _TROUBLE else logging.INFO
        if logger.isEnabledFor(level):
            stream_id = self.subscriber.relay.stream_id
            known = {
                "dialect": dialect,
                "tenant": self.subscriber.tenant,
                "reason": reason,
                "from_cursor": self._began_after,
                **counts,
                "duration_seconds": round(_now() - self._began_at, 6),
            }
            logger.log(level, "A connection to stream %s is closed: %s.", stream_id, reason, extra=known)

    async def _tell_gone(self) -> None:
        if self._on_gone is not None and not (self._leaving or self._connections.draining):
            await self._on_gone()


# Why a connection ends if something is amiss here.
_TROUBLE: Final[frozenset[Closing]] = frozenset({"error", "database_unavailable"})
_UNTELLABLE: Final = ("internal_error", POD_FAULT)


_now: Final = time.monotonic
