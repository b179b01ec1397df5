"""Writes and reads streams with the protocol's Python client, as an application does that must not lose a message.

The client has no idempotent producer, repeats nothing by itself, and knows neither epochs nor `Stream-Closed`. Its
headers may be functions, so the application fences and closes by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from durable_streams import AsyncDurableStream, DurableStreamError, HeadersLike, astream

PAUSE_SECONDS = 0.05


class Fenced(Exception):
    """A producer with a newer epoch has taken over."""


@dataclass(slots=True)
class Producer:
    """Appends one message after the other, each until it is answered."""

    url: str
    content_type: str
    epoch: int
    http: httpx.AsyncClient
    repeated: int = 0
    _seq: int = 0
    _closes: bool = False
    _stream: AsyncDurableStream = field(init=False)

    def __post_init__(self) -> None:
        headers: HeadersLike = {
            "Producer-Id": "writer",
            "Producer-Epoch": str(self.epoch),
            "Producer-Seq": lambda: str(self._seq),
            "Stream-Closed": lambda: str(self._closes).lower(),
        }
        # With batching, a batch that is sent again might have more messages than it had under the same number.
        self._stream = AsyncDurableStream(
            self.url, headers=headers, content_type=self.content_type, client=self.http, batching=False
        )

    async def append(self, message: Any, *, close: bool = False) -> None:
        """Append a message; close the stream with it.

        Raises:
            Fenced: a newer epoch writes.
        """
        self._closes = close
        while True:
            try:
                await self._stream.append(message)
                break
            except ValueError:
                break  # The client demands an offset, which the protocol's answer to a repeated append may leave out.
            except DurableStreamError as error:
                if error.status == 403:
                    raise Fenced from None
                if not _is_passing(error):
                    raise
            except httpx.TransportError:
                pass
            self.repeated += 1
            await asyncio.sleep(PAUSE_SECONDS)
        self._seq += 1


def _is_passing(error: DurableStreamError) -> bool:
    return error.status is None or error.status >= 500 or error.status == 429


async def create(url: str, content_type: str, http: httpx.AsyncClient) -> None:
    """Create a stream. A PUT may be repeated."""
    stream = AsyncDurableStream(url, content_type=content_type, client=http)
    while True:
        try:
            await stream.create_stream(content_type=content_type)
        except (httpx.TransportError, DurableStreamError) as error:
            if isinstance(error, DurableStreamError) and not _is_passing(error):
                raise
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return


async def write(url: str, content_type: str, messages: Sequence[Any], seconds: float, http: httpx.AsyncClient) -> int:
    """Write with a producer, and another one that takes over; the last message closes the stream.

    Returns:
        How often the first producer tried to write after that, and was refused.
    """
    pause, half = seconds / len(messages), len(messages) // 2
    zombie, successor = (Producer(url, content_type, epoch, http) for epoch in (3, 4))
    for message in messages[:half]:
        await zombie.append(message)
        await asyncio.sleep(pause)
    fenced = 0
    for number, message in enumerate(messages[half:-1]):
        await successor.append(message)
        await asyncio.sleep(pause)
        if number < 5:
            try:
                await zombie.append(messages[0])
            except Fenced:
                fenced += 1
    await successor.append(messages[-1], close=True)
    return fenced


class _Ended(Exception):
    """A closed stream has no more."""


async def _raise_at_the_end(response: httpx.Response) -> None:
    if response.status_code == 204 and response.headers.get("stream-closed") == "true":
        raise _Ended


async def read(url: str, live: Literal["long-poll", "sse"], kind: str) -> list[Any]:
    """Read a stream to its end, and continue from the last offset after each cut.

    Returns:
        The messages of JSON, or chunks of text or bytes.
    """
    mode: Literal["json", "bytes", "text"] = "json" if kind in ("json", "events") else "bytes"
    if live == "sse" and mode == "bytes":
        mode = "text"
    taken: list[Any] = []
    offset = "-1"
    # The client itself would ask a closed stream for more, again and again.
    hooks = {"response": [_raise_at_the_end]}
    async with httpx.AsyncClient(timeout=30, trust_env=False, event_hooks=hooks) as http:
        while True:
            try:
                async with astream(url, offset=offset, live=live, client=http) as response:
                    async for event in response.iter_events(mode):
                        taken.extend(event.data if mode == "json" else [event.data])
                        offset = event.next_offset
                if await _is_closed(url, offset, http):
                    return taken
            except _Ended:
                return taken
            except (httpx.TransportError, DurableStreamError) as error:
                if isinstance(error, DurableStreamError) and not _is_passing(error):
                    raise
            await asyncio.sleep(PAUSE_SECONDS)


async def _is_closed(url: str, offset: str, http: httpx.AsyncClient) -> bool:
    """Whether a stream has ended, at this offset."""
    async with astream(url, offset=offset, live=False, client=http) as response:
        return response.headers.get("stream-closed") == "true" and await response.read_bytes() in (b"", b"[]")
