"""Sending an input to a stream, as the routes of all dialects do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request

from ..db import inputs, notifications, retention
from ..db.inputs import Added
from ..db.postgres import translated
from ..db.streams import Stream
from ..errors import IdempotencyConflict, InboxFull, MessageTooLarge, RequestError, StreamEnded
from ..events import encode_object
from .request import found, pod_of, pool_of
from .request_body import readable_bytes

# What becomes of an input that the generator gets: now, or before under the same key.
TAKEN: Final = frozenset({"added", "woken", "repeated"})


async def send(request: Request, stream_id: UUID, data: Any, key: str | None = None) -> tuple[int, bool]:
    """Add an input to a stream, and wake its generator; return the number of the input, and whether it is new.

    Without a `key`, each call adds one. With a key, the same input is added once to each stream.

    Raises:
        IdempotencyConflict: the key has added other content.
        InboxFull: the stream has as many inputs as it may have, or as many bytes of them.
        MessageTooLarge: the input is larger than an event may be.
        StreamEnded: the stream has ended.
        StreamExpired, StreamNotFound, Unavailable: there is no such stream, or no input can be added.
    """
    counts = pod_of(request).metrics.inputs
    try:
        added = await _added(request, stream_id, _encoded(request, data), key)
    except RequestError as error:
        counts.add(error.code)
        raise
    counts.add(added.result)
    assert added.number is not None
    return added.number, added.result != "repeated"


async def _added(request: Request, stream_id: UUID, content: bytes, key: str | None) -> Added:
    pool = pool_of(request, stream_id)
    async with translated(pool):
        stream = await found(request, stream_id)
        await require_room(request, stream, content, key)
        added = await inputs.add(pool, stream_id, content, key)
        if added.result not in TAKEN:
            raise await refusal(request, stream, added)
        await announce(request, stream_id, [added])
    return added


async def announce(request: Request, stream_id: UUID, added: Iterable[Added]) -> None:
    """Wake the generator of a stream that inputs were added to, after their commit."""
    results = {each.result for each in added}
    if "woken" in results:
        await notifications.announce_held(pool_of(request, stream_id))
    elif "added" in results:
        await notifications.announce_input(pool_of(request, stream_id), stream_id)


async def refusal(request: Request, stream: Stream, added: Added) -> RequestError:
    """Return the error for an input that was not added."""
    match added.result:
        case "conflict":
            return IdempotencyConflict(
                "This Idempotency-Key has sent another input to the stream. Use a new key for each new input."
            )
        case "full":
            return InboxFull(f"The stream has {inputs.MOST:,} inputs, and takes no more of them.")
        case "ended":
            # The row that was read before may be older.
            status = stream.status if stream.ended else (await found(request, stream.id)).status
            return StreamEnded(f"The stream has ended as {status}, so nothing can be sent to it.")
    return await retention.absence(pool_of(request, stream.id), stream.id)


async def require_room(request: Request, stream: Stream, content: bytes, key: str | None) -> None:
    """Raise InboxFull if the inputs of a stream, with this one, would have too many bytes."""
    pool, max_bytes = pool_of(request, stream.id), pod_of(request).settings.max_input_bytes
    if not stream.ended and not await inputs.has_room(pool, stream.id, key, len(content), max_bytes):
        raise InboxFull(
            f"The inputs of the stream have {readable_bytes(max_bytes)}, and it takes no more of them.",
            operator=f"the inputs of a stream may have {max_bytes} bytes (BATON_MAX_INPUT_BYTES)",
        )


def _encoded(request: Request, data: Any) -> bytes:
    content = encode_object(data)
    require_size(request, content)
    return content


def require_size(request: Request, content: bytes) -> None:
    """Raise MessageTooLarge if an input, as JSON, is larger than an event may be."""
    pod = pod_of(request)
    max_bytes = pod.settings.max_event_bytes
    if len(content) > max_bytes:
        pod.metrics.rejected["message_bytes"] += 1
        raise MessageTooLarge(
            f"An input may have {readable_bytes(max_bytes)}, and this one has {len(content)} bytes. Send it in parts.",
            operator=f"an input may have {max_bytes} bytes as JSON (BATON_MAX_EVENT_BYTES)",
        )
