"""The end hook of chaos' workers, and the account of what it saved.

The hook inserts a row into a table beside Baton's. So the rows must be the streams that have ended, at any moment: one
for each, with the status and the text of its end. For some streams a worker's first try raises, and what it has
inserted must disappear.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, Final
from uuid import UUID

from ..db.ended_answers import EndedAnswer
from ..db.postgres import Connection, Pool
from .complaint import Complaint

TARGET: Final = f"{__name__}:save"
LONGEST_SECONDS: Final = 0.2
FAILS_OF: Final = 8  # the first try raises for one stream of so many

_TABLE: Final = (
    "CREATE SCHEMA chaos CREATE TABLE saved (stream_id uuid NOT NULL, status text NOT NULL, text text NOT NULL)"
)
_SAVE: Final = "INSERT INTO chaos.saved VALUES ($1, $2, $3)"
_SAVED: Final = """
SELECT s.status, s.hook_failed,
       (SELECT array_agg(ARRAY[a.status, a.text]) FROM chaos.saved AS a WHERE a.stream_id = s.id)
FROM baton.stream AS s WHERE s.id = $1 AND s.status IN ('completed', 'failed', 'cancelled')
"""
# One statement sees one moment. A stream that ended without its hook is marked, and has no row.
_UNLIKE: Final = """
SELECT coalesce(s.id, a.stream_id) AS id, s.status, s.hook_failed, count(a.stream_id) AS rows,
       array_agg(DISTINCT a.status) AS saved
FROM baton.stream AS s FULL JOIN chaos.saved AS a ON a.stream_id = s.id
GROUP BY s.id, a.stream_id, s.status, s.hook_failed
HAVING count(a.stream_id) <> CASE WHEN s.status IN ('completed', 'failed', 'cancelled') AND NOT s.hook_failed THEN 1
                                  ELSE 0 END
    OR bool_or(a.status IS DISTINCT FROM s.status AND a.stream_id IS NOT NULL)
"""
_COUNT: Final = """
SELECT (SELECT count(*) FROM chaos.saved), count(*) FILTER (WHERE hook_failed) FROM baton.stream
"""


class OnPurpose(Exception):
    """The hook fails because chaos wants it to."""


_failed: set[UUID] = set()  # in this process


async def save(connection: Any, answer: EndedAnswer) -> None:
    """Insert the answer's row, and take a while, in which the worker may die."""
    await connection.execute(_SAVE, answer.id, answer.status, answer.text)
    await asyncio.sleep(Random(answer.id.int).uniform(0, LONGEST_SECONDS))
    if answer.id.int % FAILS_OF == 0 and answer.id not in _failed:
        _failed.add(answer.id)
        raise OnPurpose


async def prepare(connection: Connection) -> None:
    """Create the table."""
    await connection.execute(_TABLE)


async def against_log(pool: Pool, stream_id: UUID, status: str, text: str) -> list[Complaint]:
    """Compare what was saved of a stream with the status and the text of its log, if it has ended so."""
    row = await pool.fetchrow(_SAVED, stream_id)
    if row is None or row[0] != status or row[1]:
        return []
    saved = row[2] or []
    if [tuple(item) for item in saved] == [(status, text)]:
        return []
    found = [f"{item[0]} with {len(item[1])} characters" for item in saved]
    return [Complaint("hook", 0, f"the end is {status} with {len(text)} characters; saved: {found}")]


async def unlike(pool: Pool) -> list[tuple[UUID, Complaint]]:
    """Return the streams whose end is not saved exactly once, and saved answers of streams that have not ended."""
    return [
        (row["id"], Complaint("hook", 0, f"status {row['status']}, {row['rows']} rows saved: {row['saved']}"))
        for row in await pool.fetch(_UNLIKE)
    ]


async def counts(pool: Pool) -> tuple[int, int]:
    """Return how many answers were saved, and how many streams ended without the hook."""
    row = await pool.fetchrow(_COUNT)
    assert row is not None
    return row[0], row[1]
