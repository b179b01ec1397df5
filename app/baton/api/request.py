"""What all routes do with a request: find the pod, read the body, and answer with JSON."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..auth import credentials
from ..db import fair_semaphore, retention, streams
from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..dialects.dialect import Header
from ..errors import (
    InvalidRequest,
    LogDamaged,
    ReadRateLimited,
    RequestError,
    RequestMemoryFull,
    RequestTooLarge,
    StreamNotFound,
    Unavailable,
)
from ..events import STREAM_ID, read_json
from ..observability import log_context
from ..pod import read_limits
from ..pod.pod import Pod
from ..pod.request_bodies import LARGE_BYTES, Body
from ..principal import AuthScope, Principal
from . import problems


class Anything(PathConvertor):
    """Matches whatever is in a path, as Starlette's `path` does, and line ends too, which an id may have."""

    regex = r"[\s\S]*"


register_url_convertor("any", Anything())

_ID: Final = re.compile(STREAM_ID)
_KEY: Final = re.compile("[ -~]{1,255}")
# How much of a refused body is read and thrown away, so that the page that sends it sees the refusal.
_READ_ON_BYTES: Final = 64 << 20
SEND_LESS: Final = (
    "Images and files of earlier messages count with each message: send fewer or smaller ones, or begin a new chat."
)


class AsgiResponse(Protocol):
    """An ASGI application that answers one request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


Handler = Callable[[Request], Awaitable[AsgiResponse]]


def answered(
    handler: Handler, scope: AuthScope | None, *, narrow: bool = False, counted: bool | None = None
) -> Handler:
    """Let in who may do this; without a scope, anybody.

    A request that is `counted` takes one of the caller's reads: by default those with a scope, but for creates, which
    have a rate of their own.

    A `narrow` handler looks at the principal's view, and tells no more than that has. From all others, those who may
    not see the whole are kept away.

    A request that the server gives up while the pod leaves, and would answer with 500, is answered here.
    """

    @functools.wraps(handler)
    async def endpoint(request: Request) -> AsgiResponse:
        try:
            if scope is not None:
                principal = await pod_of(request).gate.admit(
                    request.method, request.headers, request.cookies, request.query_params
                )
                principal.require(scope)
                principal.require_view("answer" if narrow else "full")
                request.state.principal = principal
                fair_semaphore.set_tenant(principal.tenant)
                if counted if counted is not None else scope != "create":
                    await _take_read(request)
            return await handler(request)
        except asyncio.CancelledError:
            if not pod_of(request).draining:
                raise
            raise Unavailable("This part of the service is shutting down. Try again.") from None
        finally:
            release_body(request)

    return endpoint


def pod_of(request: Request) -> Pod:
    """Return the pod that serves a request.

    Raises:
        Unavailable: it was not started.
    """
    pod: Pod | None = getattr(request.app.state, "pod", None)
    if pod is None:
        raise Unavailable(
            "The service has not been started. Try again in a moment.",
            operator="Baton has not been started. Where its app is mounted into another, the outer app's lifespan must "
            "enter `baton_app.router.lifespan_context(baton_app)`.",
        )
    return pod


def principal_of(request: Request) -> Principal:
    """Return who makes a request that `answered` has let in."""
    principal: Principal = request.state.principal
    return principal


async def found(request: Request, stream_id: UUID) -> Stream:
    """Read a stream's row.

    Raises:
        StreamNotFound: there is no such stream for this caller.
        StreamExpired: it is older than what is kept.
        Unauthenticated: the caller's token was good until a while after the stream's end.
    """
    log_context.enter_stream(stream_id)
    pool, principal = pod_of(request).pool, principal_of(request)
    stream = await streams.get(pool, stream_id)
    if stream is None or not principal.sees(stream.tenant, stream_id):
        raise await retention.absence(pool, stream_id)
    principal.require_in_time(stream.ended_at)
    return stream


def charge_rows(request: Request, rows: int) -> None:
    """Count what a list cost: its caller can make the fewer requests after it."""
    principal = principal_of(request)
    pod_of(request).reads.charge_rows(principal.tenant, principal.name, rows)


def damaged(stream_id: UUID) -> LogDamaged:
    """Return the error that says that events are missing."""
    return LogDamaged(
        f"A part of the answer {stream_id} is missing, and it cannot be shown.", operator="its log has a gap"
    )


def parse_stream_id(raw: str) -> UUID:
    """Read an id out of a path.

    Raises:
        StreamNotFound: it is none.
    """
    # `UUID` would also read braces, underscores and the digits of other scripts.
    if not _ID.fullmatch(raw):
        raise StreamNotFound(f"There is no stream {raw!r:.80}: an id looks like 019a5e2c-….")
    return UUID(raw)


def query_of(request: Request, names: Container[str] | None = None) -> dict[str, str]:
    """Return the query, without the token that may stand in it.

    `names` are the parameters that the route reads; by default, all. Others may come any number of times, as SDKs
    write lists (`include=a&include=b`, `include[]=a&include[]=b`): of these, the last value is returned.

    Raises:
        InvalidRequest: a parameter in `names` has two values, and a proxy on the way may have read the other one.
    """
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == credentials.QUERY:
            continue
        if query.get(name, value) != value and (names is None or name in names):
            raise InvalidRequest(f"The query has two values for {name!r:.80}. Send one.")
        query[name] = value
    return query


def header_of(request: Request, name: str) -> str | None:
    """Return a header.

    Raises:
        InvalidRequest: it comes twice.
    """
    given = request.headers.getlist(name)
    if len(given) > 1:
        raise InvalidRequest(f"The header {name} can come once only.")
    return given[0] if given else None


def accepted_of(request: Request) -> str:
    """Return the media types that a client accepts; nothing, if it does not say."""
    return ", ".join(request.headers.getlist("accept"))


async def read_body(request: Request) -> bytes:
    """Read a body of at most `BATON_MAX_BODY_BYTES`. It counts among those that the pod holds until it is released.

    What follows of a refused body is read and thrown away, up to a bound: a client that still sends when its connection
    is closed sees a lost connection and not the refusal.

    Raises:
        RequestMemoryFull: the pod holds as much of other requests' bodies as it may.
        RequestTooLarge: it has more.
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
                if body.size_bytes > max_bytes + _READ_ON_BYTES:
                    break
                continue
            refusal = _refusal(pod, body, len(part), announced_bytes)
            if refusal is None:
                parts.append(part)
            else:
                parts.clear()
                body.release()
    except ClientDisconnect:
        raise InvalidRequest("The body did not arrive whole.") from None
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
    """Let other large bodies have their turns within the block, which waits for something else than the processor."""
    body = _body_of(request)
    had_turn = body.give_turn_away()
    yield
    if had_turn:
        await body.wait_for_turn(body.size_bytes)


def turn_of(request: Request) -> Callable[[int], Awaitable[None]]:
    """Return what waits for a request's turn to work on many bytes. The turn lasts until the request is answered."""
    return _body_of(request).wait_for_turn


async def read_input(request: Request, stream_id: UUID) -> Any:
    """Read what a stream was created from, a large input in this request's turn; None if there is no such stream."""
    pool = pod_of(request).pool
    return await streams.read_input(pool, stream_id, large_bytes=LARGE_BYTES, before_large=turn_of(request))


def _body_of(request: Request) -> Body:
    body: Body | None = getattr(request.state, "body", None)
    if body is None:
        principal: Principal | None = getattr(request.state, "principal", None)
        body = request.state.body = pod_of(request).bodies.open("" if principal is None else principal.tenant)
    return body


def _refusal(pod: Pod, body: Body, size: int, announced_bytes: int) -> RequestError | None:
    """Count what has arrived of a body; return the error if that is too much, or if too much is to come.

    A body that is too large would be so again: it is not to be sent again, as one that finds no room is.
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
        f"This is larger than {readable_bytes(max_bytes)}, and cannot be sent. {SEND_LESS}",
        operator=f"a body may have {max_bytes} bytes (BATON_MAX_BODY_BYTES)",
    )


def readable_bytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / (1 << 20):.4g} MiB" if size >= 1 << 20 else f"{size} bytes"


def parse_json(body: bytes) -> Any:
    """Read a body as JSON, with escaped lone surrogates replaced, as JavaScript sends them for a cut emoji.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return read_json(body)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None


async def _take_read(request: Request) -> None:
    """Raise ReadRateLimited unless the caller may make another request now."""
    pod, principal = pod_of(request), principal_of(request)
    wait_seconds = pod.reads.take(principal.tenant, principal.name)
    if wait_seconds is not None:
        pod.metrics.rejected["reads_per_second"] += 1
        await asyncio.sleep(read_limits.REFUSAL_SECONDS)
        rate = pod.reads.rate
        raise ReadRateLimited(
            f"You may make {rate.per_second:g} requests a second here, and {rate.burst} at once after a pause; "
            f"a list counts more, the more rows it looks at. Try again in {wait_seconds} s.",
            wait_seconds,
        )


def idempotency_key(request: Request, body: bytes) -> IdempotencyKey | None:
    """Return the client's own name for this request, where it gives one.

    Raises:
        InvalidRequest: it is too long, or empty, or more than printable ASCII.
    """
    key = header_of(request, "Idempotency-Key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key has 1 to 255 printable ASCII characters.")
    hours = pod_of(request).settings.idempotency_hours
    return IdempotencyKey(key, hashlib.sha256(problems.path_of(request).encode() + b"\n" + body).digest(), hours * 3600)


def common_headers(request: Request) -> dict[str, str]:
    """What every answer carries."""
    return problems.answer_headers(pod_of(request))


def stream_headers(
    request: Request, dialect: Sequence[Header], headers: Mapping[str, str] | None = None
) -> list[Header]:
    """What a stream carries besides the headers of its dialect, as an ASGI server takes them."""
    known = common_headers(request) | dict(headers or {})
    told = {name for name, _ in dialect}
    return [pair for name, value in known.items() if (pair := (name.encode(), value.encode()))[0] not in told]


def json_answer(
    request: Request, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(content), status, common_headers(request) | dict(headers or {}), "application/json")
