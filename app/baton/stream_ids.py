"""Times in stream ids: an id is a UUIDv7, whose first 48 bits are milliseconds since 1970 on the database's clock."""

from __future__ import annotations

from uuid import UUID


def first_id(moment: float) -> UUID:
    """Return the smallest id that a stream created at `moment` (seconds since 1970) can have."""
    return UUID(int=int(moment * 1000) << 80)


def moment_of(stream_id: UUID) -> float:
    """Return when a stream was created, in seconds since 1970."""
    return (stream_id.int >> 80) / 1000
