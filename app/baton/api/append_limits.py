"""What bounds appends over HTTP: how fast each caller appends, and how much one stream may hold.

The rate is counted in the memory of each pod, as reads are. The sizes are compared with the stream as this pod last
read it, so appends that several pods accept at the same moment may exceed a limit by what they bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from starlette.requests import Request

from ..errors import AppendRateLimited, MessageTooLarge, StreamFull, TooManyProducers
from ..pod import read_limits
from .request import pod_of, principal_of
from .request_body import readable_bytes

# Each has a row until its stream is deleted, and any name of a producer adds one.
MOST_PRODUCERS: Final = 1000


class Written(Protocol):
    """A stream that is written over HTTP, as this pod knows it: see `db.external_streams`."""

    @property
    def tail(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def producers(self) -> int: ...


async def require_append(request: Request) -> None:
    """Take one of the caller's appends. Call it before the body is read, on a route that is not `counted`.

    Raises:
        AppendRateLimited: the caller appends faster than it may on this pod.
    """
    pod, principal = pod_of(request), principal_of(request)
    wait_seconds = pod.append_rates.take(principal.tenant, principal.name)
    if wait_seconds is not None:
        pod.metrics.rejected["appends_per_second"] += 1
        await asyncio.sleep(read_limits.REFUSAL_SECONDS)
        rate = pod.append_rates.rate
        raise AppendRateLimited(
            f"You may append {rate.per_second:g} times a second, and {rate.burst} times at once after a pause. Put "
            f"several messages into one append. Try again in {wait_seconds} s.",
            wait_seconds,
        )


def require_room(request: Request, stream: Written, lines: Sequence[bytes]) -> None:
    """Refuse what a stream has no room for. `lines` are its new lines in the log.

    Raises:
        MessageTooLarge: one of them is larger than an event may be.
        StreamFull: with them the stream would have more bytes or events than it may.
    """
    pod = pod_of(request)
    settings = pod.settings
    largest = max(map(len, lines), default=0)
    if largest > settings.max_event_bytes:
        pod.metrics.rejected["message_bytes"] += 1
        raise MessageTooLarge(
            f"A message may have {readable_bytes(settings.max_event_bytes)}, and this one has {largest} as it is "
            "stored. Send it in parts.",
            operator=f"a message may have {settings.max_event_bytes} bytes (BATON_MAX_EVENT_BYTES)",
        )
    size_bytes = stream.size_bytes + sum(map(len, lines))
    if size_bytes > settings.max_external_bytes or stream.tail + len(lines) > settings.max_stream_events:
        pod.metrics.rejected["external_bytes"] += 1
        raise StreamFull(
            "The stream has no room for this. Close it, and continue in a new stream.",
            operator=f"a stream may have {settings.max_external_bytes} bytes (BATON_MAX_EXTERNAL_BYTES) and "
            f"{settings.max_stream_events} events (BATON_MAX_STREAM_EVENTS)",
        )


def require_producer(request: Request, stream: Written) -> None:
    """Refuse another producer of a stream that has as many as it may. Call it for one that has no row yet.

    Raises:
        TooManyProducers: the stream has too many.
    """
    if stream.producers >= MOST_PRODUCERS:
        pod_of(request).metrics.rejected["producers"] += 1
        raise TooManyProducers(
            f"The stream has {MOST_PRODUCERS} producers, and can have no more. Keep one Producer-Id for all appends of "
            "a producer; raise its Producer-Epoch when it starts again."
        )
