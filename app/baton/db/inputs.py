"""The inputs of streams: what people and programs send to an answer that is being written.

A stream's inputs are numbered 1, 2, 3 … in the order of their commits, and kept until the stream ends.
`baton.add_input` adds one: it locks the stream's row, so that a wait that begins at the same moment either sees the
input, or is woken by it (see `stream_waiting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

import orjson

from .postgres import Connection, Pool

# The most inputs of one stream.
MOST: Final = 10_000
# The most that are read at once.
PAGE: Final = 100

_ADD = "SELECT number, result FROM baton.add_input($1, $2, $3, $4)"
_READ = "SELECT n, content, created_at FROM baton.input WHERE stream_id = $1 AND n > $2 ORDER BY n LIMIT $3"
# An input that its key has added before needs no room.
_HAS_ROOM = """
SELECT coalesce(sum(octet_length(content)), 0) + $3 <= $4 OR coalesce(bool_or(key = $2), false)
FROM baton.input WHERE stream_id = $1
"""
_DELETE = "DELETE FROM baton.input WHERE stream_id = $1"

Result: TypeAlias = Literal["added", "woken", "repeated", "conflict", "full", "ended", "missing"]


class Added(NamedTuple):
    """What became of an input, and its number; None if it was not added.

    `woken`: it was added, and the stream waited for it. `repeated`: the same key had added the same content before.
    `conflict`: it had added other content.
    """

    number: int | None
    result: Result


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its number, any JSON, and when it was added."""

    n: int
    data: Any
    created_at: datetime


async def add(executor: Connection | Pool, stream_id: UUID, content: bytes, key: str | None = None) -> Added:
    """Add an input, as JSON, once for each `key`; in a transaction, several are added together."""
    row = await executor.fetchrow(_ADD, stream_id, content, key, MOST)
    assert row is not None
    return Added(*row)


async def has_room(executor: Connection | Pool, stream_id: UUID, key: str | None, size: int, max_bytes: int) -> bool:
    """Whether an input of this size fits into a stream whose inputs may have `max_bytes` in total.

    A small input always fits: `MOST` of them have no more than that. So the total is at most twice as much, and a
    little more if several are added at once.
    """
    if size <= max_bytes // MOST:
        return True
    return bool(await executor.fetchval(_HAS_ROOM, stream_id, key, size, max_bytes))


async def read(executor: Connection | Pool, stream_id: UUID, after: int, most: int = PAGE) -> list[Input]:
    """Read the inputs after a number, in their order."""
    rows = await executor.fetch(_READ, stream_id, after, most)
    return [Input(row[0], orjson.loads(row[1]), row[2]) for row in rows]


async def delete(connection: Connection, stream_id: UUID) -> None:
    """Delete the inputs of a stream."""
    await connection.execute(_DELETE, stream_id)
