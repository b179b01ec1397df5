"""Helpers for tests of streams that a producer writes: creating them, and appending through queues of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from tests.support.hints import sending

from baton.api import content_types
from baton.db import external_streams
from baton.db.external_appends import Appended, AppendRequest, ProducerClaim, Refused
from baton.db.external_streams import ExternalStream, Kind, NewExternal
from baton.db.postgres import Pool, pool
from baton.db.stream_creation import NewStream
from baton.events import encode_text
from baton.outcome import Outcome
from baton.pod.append_queue import AppendQueue
from baton.settings import Settings

CONTENT_TYPES: dict[Kind, str] = {
    "events": content_types.EVENTS,
    "json": "application/json",
    "text": "text/plain",
    "bytes": "application/octet-stream",
}


async def create(
    connections: Pool, *, kind: Kind = "events", tenant: str = "", stream: NewStream | None = None, **rest: Any
) -> ExternalStream:
    """Create an open stream."""
    new = stream or NewStream("external", None, {}, "fail", tenant)
    return (await external_streams.create(connections, NewExternal(new, kind, CONTENT_TYPES[kind], **rest)))[1]


async def opened(dsn: str, **wanted: Any) -> ExternalStream:
    """Create an open stream, as `create` does, without a pool at hand."""
    async with pool(dsn, size=1, timeout_seconds=10) as connections:
        return await create(connections, **wanted)


@contextlib.asynccontextmanager
async def append_queue(dsn: str, **settings: Any) -> AsyncIterator[AppendQueue]:
    """Run a pod's queue of appends."""
    queue = AppendQueue(Settings(database_url=dsn, **settings), sending(dsn, **settings))
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def texts(*deltas: str) -> list[bytes]:
    """Return text events as lines."""
    return [encode_text(delta) for delta in deltas]


def request(
    stream_id: UUID,
    lines: Sequence[bytes] = (),
    *,
    by: tuple[str, int, int] | None = None,
    outcome: Outcome | None = None,
    stream_seq: str | None = None,
) -> AppendRequest:
    """Return an append, `by` a producer, its epoch and its number."""
    producer = None if by is None else ProducerClaim(*by)
    return AppendRequest(stream_id, lines, len(lines), producer, stream_seq, outcome)


async def append(queue: AppendQueue, stream_id: UUID, lines: Sequence[bytes] = (), **rest: Any) -> Appended:
    """Append; what is refused fails the test."""
    found = await queue.append(request(stream_id, lines, **rest))
    assert not isinstance(found, Refused), found
    return found
