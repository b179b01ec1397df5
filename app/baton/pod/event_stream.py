"""One event stream to a client: an ASGI response that writes a subscriber's events to a sink, in a dialect.

Its states, in this order; some may be skipped:

- `opening`: it sends the header of the response.
- `catching up`: it sends what the log has after the cursor.
- `live`: the client has caught up once. A batch is written in the turn of the loop in which the relay applies it. If
  that would have to wait for the client, the stream's task sends it.
- `leaving`: it sends the last bytes, which say that the client is to reconnect, or that the answer is complete.
- `cutting`: all is sent, and it waits for the connection to close.
- `closed`: the connection is lost, or the response has ended.

`close` gives a reason to end, and the task does the rest. Most clients treat a clean close as the end of the answer. So
a stream that has to end early ends cleanly only in a dialect whose clients reconnect. In any other dialect the
connection is cut, which the client reports as an error.

On purpose the response is not a Starlette response: everything that is pending goes into one `send`, and no other layer
is between this task and the server, since it runs outside of the middleware once its header is sent
(`outside_middleware`). `stream_timeouts` closes the streams of slow clients. Everything runs on the pod's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

from starlette.types import Receive, Scope, Send

from ..db.event_log import Batch
from ..dialects.protocol import Header, Reader
from ..errors import POD_FAULT, ConnectionCut, LogDamaged, TooManyQueries, Unavailable
from ..observability import log_context, tracing
from ..observability.metrics import PodMetrics
from ..observability.metrics.pod_metrics import Closing, Leaving
from ..observability.tracing import Span
from .delivery_counts import DeliveryCounts
from .outside_middleware import continue_outside
from .relay_registry import RelayRegistry
from .sinks import Sink, sink_of
from .stream_timeouts import OpenStreams
from .subscriber import Subscriber

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["opening", "catching up", "live", "leaving", "cutting", "closed"]

# The pod ends the stream, and the client may reconnect to another one.
_SENT_AWAY: Final[frozenset[Closing]] = frozenset(get_args(Leaving))
# Of several reasons the strongest counts, and of equally strong ones the first.
_STRENGTH: Final[dict[Closing, int]] = {
    "client_disconnected": 0,
    "ended": 1,
    **dict.fromkeys(_SENT_AWAY, 2),
    "error": 3,
    "write_timeout": 4,
}
# Here the pod or the database is at fault.
_FAULTS: Final[frozenset[Closing]] = frozenset({"error", "database_unavailable"})
# What a client gets instead of the rest: a code and a message.
_DAMAGED: Final = (LogDamaged.code, f"{LogDamaged.title}.")
_NOT_ENCODABLE: Final = ("internal_error", POD_FAULT)
_now: Final = time.monotonic


class EventStream:
    """Sends a subscriber's events until the stream ends, the client leaves, or the pod sends the client away.

    With `window_seconds` it waits this long between two sends, for clients that prefer fewer, larger chunks. `on_gone`
    is awaited when the client leaves before the end, and not when the pod sends it away. A client that is not
    `admitted` any more is sent away. `waits` reads whether the stream waits for people: then the connection ends, in a
    dialect that can say so.
    """

    # A pod holds thousands of these.
    __slots__ = (
        "_counts",
        "_failure",
        "_headers",
        "_lost",
        "_on_gone",
        "_pending",
        "_reader",
        "_reason",
        "_reconnect_milliseconds",
        "_relays",
        "_sink",
        "_streams",
        "_subscriber",
        "_waits",
        "_window_seconds",
        "admitted",
        "renew_at",
        "sending_since",
        "state",
    )
    _sink: Sink

    def __init__(
        self,
        subscriber: Subscriber,
        reader: Reader[Any],
        relays: RelayRegistry,
        streams: OpenStreams,
        metrics: PodMetrics,
        *,
        reconnect_milliseconds: int,
        opening: bytes = b"",
        headers: Sequence[Header] = (),
        window_seconds: float = 0.0,
        on_gone: Callable[[], Awaitable[None]] | None = None,
        admitted: Callable[[], bool] = lambda: True,
        waits: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.state: State = "opening"
        self.sending_since: float | None = None
        self.renew_at = math.inf
        self.admitted = admitted
        self._subscriber = subscriber
        self._reader = reader
        self._relays = relays
        self._streams = streams
        self._counts = DeliveryCounts(metrics, reader.dialect.name, subscriber.cursor)
        self._reconnect_milliseconds = reconnect_milliseconds
        self._headers: Sequence[Header] = [*reader.dialect.headers, *headers]
        self._pending = reader.dialect.greeting(reconnect_milliseconds) + opening  # what is to be sent next
        self._window_seconds = window_seconds
        self._on_gone = on_gone
        self._waits = waits
        self._reason: Closing | None = None  # why it is to end
        self._failure: Exception | None = None  # of the dialect, which could not encode a batch
        self._lost: asyncio.Future[None] | None = None  # done when the connection is lost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the header. The body follows outside of the middleware."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        except OSError:
            # Servers may raise it if the client has left.
            self.close("client_disconnected")
        except BaseException:
            self._relays.unsubscribe(self._subscriber)
            raise
        self._headers = ()
        await continue_outside(scope, receive, send, lambda *outside: self._run(sink_of(scope, *outside)))

    def close(self, reason: Closing) -> None:
        """Make the stream end for this reason. If there are several, the strongest one counts.

        With "client_disconnected" the connection is lost already.
        With "write_timeout" the connection is aborted now, and the client can resume.
        With any other reason the stream ends after what the client is getting at the moment.
        """
        if self._reason is None or _STRENGTH[reason] > _STRENGTH[self._reason]:
            self._reason = reason
        if reason in _SENT_AWAY:
            # From now on a lost connection does not mean that the client left.
            self._on_gone = None
        if reason in {"client_disconnected", "write_timeout"}:
            self._lose()
        if reason == "write_timeout":
            self._sink.abort()
        self._subscriber.tap()

    @property
    def last_sent_at(self) -> float:
        """When it last sent something, by `time.monotonic`."""
        return self._counts.last_sent_at

    def keep_alive(self) -> None:
        """Make the stream's task send a comment, unless there are events to send."""
        self._subscriber.tap()

    async def _run(self, sink: Sink) -> None:
        self._sink = sink
        relay = self._subscriber.relay
        attributes: dict[str, tracing.Value | None] = {
            "baton.stream.id": str(relay.stream_id),
            "baton.dialect": self._counts.dialect,
            "baton.from_cursor": self._counts.from_cursor,
        }
        log_context.enter_stream(relay.stream_id)
        parent, link = relay.traceparent, tracing.here()
        with tracing.span("follow", parent, kind="server", attributes=attributes, link=link) as span:
            await self._serve(span)

    async def _serve(self, span: Span) -> None:
        self._sink.on_lost(self._leave)
        if self._reader.dialect.reconnects:
            self.renew_at = self._streams.renewal_time()
        self._streams.add(self)
        self._counts.open()
        try:
            await self._follow()
        except asyncio.CancelledError:
            if not (self._streams.draining and self._sink.cuts):
                raise
            await self._give_up()
        finally:
            self._streams.remove(self)
            self._relays.unsubscribe(self._subscriber)
            self._report_closed(span)
            await self._sink.release()

    async def _follow(self) -> None:
        """Send events until something ends the stream, then end it."""
        subscriber = self._subscriber
        self._enter("catching up")
        while self.state != "closed":
            await self._take()
            if self._is_over() or await self._pauses():
                break
            if subscriber.take_tap() and not self._pending:
                self._pending = self._reader.dialect.comment
            if self._pending:
                await self._flush()
                if self._window_seconds:
                    # Events within the window gather for the next send. The stream's end does not wait.
                    await subscriber.pause(self._window_seconds)
            self._enter("live")
            await subscriber.wait(None if self._window_seconds else self._hear)
        if self.state == "closed":
            await self._notify_gone()
        else:
            await self._end()

    async def _take(self) -> None:
        """Deliver what the relay has. If the log cannot be read, ask the client to reconnect later."""
        try:
            batches = await self._subscriber.take(until_tapped=True)
        except (Unavailable, TooManyQueries):
            self.close("database_unavailable")
            return
        # After a batch that could not be encoded, the client must not get later ones.
        if batches and self._failure is None:
            self._deliver(batches)

    def _hear(self, batch: Batch) -> bool:
        """Deliver a live batch, and write it at once if possible. Return False if the task has to take it."""
        if self._pending:
            # The task is about to send the batch before this one.
            return False
        self._deliver((batch,))
        if self._pending:
            if self._sink.write(self._pending):
                self._pending = b""
                self._counts.sent()
            else:
                self._subscriber.wake()
        return True

    def _deliver(self, batches: Sequence[Batch]) -> None:
        """Encode batches, count them, and leave them pending. Every event of the stream passes here, once."""
        try:
            body = self._reader.read(batches)
        except Exception as error:  # noqa: BLE001 - `_report_closed` logs it
            # The same would happen on every other pod.
            self._failure = error
            self.close("error")
            return
        self._pending += body
        self._counts.count(batches[-1], len(body), self.state == "live")
        if self._reader.over or self._reader.pause:
            self._subscriber.tap()

    async def _pauses(self) -> bool:
        """Whether the connection ends because the stream waits for people; the last bytes are then pending.

        The event `waiting` alone does not say so: an input may have ended the wait already, and then its answer
        follows. If that cannot be read now, the connection stays.
        """
        if not self._reader.pause or self._waits is None:
            return False
        try:
            waits = await self._waits()
        except (Unavailable, TooManyQueries):
            return False
        if not waits or self._subscriber.cursor < self._subscriber.relay.tail:
            return False
        self._pending += self._reader.end_while_waiting()
        return True

    async def _flush(self, *, last: bool = False) -> None:
        """Send what is pending, and wait until the client has accepted most of it."""
        body, self._pending = self._pending, b""
        self.sending_since = _now()
        await self._sink.send(body, last=last)
        self.sending_since = None
        self._counts.sent()

    def _is_over(self) -> bool:
        """Whether only the end is left to send."""
        subscriber = self._subscriber
        return self._reason is not None or subscriber.finished or subscriber.relay.over or self._reader.over is not None

    async def _end(self) -> None:
        """Send what is left, and end the response in the way that says whether this is the end of the answer."""
        self._enter("leaving")
        self.close("ended")
        reader, relay = self._reader, self._subscriber.relay
        over = reader.over
        if not over and (relay.damaged or self._failure is not None):
            code, message = _DAMAGED if relay.damaged else _NOT_ENCODABLE
            last, over = reader.dialect.broken(reader.state, code, message)
            self._pending += last
        elif reader.dialect.reconnects and not self._subscriber.finished:
            # After a short random pause, so that the clients do not all reach the next pod at once.
            self._pending += reader.dialect.greeting(random.randint(0, self._reconnect_milliseconds))
        if over == "ended" or reader.dialect.reconnects:
            await self._flush(last=True)
            return
        if self._pending:
            await self._flush()
        await self._cut()

    async def _cut(self) -> None:
        """End the connection, after all that was sent, so that no client mistakes it for the end of the answer."""
        if not self._sink.cuts:
            raise ConnectionCut(
                f"A client of stream {self._subscriber.relay.stream_id} is cut off, since it would "
                "mistake a clean end for the end of the answer. `baton serve` cuts connections without this error."
            )
        self._enter("cutting")
        # A client that accepts nothing is aborted after a time, as while sending.
        self.sending_since = _now()
        self._sink.close()
        await self._until_lost()

    async def _give_up(self) -> None:
        """Abort the connection after the server of a draining pod cancelled the response. The client can resume.

        The server would log a cancelled response, or one that returns early, as an error of the application. So this
        returns when the server knows that the connection is lost.
        """
        self.close("drained")
        self._sink.abort()
        await self._until_lost()

    async def _until_lost(self) -> None:
        if self.state != "closed":
            self._lost = asyncio.get_running_loop().create_future()
            await self._lost

    def _leave(self) -> None:
        """Note that the connection is lost."""
        self.close("client_disconnected")

    def _lose(self) -> None:
        self.state = "closed"
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _enter(self, state: State) -> None:
        """Change the state. A closed stream stays closed."""
        if self.state != "closed":
            self.state = state

    async def _notify_gone(self) -> None:
        # While the pod drains, its clients may lose their connections without having left.
        if self._on_gone is not None and not self._streams.draining:
            await self._on_gone()

    def _final_reason(self) -> Closing:
        """Return why the stream has ended, now that it has."""
        if self._subscriber.relay.damaged:
            self.close("error")
        if self._reason is None:
            # It was cancelled, or has failed. A server cancels what still runs while the pod drains.
            self.close("drained" if self._streams.draining else "error")
        assert self._reason is not None
        return self._reason

    def _report_closed(self, span: Span) -> None:
        """Report how the stream ended, once: in the metrics, in the log, and in its span."""
        reason, counts, stream_id = self._final_reason(), self._counts, self._subscriber.relay.stream_id
        self.state = "closed"
        counts.close(reason)
        if self._failure is not None:
            logger.error(
                "Events of stream %s cannot be encoded in %s.", stream_id, counts.dialect, exc_info=self._failure
            )
        sums = {"cursor": self._subscriber.cursor, "events": counts.events, "size_bytes": counts.size_bytes}
        span.set({"baton.reason": reason, **{f"baton.{name}": number for name, number in sums.items()}})
        level = logging.WARNING if reason in _FAULTS else logging.INFO
        if logger.isEnabledFor(level):
            known = {
                "dialect": counts.dialect,
                "tenant": self._subscriber.tenant,
                "reason": reason,
                "from_cursor": counts.from_cursor,
                **sums,
                "duration_seconds": round(counts.duration_seconds, 6),
            }
            logger.log(level, "An event stream of %s is closed: %s.", stream_id, reason, extra=known)
