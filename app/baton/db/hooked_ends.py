"""Ending a stream in one transaction with the application's end hook.

The hook runs first, and the terminal event is appended after it. So the rows of the stream are locked only for the last
moment, however long the hook takes, and the hook locks the application's rows before Baton's, as an application does
that calls Baton in its own transaction. If the end cannot be written, the hook's changes are rolled back with it: its
claim or its place in the log is lost, or another history of the database has begun.

A stream that ends without its hook, because the hook failed too often, is marked by `hook_failed`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from uuid import UUID

from . import ended_answers, event_log
from .ended_answers import EndedAnswer
from .event_log import Append
from .postgres import Connection

Hook: TypeAlias = Callable[[Connection, EndedAnswer], Awaitable[None]]

_MARK: Final = "UPDATE baton.stream SET hook_failed = true WHERE id = $1"
_UNMARK: Final = "UPDATE baton.stream SET hook_failed = false WHERE id = $1 AND hook_failed RETURNING id"
_FAILED: Final = "SELECT id FROM baton.stream WHERE hook_failed AND id > $1 ORDER BY id LIMIT $2"
_COUNT: Final = "SELECT count(*) FROM (SELECT FROM baton.stream WHERE hook_failed LIMIT $1) AS failed"
_NOBODY: Final = UUID(int=0)


class _Undone(Exception):
    """Rolls a transaction back."""


async def append(connection: Connection, item: Append, history: str | None, hook: Hook | None) -> bool:
    """Append a terminal batch in a transaction with the hook; return whether it was written.

    Without a hook the stream is marked as one whose hook failed. What the hook raises is raised.
    """
    try:
        async with connection.transaction():
            if hook is not None:
                answer = await ended_answers.before_append(connection, item)
                if answer is None:
                    return False
                await hook(connection, answer)
            if not await event_log.append(connection, [item], history):
                raise _Undone
            if hook is None:
                await mark_failed(connection, item.stream_id)
    except _Undone:
        return False
    return True


async def mark_failed(connection: Connection, stream_id: UUID) -> None:
    """Mark a stream as one that ended without its hook."""
    await connection.execute(_MARK, stream_id)


async def run_again(connection: Connection, stream_id: UUID, hook: Hook) -> bool:
    """Run the hook of a stream that ended without it, and remove the mark, in one transaction; return whether it ran.

    What the hook raises is raised, and then the mark stays.
    """
    try:
        async with connection.transaction():
            answer = await ended_answers.after_end(connection, stream_id)
            if answer is None:
                return False
            await hook(connection, answer)
            if await connection.fetchval(_UNMARK, stream_id) is None:
                raise _Undone  # another process was faster
    except _Undone:
        return False
    return True


async def failed(connection: Connection, most: int, after: UUID = _NOBODY) -> list[UUID]:
    """Return the streams that ended without their hook, oldest first: up to `most` of those after an id."""
    return [row[0] for row in await connection.fetch(_FAILED, after, most)]


async def count_failed(connection: Connection, most: int) -> int:
    """Return how many streams ended without their hook, `most` at most."""
    found: int = await connection.fetchval(_COUNT, most)
    return found
