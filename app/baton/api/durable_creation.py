"""Creating streams at paths by the Durable Streams protocol, with messages or without.

A repeated `PUT` finds the stream of the first, unless it asks for another one.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from ..db.external_streams import ExternalStream, NewExternal
from ..db.stream_creation import Limits
from ..errors import (
    CreateRateLimited,
    ForksNotSupported,
    OlderCodeRunning,
    PathTaken,
    StreamFull,
    SubscriptionsNotSupported,
    TooManyQueries,
    TooManyStreams,
)
from . import content_types, external_creation, path_prefix
from .content_types import ContentType
from .durable_headers import CLOSED, EXPIRES_AT, FORK_HEADERS, STREAM_ID, TTL, Lifetime, lifetime, require_plain
from .durable_paths import PATH, ROUTE, is_id, stream_path
from .durable_writing import BODY, CLOSES, NUMBER, SENDING, STATE, STRING, messages_of, outcome_of, state
from .refusals import GUARDED
from .request import AsgiResponse, common_headers, header_of, pod_of, principal_of
from .request_body import read_body
from .routing import AnswerHeader, Parameter, Returns, Routes

_UNQUOTED: Final = "/-._~!$&'()*+,;=:@"

_LIFETIME: Final = (
    Parameter(TTL, "header", "Keep the stream for this many seconds after it was last read or written.", NUMBER),
    Parameter(EXPIRES_AT, "header", "Keep the stream until this time (RFC 3339).", {**STRING, "format": "date-time"}),
)
_CREATED: Final = (
    AnswerHeader("location", "The address of the stream."),
    AnswerHeader(STREAM_ID, "The id of the stream, by which other APIs know it."),
    *STATE,
)

ROUTES: Final = Routes("Durable Streams", path=PATH)


@ROUTES.route(
    "PUT",
    ROUTE,
    "produce",
    {
        200: Returns("The stream is there, with this content type and lifetime.", {}, _CREATED),
        201: Returns("The new stream.", {}, _CREATED),
    },
    refusals=(
        *GUARDED,
        *SENDING,
        TooManyQueries,
        PathTaken,
        ForksNotSupported,
        SubscriptionsNotSupported,
        CreateRateLimited,
        TooManyStreams,
        OlderCodeRunning,
    ),
    parameters=(CLOSES, *_LIFETIME),
    content=f"{BODY} Without a content type they are bytes.",
    counted=False,
)
async def put_stream(request: Request) -> AsgiResponse:
    """Create a stream at a path, with messages or without; doing it again changes nothing."""
    path = stream_path(request)
    principal_of(request).require_tenant()
    _require_no_fork(request)
    if is_id(path):
        raise PathTaken(f"The path {path!r:.80} has the form of a stream's id. Choose another one.")
    require_plain(header_of(request, "Content-Encoding"))
    wanted = _lifetime(request)
    raw_type = (header_of(request, "Content-Type") or "").strip() or content_types.DEFAULT
    content_type = content_types.parse(raw_type)
    found = await messages_of(request, content_type, await read_body(request))
    new = NewExternal(
        external_creation.new_stream(request, _limits(request, content_type)),
        content_type.kind,
        raw_type,
        path,
        wanted.ttl_seconds,
        wanted.expires_at,
        found.lines,
        found.tokens,
        outcome_of(request, found),
    )
    _require_room(request, new)
    _, external, created = await external_creation.create(request, new)
    if not created:
        _require_equal(external, content_type, new)
    headers = common_headers(request) | state(external.stream_id, external.tail, closed=external.closed)
    headers |= {"location": _address(request, path), "content-type": external.content_type}
    headers[STREAM_ID] = str(external.stream_id)
    return Response(status_code=201 if created else 200, headers=headers)


def _require_no_fork(request: Request) -> None:
    """Raise ForksNotSupported if the request creates a fork."""
    if any(name in request.headers for name in FORK_HEADERS):
        raise ForksNotSupported("Baton cannot create a stream as a fork of another one.")


def _lifetime(request: Request) -> Lifetime:
    return lifetime(header_of(request, TTL), header_of(request, EXPIRES_AT))


def _limits(request: Request, content_type: ContentType) -> Limits:
    """Return what bounds a new stream. One without events has no viewers that wait for an answer."""
    unwatched = pod_of(request).settings.cancel_when_unwatched_seconds if content_type.kind == "events" else None
    return Limits(unwatched_timeout=unwatched)


def _require_room(request: Request, new: NewExternal) -> None:
    """Raise StreamFull if the first messages are more than a stream may have."""
    max_bytes = pod_of(request).settings.max_external_bytes
    if sum(map(len, new.lines)) > max_bytes:
        raise StreamFull(
            "A stream has no room for these messages.",
            operator=f"a stream may have {max_bytes} bytes (BATON_MAX_EXTERNAL_BYTES)",
        )


def _require_equal(external: ExternalStream, content_type: ContentType, new: NewExternal) -> None:
    """Raise PathTaken unless the stream that is there is as the request wants it."""
    differences = {
        f"content type ({external.content_type})": content_types.parse(external.content_type) != content_type,
        TTL: external.ttl_seconds != new.ttl_seconds,
        EXPIRES_AT: external.expires_at != new.expires_at,
        CLOSED: external.closed != (new.outcome is not None),
    }
    if found := [name for name, differs in differences.items() if differs]:
        raise PathTaken(f"There is a stream at this path already, with another {', another '.join(found)}.")


def _address(request: Request, path: str) -> str:
    """Return the address of a path. The protocol wants it absolute, unlike Baton's other addresses."""
    settings = pod_of(request).settings
    origin, prefix = path_prefix.origin(request.scope, settings), path_prefix.before(request.scope, settings)
    return f"{origin}{prefix}/v1/stream/{quote(path, safe=_UNQUOTED)}"
