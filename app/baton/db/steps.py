"""The results of steps: functions that a generator calls once for its stream, whichever worker runs it.

A result is inserted once and never updated, and the first one of a key wins. The key is the step's name, the digest of
its arguments, and its occurrence (see `generators.steps`). The insert locks the stream's row, so it waits for a claim,
a requeue or an end of the stream in progress, or that for the insert. So a worker that has lost its stream keeps
nothing, and the next worker finds every result that was kept.

The end of a stream deletes its results. A result that is inserted while its stream ends may stay: `retention` deletes
it later.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from .fence import Fence
from .postgres import Connection
from .streams import CLAIMED

# Of a step: its name, the digest of its arguments, and its occurrence.
Key = tuple[str, bytes, int]

# The lock comes first: without it nothing is inserted.
_KEEP: Final = f"""
WITH claimed AS MATERIALIZED (
    SELECT id FROM baton.stream WHERE id = $1 AND {CLAIMED} FOR SHARE
), kept AS (
    INSERT INTO baton.step (stream_id, name, digest, occurrence, result)
    SELECT id, $4, $5, $6, $7 FROM claimed
    ON CONFLICT DO NOTHING
    RETURNING stream_id
)
SELECT EXISTS (SELECT FROM claimed), EXISTS (SELECT FROM kept)
"""  # noqa: S608

_READ_ONE: Final = """
SELECT result FROM baton.step WHERE stream_id = $1 AND name = $2 AND digest = $3 AND occurrence = $4
"""
_READ: Final = "SELECT name, digest, occurrence, result FROM baton.step WHERE stream_id = $1"
_DELETE: Final = "DELETE FROM baton.step WHERE stream_id = $1"


async def keep(connection: Connection, fence: Fence, key: Key, result: bytes) -> bytes | None:
    """Keep the result of a step; return the result that is kept. None if the claim no longer has the stream."""
    claimed, kept = await connection.fetchrow(_KEEP, *fence, *key, result) or (False, False)
    if kept:
        return result
    # Another insert of this key was first: usually this one, before its reply was lost.
    found: bytes | None = await connection.fetchval(_READ_ONE, fence.stream_id, *key) if claimed else None
    return found


async def read(connection: Connection, stream_id: UUID) -> dict[Key, bytes]:
    """Return all results of a stream's steps."""
    return {(row[0], row[1], row[2]): row[3] for row in await connection.fetch(_READ, stream_id)}


async def delete(connection: Connection, stream_id: UUID) -> None:
    """Delete all results of a stream's steps."""
    await connection.execute(_DELETE, stream_id)
