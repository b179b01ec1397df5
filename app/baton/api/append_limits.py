"""What bounds appends over HTTP, and what counts them: how fast each caller appends, and how large a message is.

The rate is counted in the memory of each pod, as reads are. How much a stream holds, and how many producers it has, is
decided where appends are (`db.external_appends`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from starlette.requests import Request

from ..db.external_appends import Appended, AppendRequest, Refused
from ..errors import AppendRateLimited, MessageTooLarge, RequestError
from .admission import Handler, take
from .request import AsgiResponse, pod_of
from .request_body import readable_bytes


def counting(handler: Handler) -> Handler:
    """Count the appends that a handler refuses, by their codes."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            return await handler(request)
        except RequestError as error:
            pod_of(request).metrics.appends.note_refused(error.code)
            raise

    return endpoint


async def append(request: Request, wanted: AppendRequest) -> Appended | Refused:
    """Append, and count that.

    Raises:
        Unavailable: see `AppendQueue.append`.
    """
    pod, began = pod_of(request), time.monotonic()
    done = await pod.shards.of(wanted.stream_id).appends.append(wanted)
    if isinstance(done, Appended):
        if done.duplicate:
            pod.metrics.appends.note_duplicate()
        else:
            pod.metrics.appends.note_written(len(wanted.lines), wanted.size_bytes, time.monotonic() - began)
    return done


async def require_append(request: Request) -> None:
    """Take one of the caller's appends. Call it before the body is read, on a route that is not `counted`.

    Raises:
        AppendRateLimited: the caller appends faster than it may on this pod.
    """
    await take(
        request,
        pod_of(request).append_rates,
        "appends_per_second",
        AppendRateLimited,
        lambda rate: (
            f"You may append {rate.per_second:g} times a second, and {rate.burst} times at once after a pause. "
            "Put several messages into one append."
        ),
    )


def require_small(request: Request, lines: Sequence[bytes]) -> None:
    """Refuse a message that is larger than an event may be. `lines` are the messages as the log stores them.

    Raises:
        MessageTooLarge: one of them is.
    """
    max_bytes = pod_of(request).settings.max_event_bytes
    largest = max(map(len, lines), default=0)
    if largest > max_bytes:
        pod_of(request).metrics.rejected["message_bytes"] += 1
        raise MessageTooLarge(
            f"A message may have {readable_bytes(max_bytes)}, and one of these has {largest} bytes as it is stored. "
            "Send it in parts.",
            operator=f"a message may have {max_bytes} bytes (BATON_MAX_EVENT_BYTES)",
        )
