"""Viewers: each follows one stream over one connection at a time, to any pod, and reconnects after its last event.

The reader is a bare protocol around httptools that passes on whole SSE blocks: one process has to serve the viewers of
hundreds of streams beside the proxies. It repairs nothing: the account holds exactly what was received.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol, cast

import httptools

from ..backoff import Backoff
from ..demo.cluster import Program
from .account import Account
from .complaint import Complaint

# Pods send a keep-alive every three seconds here. A viewer leaves a pod that is silent for this long.
SILENCE_SECONDS: Final = 8
CONNECT_SECONDS: Final = 3
SMALL_BUFFER_BYTES: Final = 4096
LONGEST_STALL_SECONDS: Final = 7

# The answers for a cursor beyond what survived a promotion, or for a stream that did not survive it.
_GONE_BACK: Final = frozenset({404, 409})
_RETRY: Final = re.compile(rb"(?:^|\n)retry: (\d+)$")


@dataclass(slots=True)
class Habits:
    """How a viewer behaves. `stays_seconds` is a mean."""

    stays_seconds: float | None = None  # how long on one connection, before it moves to another pod
    joins_after_seconds: float = 0.0
    slow: bool = False  # it sometimes stops reading, and has a small buffer

    @classmethod
    def drawn(cls, random: Random, stream_seconds: float) -> Habits:
        """Draw the habits of a viewer."""
        return cls(
            stays_seconds=random.uniform(3, 15) if random.random() < 0.5 else None,
            joins_after_seconds=random.uniform(0, min(10, stream_seconds / 2)) if random.random() < 0.4 else 0,
            slow=random.random() < 0.15,
        )


@dataclass(slots=True)
class Traffic:
    """Counts of what all viewers received."""

    events: int = 0
    connected: int = 0
    connections: int = 0
    leavings: Counter[str] = field(default_factory=Counter)


class OnComplaint(Protocol):
    """Called with each complaint of a viewer."""

    def __call__(self, complaint: Complaint, *, pod: str) -> None: ...


class Viewer:
    """Follows one stream to its end."""

    def __init__(
        self,
        stream: str,
        pods: Sequence[Program],
        habits: Habits,
        *,
        random: Random,
        traffic: Traffic,
        complain: OnComplaint,
        rewound: Callable[[], bool] = lambda: False,
        step_every: int = 0,
        ask_every: int = 0,
    ) -> None:
        """`rewound` returns whether a promotion may have lost a part of the stream. For the rest see `Account`."""
        self._rewound = rewound
        self.account = Account(step_every, ask_every)
        self._stream = stream
        self._pods = pods
        self._habits = habits
        self._random = random
        self._traffic = traffic
        self._complain = complain
        self._backoff = Backoff(cap_seconds=1)
        self._retry_seconds = 0.0
        self._pod = ""

    async def run(self) -> None:
        """Follow until a pod answers 204 (nothing follows the last event), or refuses a cursor that the log lost."""
        await asyncio.sleep(self._habits.joins_after_seconds)
        while True:
            self._pod = ""
            reason = await self._follow(self._random.choice(self._pods))
            if reason == "204" or self.account.refused:
                return
            self._traffic.leavings[reason] += 1
            await asyncio.sleep(max(self._backoff.next_seconds(), self._retry_seconds))

    async def _follow(self, pod: Program) -> str:
        """Follow over one connection; return why it ended."""
        self._pod = pod.name
        source = EventSource(self._request(pod), self._receive, self._receive_malformed)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connect(pod, source)
        except (OSError, TimeoutError):
            source.abort()
            return "no connection"
        except asyncio.CancelledError:
            source.abort()
            raise
        self._traffic.connections += 1
        self._traffic.connected += 1
        try:
            reason = await self._attend(source)
        finally:
            self._traffic.connected -= 1
            source.abort()
        self._retry_seconds = source.retry_seconds
        if source.status in _GONE_BACK and self._rewound():
            self.account.refused = True
            return "refused after a promotion"
        if source.status not in {0, 200, 204}:
            complaint = Complaint("refused", self.account.tail, f"{source.status} {source.refusal[:200]!r}")
            self._complain(complaint, pod=self._pod)
            return "refused"
        return "204" if source.status == 204 else reason

    async def _attend(self, source: EventSource) -> str:
        """Wait until the connection ends or this viewer leaves it; return why."""
        loop = asyncio.get_running_loop()
        stays = self._habits.stays_seconds
        leave_at = loop.time() + (self._random.expovariate(1 / stays) if stays else 86_400)
        while not source.over.done():
            await asyncio.wait([source.over], timeout=0.5)
            if source.over.done():
                break
            if loop.time() > leave_at and self.account.end is None:
                return "moved"
            if loop.time() - source.received_at > SILENCE_SECONDS:
                return "silence"
            if self._habits.slow and self._random.random() < 0.2:
                source.pause()
                await asyncio.sleep(self._random.uniform(0.2, 1) ** 2 * LONGEST_STALL_SECONDS)
                source.resume()
        return source.over.result()

    async def _connect(self, pod: Program, source: EventSource) -> None:
        assert pod.port is not None
        loop = asyncio.get_running_loop()
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            opened.setblocking(False)
            if self._habits.slow:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            await loop.sock_connect(opened, ("127.0.0.1", pod.port))
        except BaseException:
            opened.close()
            raise
        # From here on the transport closes the socket. If this were cancelled, the socket would be closed twice, the
        # second time perhaps as another connection's.
        await asyncio.shield(loop.create_connection(lambda: source, sock=opened))

    def _request(self, pod: Program) -> bytes:
        cursor = f"Last-Event-ID: {self.account.tail}\r\n" if self.account.tail else ""
        return (
            f"GET /v1/streams/{self._stream}/events HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{pod.port}\r\nAccept: text/event-stream\r\n{cursor}\r\n"
        ).encode()

    def _receive(self, seq: int, line: bytes) -> None:
        self._traffic.events += 1
        self._backoff.reset()
        for complaint in self.account.receive(seq, line):
            self._complain(complaint, pod=self._pod)

    def _receive_malformed(self, what: str) -> None:
        self._complain(Complaint("not SSE", self.account.tail, what), pod=self._pod)


class EventSource(asyncio.Protocol):
    """One HTTP response of server-sent events. `over` is resolved with the reason when the response has ended."""

    def __init__(
        self, request: bytes, on_event: Callable[[int, bytes], None], on_malformed: Callable[[str], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = loop.create_future()
        self.status = 0
        self.refusal = b""
        self.retry_seconds = 0.0
        self.received_at = loop.time()
        self._now = loop.time
        self._paused_at = 0.0
        self._request = request
        self._on_event = on_event
        self._on_malformed = on_malformed
        self._transport: asyncio.Transport | None = None
        self._aborted = False
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self.over.done():
            self._paused_at = self._now()
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue reading."""
        if self._transport is not None and not self.over.done():
            # The pause is no silence of the pod, and ends none: a pod gives a client up that does not read for a while,
            # and the kernel does not always say so.
            self.received_at += self._now() - self._paused_at
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection, as a phone does when it changes networks, or do so as soon as there is one."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self._aborted:
            self._transport.abort()
        else:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Parse what was received."""
        self.received_at = self._now()
        if self.over.done():
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._on_malformed(f"not HTTP: {error!r}")
            self._end("not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection was cut or dropped."""
        self._end("cut")

    def on_headers_complete(self) -> None:
        """Note the status."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Split the body into blocks. An incomplete block waits for the rest."""
        if self.status != 200:
            self.refusal += body
            return
        *blocks, self._rest = (self._rest + body).split(b"\n\n")
        for block in blocks:
            head, _, line = block.partition(b"\ndata: ")
            if head.startswith(b"id: ") and head[4:].isdigit():
                self._on_event(int(head[4:]), line)
            elif block.startswith(b":"):
                if found := _RETRY.search(block):
                    self.retry_seconds = int(found[1]) / 1000
            else:
                self._on_malformed(f"a block {block!r:.120}")

    def on_message_complete(self) -> None:
        """Note that the response has ended."""
        self._end("closed")

    def _end(self, reason: str) -> None:
        if not self.over.done():
            self.over.set_result(reason)
