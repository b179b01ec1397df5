"""What operators see of external streams: what they hold, where they are, and who writes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final
from uuid import UUID

from .external_streams import Kind
from .postgres import Connection, Pool

# The most producers of one stream that are named.
MOST_NAMED: Final = 5

_DETAILS: Final = """
SELECT e.stream_id, e.kind, e.path, e.content_type, e.heard_at, e.size_bytes, e.producers,
       ARRAY (SELECT p.producer_id FROM baton.producer AS p WHERE p.stream_id = e.stream_id
              ORDER BY p.producer_id LIMIT $2) AS producer_ids
FROM baton.external_stream AS e WHERE e.stream_id = ANY ($1::uuid[])
"""

_COUNT_OPEN: Final = "SELECT count(*) FROM (SELECT FROM baton.external_stream WHERE NOT closed LIMIT $1) AS open"
MOST_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class ExternalDetails:
    """An external stream for operators. The empty id stands for appends that name no producer."""

    stream_id: UUID
    kind: Kind
    path: str | None  # below `/v1/stream/`; None: its id
    content_type: str
    heard_at: datetime  # when a producer last gave a sign of life
    size_bytes: int
    producers: int
    producer_ids: Sequence[str]  # `MOST_NAMED` at most


async def read(executor: Connection | Pool, stream_ids: Collection[UUID]) -> dict[UUID, ExternalDetails]:
    """Return the details of those streams that are external."""
    if not stream_ids:
        return {}
    rows = await executor.fetch(_DETAILS, list(stream_ids), MOST_NAMED)
    names = [field.name for field in fields(ExternalDetails)]
    return {row["stream_id"]: ExternalDetails(**{name: row[name] for name in names}) for row in rows}


async def count_open(executor: Connection | Pool) -> int:
    """Return how many streams are open; at most `MOST_COUNTED`."""
    found: int = await executor.fetchval(_COUNT_OPEN, MOST_COUNTED)
    return found
