"""The body of a request: reading it, within the limits of the pod, and waiting for a turn to process a large one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from starlette.requests import ClientDisconnect, Request

from ..db import streams
from ..errors import InvalidRequest, RequestError, RequestMemoryFull, RequestTooLarge
from ..events import read_json
from ..pod.pod import Pod
from ..pod.request_bodies import LARGE_BYTES, Body
from ..principal import Principal
from .request import pod_of, pool_of

# How much of a refused body is read and dropped, so that the page that sends it sees the refusal.
_DROPPED_BYTES: Final = 64 << 20
SEND_LESS: Final = (
    "Images and files of earlier messages count with each message: send fewer or smaller ones, or start a new chat."
)


async def read_body(request: Request) -> bytes:
    """Read a body of at most `BATON_MAX_BODY_BYTES`. It counts against the pod's limits until it is released.

    The rest of a refused body is read and dropped, up to a bound: a client that still sends when its connection closes
    sees a lost connection and not the refusal.

    Raises:
        RequestMemoryFull: other requests hold as many bytes as the pod allows, or the turn of this body
            did not come in time.
        RequestTooLarge: the body is larger.
        InvalidRequest: it did not arrive whole.
    """
    pod = pod_of(request)
    max_bytes = pod.settings.max_body_bytes
    body = _body_of(request)
    announced = request.headers.get("content-length", "")
    announced_bytes = int(announced[:20]) if announced.isdecimal() else 0
    parts: list[bytes] = []
    refusal: RequestError | None = None
    try:
        async for part in request.stream():
            if refusal is not None:
                body.size_bytes += len(part)
                if body.size_bytes > max_bytes + _DROPPED_BYTES:
                    break
                continue
            refusal = _refusal(pod, body, len(part), announced_bytes)
            if refusal is None:
                parts.append(part)
            else:
                parts.clear()
                body.release()
    except ClientDisconnect:
        raise InvalidRequest("The body is incomplete: the connection ended before its end.") from None
    if refusal is not None:
        raise refusal
    await body.wait_for_turn(body.size_bytes)
    return b"".join(parts)


def release_body(request: Request) -> None:
    """Stop counting a request's body. A handler that has dropped the body calls it before a long wait."""
    body: Body | None = getattr(request.state, "body", None)
    if body is not None:
        body.release()


@contextlib.asynccontextmanager
async def without_turn(request: Request) -> AsyncIterator[None]:
    """Let other large bodies have their turns within the block, which waits for something other than the processor."""
    body = _body_of(request)
    had_turn = body.give_turn_away()
    yield
    if had_turn:
        await body.wait_for_turn(body.size_bytes)


def turn_of(request: Request) -> Callable[[int], Awaitable[None]]:
    """Return a function that waits for the request's turn to process many bytes. The turn ends with the request."""
    return _body_of(request).wait_for_turn


async def read_input(request: Request, stream_id: UUID) -> Any:
    """Read what a stream was created from; None without such a stream. A large input waits for a turn."""
    pool = pool_of(request, stream_id)
    return await streams.read_input(pool, stream_id, large_bytes=LARGE_BYTES, before_large=turn_of(request))


def parse_json(body: bytes) -> Any:
    """Read a body as JSON. Escaped lone surrogates, which JavaScript sends for a cut emoji, are replaced.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return read_json(body)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None


def readable_bytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / (1 << 20):.4g} MiB" if size >= 1 << 20 else f"{size} bytes"


def _body_of(request: Request) -> Body:
    body: Body | None = getattr(request.state, "body", None)
    if body is None:
        principal: Principal | None = getattr(request.state, "principal", None)
        body = request.state.body = pod_of(request).bodies.open("" if principal is None else principal.tenant)
    return body


def _refusal(pod: Pod, body: Body, size: int, announced_bytes: int) -> RequestError | None:
    """Count the bytes of a body that have arrived. Return the error if they are too many, or too many are announced.

    The size is checked first: a body that is too large must not be sent again, even if there is no room now either.
    """
    max_bytes = pod.settings.max_body_bytes
    if max(body.size_bytes + size, announced_bytes) <= max_bytes:
        try:
            body.grow(size)
        except RequestMemoryFull as error:
            return error
        return None
    pod.metrics.rejected["body_bytes"] += 1
    return RequestTooLarge(
        f"This message is larger than {readable_bytes(max_bytes)} and cannot be sent. {SEND_LESS}",
        operator=f"a body may have {max_bytes} bytes (BATON_MAX_BODY_BYTES)",
    )
