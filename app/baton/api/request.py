"""What handlers need of a request: its pod and principal, ids and headers; and answers in JSON."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..auth import credentials
from ..db import external_streams, retention, streams
from ..db.postgres import Pool, translated
from ..db.stream_creation import IdempotencyKey
from ..db.streams import Stream
from ..dialects.protocol import Header
from ..errors import InvalidRequest, LogDamaged, RawContent, StreamNotFound, Unavailable
from ..events import STREAM_ID
from ..observability import log_context
from ..pod.pod import Pod
from ..pod.shard import Shard
from ..principal import Principal
from . import problems

_ID: Final = re.compile(STREAM_ID)
_KEY: Final = re.compile("[ -~]{1,255}")


class AsgiResponse(Protocol):
    """An ASGI application that answers one request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def pod_of(request: Request) -> Pod:
    """Return the pod that serves a request.

    Raises:
        Unavailable: it was not started.
    """
    pod: Pod | None = getattr(request.app.state, "pod", None)
    if pod is None:
        raise Unavailable(
            "The service has not been started. Try again in a moment.",
            operator="Baton's app has not started. If another app mounts it, that app's lifespan must enter "
            "`baton_app.router.lifespan_context(baton_app)`.",
        )
    return pod


def shard_of(request: Request, stream_id: UUID) -> Shard:
    """Return the pod's part for the database that has a stream.

    Raises:
        StreamExpired, StreamNotFound, Unavailable: see `Shards.of`.
    """
    return pod_of(request).shards.of(stream_id)


def pool_of(request: Request, stream_id: UUID) -> Pool:
    """Return the pool of the database that has a stream. Raises what `shard_of` raises."""
    return shard_of(request, stream_id).pool


def in_time(request: Request) -> contextlib.AbstractAsyncContextManager[None]:
    """Bound the time of queries to any database, and translate their errors (see `postgres.translated`)."""
    return translated(None, pod_of(request).settings.database_timeout_seconds)


def principal_of(request: Request) -> Principal:
    """Return the caller of a request that `admission` has let in."""
    principal: Principal = request.state.principal
    return principal


async def found(request: Request, stream_id: UUID) -> Stream:
    """Read a stream's row.

    Raises:
        StreamNotFound: this caller has no such stream.
        StreamExpired: it is older than the retention time.
        Unauthenticated: the caller's token has expired, some time after the stream's end.
    """
    log_context.enter_stream(stream_id)
    pool, principal = pool_of(request, stream_id), principal_of(request)
    stream = await streams.get(pool, stream_id)
    if stream is None or not principal.sees(stream.tenant, stream_id):
        raise await retention.absence(pool, stream_id)
    principal.require_in_time(stream.ended_at)
    return stream


async def require_events(request: Request, stream: Stream) -> None:
    """Refuse a stream whose messages are not Baton's events. For one that a worker writes, this reads nothing.

    Raises:
        RawContent: only the Durable Streams protocol reads it.
        StreamNotFound: it has expired.
    """
    if stream.generator != external_streams.GENERATOR:
        return
    external = await external_streams.get(pool_of(request, stream.id), stream.id)
    if external is None:
        raise StreamNotFound(f"There is no stream {stream.id}.")
    if not external.carries_events:
        raise raw_content(stream.id)


def raw_content(stream_id: UUID) -> RawContent:
    """Return the error that says where a stream without events can be read."""
    return RawContent(
        f"The stream {stream_id} has no events that this address could show. Read it at /v1/stream/{stream_id}, "
        "by the Durable Streams protocol."
    )


def charge_rows(request: Request, rows: int) -> None:
    """Charge the caller for the rows that a list read: it can make fewer requests after that."""
    principal = principal_of(request)
    pod_of(request).read_rates.charge_rows(principal.tenant, principal.name, rows)


def damaged(stream_id: UUID) -> LogDamaged:
    """Return the error that says that events are missing."""
    return LogDamaged(
        f"Part of the answer {stream_id} is missing, so it cannot be shown.", operator="its log has a gap"
    )


def parse_stream_id(raw: str) -> UUID:
    """Read the id of a stream from a path.

    Raises:
        StreamNotFound: it is not an id.
    """
    # `UUID` also accepts braces, underscores and the digits of other scripts.
    if not _ID.fullmatch(raw):
        raise StreamNotFound(f"There is no stream {raw!r:.80}: an id looks like 019a5e2c-….")
    return UUID(raw)


def query_of(request: Request, names: Container[str] | None = None) -> dict[str, str]:
    """Return the query, without a token in it.

    `names` are the parameters that the route reads; by default, all. Others may come several times, as SDKs write
    lists (`include=a&include=b`, `include[]=a&include[]=b`): for these, the last value is returned.

    Raises:
        InvalidRequest: a parameter in `names` has two values; a proxy may have read the other one.
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
        InvalidRequest: it appears twice.
    """
    given = request.headers.getlist(name)
    if len(given) > 1:
        raise InvalidRequest(f"Send the header {name} only once.")
    return given[0] if given else None


def accepted_of(request: Request) -> str:
    """Return the media types that a client accepts; an empty string if it names none."""
    return ", ".join(request.headers.getlist("accept"))


def idempotency_key(request: Request, body: bytes) -> IdempotencyKey | None:
    """Return the client's key for this request, if it sends one.

    Raises:
        InvalidRequest: it is too long or empty, or has characters other than printable ASCII.
    """
    key = header_of(request, "Idempotency-Key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequest("An Idempotency-Key has 1 to 255 printable ASCII characters.")
    digest = hashlib.sha256(problems.path_of(request).encode() + b"\n" + body).digest()
    return IdempotencyKey(key, digest, key_lifetime_seconds(request))


def key_lifetime_seconds(request: Request) -> float:
    """Return how long pods remember a key that makes a create idempotent, the client's or one of our own."""
    return pod_of(request).settings.idempotency_hours * 3600


def common_headers(request: Request) -> dict[str, str]:
    """Return the headers of every answer."""
    return problems.answer_headers(pod_of(request))


def stream_headers(
    request: Request, dialect: Sequence[Header], headers: Mapping[str, str] | None = None
) -> list[Header]:
    """Return the headers of a streamed answer, except those of its dialect, in the form of ASGI."""
    known = common_headers(request) | dict(headers or {})
    taken = {name for name, _ in dialect}
    return [pair for name, value in known.items() if (pair := (name.encode(), value.encode()))[0] not in taken]


def json_answer(
    request: Request, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(content), status, common_headers(request) | dict(headers or {}), "application/json")
