"""What a stream's id says: when the stream was created, and the number of the database that has it.

The first 48 bits are milliseconds since 1970 on the database's clock. In the database with the number 0, which is the
only one of most installations, an id is a UUIDv7. In the others it is a UUIDv8, whose 12 bits after the version are the
database's number. Ids of both kinds sort by time. `baton.new_stream_id()` makes them (see `schema.tables`).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

MAX_NUMBER: Final = 0xFFF

# The versions.
_ONLY: Final = 7
_NUMBERED: Final = 8


def first_id(moment: float) -> UUID:
    """Return the smallest id that a stream created at `moment` (seconds since 1970) can have."""
    return UUID(int=int(moment * 1000) << 80)


def moment_of(stream_id: UUID) -> float:
    """Return when a stream was created, in seconds since 1970."""
    return (stream_id.int >> 80) / 1000


def is_of_stream(stream_id: UUID) -> bool:
    """Whether an id may be a stream's. Ids that clients make up at random are of another version."""
    return stream_id.version in {_ONLY, _NUMBERED}


def number_of(stream_id: UUID) -> int:
    """Return the number of the database that has the stream."""
    high = stream_id.int >> 64
    return high & MAX_NUMBER if (high >> 12) & 0xF == _NUMBERED else 0
