"""External streams: the ones that a producer writes over HTTP. Reading their rows beside `baton.stream`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

import asyncpg

from .postgres import Connection, Pool

Kind: TypeAlias = Literal["events", "json", "text", "bytes"]

GENERATOR: Final = "external"

_LASTS: Final = """(e.expires_at IS NULL OR e.expires_at > clock_timestamp())
  AND (e.ttl_seconds IS NULL OR e.used_at + make_interval(secs => e.ttl_seconds) > clock_timestamp())"""


@dataclass(frozen=True, slots=True)
class ExternalStream:
    """The row of an external stream. The fields have the names of the columns."""

    stream_id: UUID
    tenant: str
    path: str | None  # below `/v1/stream/`; None: its id
    kind: Kind
    content_type: str
    ttl_seconds: int | None
    expires_at: datetime | None
    used_at: datetime
    tail: int  # the number of the last event; of the last message, if it is not of the kind `events`
    size_bytes: int
    tokens: int
    first_token_at: datetime | None
    heard_at: datetime
    stream_seq: str | None
    producers: int
    closed: bool
    closed_by: str | None

    @property
    def carries_events(self) -> bool:
        """Whether its messages are Baton's events, so that every dialect can show it."""
        return self.kind == "events"


_COLUMNS: Final = ", ".join(f"e.{field.name}" for field in fields(ExternalStream))
_FIND = f"SELECT {_COLUMNS} FROM baton.external_stream AS e WHERE e.tenant = $1 AND e.path = $2 AND {_LASTS}"  # noqa: S608
_GET = f"SELECT {_COLUMNS} FROM baton.external_stream AS e WHERE e.stream_id = $1 AND {_LASTS}"  # noqa: S608
# A row for each read would cost more than the read, so it is written only once a tenth of the TTL has passed.
_TOUCH = """
UPDATE baton.external_stream SET used_at = clock_timestamp()
WHERE stream_id = $1 AND used_at + make_interval(secs => ttl_seconds / 10.0) < clock_timestamp()
"""


async def find(executor: Connection | Pool, tenant: str, path: str) -> ExternalStream | None:
    """Return the stream at a tenant's path; None if there is none, or if it has expired."""
    return _row(await executor.fetchrow(_FIND, tenant, path))


async def get(executor: Connection | Pool, stream_id: UUID) -> ExternalStream | None:
    """Return the row of an external stream; None if it is none, or if it has expired."""
    return _row(await executor.fetchrow(_GET, stream_id))


async def touch(pool: Pool, external: ExternalStream) -> None:
    """Note that a stream with a TTL was read, so that its TTL starts again."""
    if external.ttl_seconds is not None:
        await pool.execute(_TOUCH, external.stream_id)


def _row(row: asyncpg.Record | None) -> ExternalStream | None:
    return None if row is None else ExternalStream(**dict(row))
