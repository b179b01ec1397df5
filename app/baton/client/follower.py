"""A client of the native API that reconnects: to any pod, after the last event that it has.

`Follower` yields what it received, in the order in which it was received. It sorts, drops and repairs nothing, so that
its caller can check what the pods sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import httpx2
import orjson

from ..backoff import Backoff
from ..errors import FollowError
from .problem import Problem, is_temporary

# Pods send a comment every 15 seconds. A connection that is silent for three times as long is dead.
SILENCE_SECONDS: Final = 45
CONNECT_SECONDS: Final = 5
MAX_EVENT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Connected:
    """A pod answered, and continues after `cursor`. All times are of `time.monotonic`."""

    pod: str
    cursor: int
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Received:
    """An event was received."""

    seq: int
    event: dict[str, Any]
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended before the stream, or could not be opened. The next attempt follows after `pause_seconds`."""

    reason: str
    cursor: int
    pause_seconds: float
    at_seconds: float


Sighting = Connected | Received | Disconnected


class Follower:
    """Follows one stream from `cursor` to its end, through any number of connections.

    It ends after the terminal event, or when a pod answers with 204: the stream has no further events. `headers` are
    sent with each request, besides those of `http`.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        url: str,
        *,
        cursor: int = 0,
        patience_seconds: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.cursor = cursor
        self._headers = dict(headers or {})
        self._http = http
        self._url = url
        self._patience_seconds = patience_seconds
        self._answered_at = monotonic()
        self._reconnect_seconds = 0.0
        self._backoff = Backoff()
        self._over = False

    async def run(self) -> AsyncGenerator[Sighting, None]:
        """Yield what happens until the stream ends.

        Raises:
            FollowError: a pod refused the stream for good, or no pod has answered for `patience_seconds`.
        """
        while True:
            least_seconds = 0.0
            try:
                async with contextlib.aclosing(self._connection()) as sightings:
                    async for sighting in sightings:
                        yield sighting
                reason, least_seconds = "the pod closed the connection", self._reconnect_seconds
            except httpx2.SSEError as error:
                raise FollowError(f"The response from {self._url} is not an event stream: {error}") from error
            except httpx2.TransportError as error:
                reason = str(error) or type(error).__name__
            except _Temporary as refusal:
                reason = str(refusal)
            if self._over:
                return
            pause_seconds = self._pause(reason, least_seconds)
            yield Disconnected(reason, self.cursor, pause_seconds, monotonic())
            await asyncio.sleep(pause_seconds)

    async def _connection(self) -> AsyncGenerator[Sighting, None]:
        """Follow the stream over one connection."""
        headers = self._headers | ({"last-event-id": str(self.cursor)} if self.cursor else {})
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        connecting = self._http.sse(self._url, headers=headers, timeout=timeout, max_event_size=MAX_EVENT_BYTES)
        async with connecting as source:
            await self._admit(source.response)
            if self._over:
                return
            yield Connected(source.response.headers.get("x-baton-pod", ""), self.cursor, monotonic())
            async for block in source:
                if block.retry is not None:
                    self._reconnect_seconds = max(0, block.retry) / 1000
                if block.id:
                    self.cursor = _seq(block.id)
                if block.data:
                    received = self._receive(block)
                    yield received
                if self._over:
                    return

    async def _admit(self, response: httpx2.Response) -> None:
        """Accept a 200. Of any other status, decide whether it is the end, worth another attempt, or final."""
        if response.status_code == httpx2.codes.NO_CONTENT:
            self._over = True
        elif response.status_code == httpx2.codes.OK:
            self._answered_at = monotonic()
        else:
            await response.aread()
            problem = Problem.of(response)
            sentence = f"{response.status_code} {problem.detail}"
            if is_temporary(response) or response.is_server_error:
                raise _Temporary(sentence)
            raise FollowError(f"The stream at {self._url} is refused: {sentence}", code=problem.code)

    def _receive(self, block: httpx2.ServerSentEvent) -> Received:
        try:
            event = orjson.loads(block.data)
        except ValueError:
            raise FollowError(f"Event {block.id!r} is not JSON: {block.data!r:.80}") from None
        self._backoff.reset()
        self._answered_at = monotonic()
        self._over = event.get("type") == "done"
        return Received(self.cursor, event, monotonic())

    def _pause(self, reason: str, least_seconds: float) -> float:
        waited_seconds = monotonic() - self._answered_at
        if waited_seconds > self._patience_seconds:
            raise FollowError(f"No pod has answered for {waited_seconds:.0f} seconds: {reason}")
        return max(self._backoff.next_seconds(), least_seconds)


class _Temporary(Exception):
    """A status that may change by the next attempt."""


def _seq(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()):
        raise FollowError(f"The event id {raw!r:.80} is not a number. The URL does not serve Baton's native dialect.")
    return int(raw)
