"""Which stream a path below `/v1/stream/` names, for the routes of the Durable Streams protocol.

A path belongs to a tenant. One that is a stream's id names that stream, whoever writes it, so that every stream can be
read by the protocol. What the protocol reserves for subscriptions is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

from starlette.requests import Request

from ..db import external_streams
from ..db.external_streams import ExternalStream, Kind
from ..db.streams import Stream
from ..errors import InvalidRequest, StreamNotFound, SubscriptionsNotSupported
from . import across_databases, content_types
from .durable_headers import EXPIRES_AT, TTL
from .request import found, in_time, pool_of, principal_of

ROUTE: Final = "/v1/stream/{path:any}"
PATH: Final[dict[str, Any]] = {
    "path": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "A path, or a stream's id."}
}
MAX_PATH_BYTES: Final = 1024

# Ids of streams are of these versions. Applications may name paths by UUIDs of others, and by digests.
_ID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_RESERVED: Final = "__ds"


@dataclass(frozen=True, slots=True)
class Addressed:
    """The stream that a path names. `external` is None if a worker writes it."""

    stream: Stream
    external: ExternalStream | None

    @property
    def kind(self) -> Kind:
        """What its messages are."""
        return "events" if self.external is None else self.external.kind

    @property
    def content_type(self) -> str:
        """The content type of what is read."""
        return content_types.EVENTS if self.external is None else self.external.content_type

    @property
    def lifetime_headers(self) -> dict[str, str]:
        """Headers that say how long it is kept, if its creator limited that."""
        external = self.external
        headers = {}
        if external is not None and external.ttl_seconds is not None:
            headers[TTL] = str(external.ttl_seconds)
        if external is not None and external.expires_at is not None:
            headers[EXPIRES_AT] = external.expires_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return headers


def stream_path(request: Request) -> str:
    """Return the path below `/v1/stream/`.

    Raises:
        InvalidRequest: it is too long or empty, is not UTF-8, or has a character that cannot be stored.
        SubscriptionsNotSupported: the protocol reserves it.
    """
    path: str = request.path_params["path"]
    if path == _RESERVED or path.startswith(f"{_RESERVED}/"):
        raise SubscriptionsNotSupported("Baton has no subscriptions of the Durable Streams protocol.")
    if not 0 < len(path.encode(errors="replace")) <= MAX_PATH_BYTES or "\0" in path:
        raise InvalidRequest(f"The path of a stream has 1 to {MAX_PATH_BYTES} bytes, and no NUL.")
    if "\ufffd" in path and not _is_utf_8(request):
        raise InvalidRequest("The path of a stream is percent-encoded UTF-8.")
    return path


def _is_utf_8(request: Request) -> bool:
    """Whether the path is valid. In the scope each invalid byte is U+FFFD, so different paths would be one."""
    try:
        unquote_to_bytes(request.scope.get("raw_path", b"")).decode()
    except UnicodeDecodeError:
        return False
    return True


def is_id(path: str) -> bool:
    """Whether a path can only be the id of a stream."""
    return _ID.fullmatch(path) is not None


async def addressed(request: Request) -> Addressed:
    """Find the stream that the request's path names, for this caller.

    Raises:
        StreamNotFound: the caller's tenant has none there, or it has expired.
        StreamExpired: the path is the id of a stream that is older than the retention time.
        InvalidRequest, SubscriptionsNotSupported: see `stream_path`.
        Unauthenticated: the caller's token has expired, some time after the stream's end.
        Unavailable: the database does not answer.
    """
    path = stream_path(request)
    async with in_time(request):
        if is_id(path):
            return await _by_id(request, UUID(path))
        principal = principal_of(request)
        external = await across_databases.first(
            across_databases.homes_of_path(request, path),
            lambda shard: external_streams.find(shard.pool, principal.tenant, path),
        )
        # A token must not learn of other streams than its own.
        if external is None or not principal.sees(external.tenant, external.stream_id):
            raise StreamNotFound(f"There is no stream at the path {path!r:.80}.")
        return Addressed(await found(request, external.stream_id), external)


async def _by_id(request: Request, stream_id: UUID) -> Addressed:
    stream = await found(request, stream_id)
    if stream.generator != external_streams.GENERATOR:
        return Addressed(stream, None)
    external = await external_streams.get(pool_of(request, stream_id), stream_id)
    if external is None:
        raise StreamNotFound(f"The stream {stream_id} has expired.")
    return Addressed(stream, external)
