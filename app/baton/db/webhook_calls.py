"""The calls of webhooks that are still to be made, in `baton.webhook_call`.

A trigger on `baton.stream` inserts a call in the transaction that ends a stream with a `webhook`, whatever ends it. A
worker takes the call: it raises `due_at` by a lease, so that another worker takes the call if this one dies. Two
workers may make the same call, one after the other: receivers get each call at least once, always under the same id. A
call is deleted once it has succeeded, or after a bounded time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from ..model_entries import EXTERNAL
from ..snapshot import Snapshot
from . import event_log, streams
from .postgres import Connection
from .streams import Stream

# The limit must choose the rows before they are locked, and only once.
_TAKE: Final = """
WITH due AS MATERIALIZED (
    SELECT stream_id FROM baton.webhook_call
    WHERE due_at <= clock_timestamp() AND split_part(url, '/', 3) <> ALL ($3)
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE baton.webhook_call AS c
SET due_at = clock_timestamp() + make_interval(secs => $2::double precision), tries = c.tries + 1
FROM due WHERE c.stream_id = due.stream_id
RETURNING c.stream_id, c.url, c.tries, extract(epoch FROM clock_timestamp() - c.created_at)::double precision AS age
"""

_DELETE: Final = "DELETE FROM baton.webhook_call WHERE stream_id = ANY ($1)"

_POSTPONE: Final = """
UPDATE baton.webhook_call AS c SET due_at = clock_timestamp() + make_interval(secs => p.seconds), error = p.error
FROM unnest($1::uuid[], $2::double precision[], $3::text[]) AS p (stream_id, seconds, error)
WHERE c.stream_id = p.stream_id
"""

_DELETE_OLD: Final = """
DELETE FROM baton.webhook_call WHERE created_at < clock_timestamp() - make_interval(secs => $1::double precision)
RETURNING stream_id
"""

_KIND: Final = "SELECT kind FROM baton.external_stream WHERE stream_id = $1"


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """A call to make: its URL, how often it was tried, and for how long it is due. `tries` counts this one."""

    stream_id: UUID
    url: str
    tries: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Postponed:
    """A call that failed: when to make it again, and why it failed."""

    seconds: float
    error: str


async def take(
    connection: Connection, most: int, lease_seconds: float, except_hosts: Collection[str] = ()
) -> list[WebhookCall]:
    """Take up to `most` calls that are due; nobody else takes them before the lease ends.

    `except_hosts`: hosts, each as it stands in the URL, whose calls are left for later.
    """
    rows = await connection.fetch(_TAKE, most, lease_seconds, list(except_hosts))
    return [WebhookCall(*row) for row in rows]


async def delete(connection: Connection, stream_ids: Collection[UUID]) -> None:
    """Delete calls that were made, or given up."""
    await connection.execute(_DELETE, list(stream_ids))


async def postpone(connection: Connection, calls: Mapping[UUID, Postponed]) -> None:
    """Make calls due after so many seconds each; 0 makes them due for any worker now."""
    seconds = [item.seconds for item in calls.values()]
    await connection.execute(_POSTPONE, list(calls), seconds, [item.error for item in calls.values()])


async def delete_older(connection: Connection, seconds: float) -> Sequence[UUID]:
    """Delete the calls that no worker could make for this long; return their streams."""
    return [row[0] for row in await connection.fetch(_DELETE_OLD, seconds)]


async def content(connection: Connection, stream_id: UUID, most_text_bytes: int) -> dict[str, Any] | None:
    """Return what a call says about its stream; None if the stream was erased or has expired.

    It is the same at each call. `text` is null if it has more than `most_text_bytes`, or if the stream's content is not
    Baton's events.
    """
    stream = await streams.get(connection, stream_id)
    if stream is None or not stream.ended:
        return None
    text = await _text(connection, stream)
    size = 0 if text is None else len(text.encode())
    return {
        "type": f"stream.{stream.status}",
        "timestamp": _moment(stream.finished_at),
        "data": {**_described(stream), "text": text if size <= most_text_bytes else None, "text_bytes": size},
    }


async def _text(connection: Connection, stream: Stream) -> str | None:
    if stream.generator == EXTERNAL and await connection.fetchval(_KIND, stream.id) != "events":
        return None
    pages = event_log.pages(connection, stream.id)
    lines = [line async for page in pages for batch in page for line in batch.lines]
    return Snapshot.of(lines, len(lines)).text


def _described(stream: Stream) -> dict[str, Any]:
    error = {"code": stream.error_code, "message": stream.error_message}
    return {
        "id": str(stream.id),
        "tenant": stream.tenant,
        "generator": stream.generator,
        "metadata": stream.metadata,
        "status": stream.status,
        "finish_reason": stream.finish_reason,
        "error": None if stream.error_code is None else error,
        "usage": stream.usage,
        "created_at": _moment(stream.created_at),
        "duration_seconds": stream.duration_seconds,
    }


def _moment(moment: Any) -> str:
    return str(moment.isoformat())
