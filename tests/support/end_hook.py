"""An application's end hook, and its table. A stream's metadata says what the hook does for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

import baton
from baton.db.postgres import Connection, Pool

TARGET = "tests.support.end_hook:save"
# A hook that is told so waits for this advisory lock.
GATE = 20_21
TABLE = """
CREATE TABLE saved (stream_id uuid NOT NULL, status text NOT NULL, text text NOT NULL);
CREATE TABLE single (name text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE fault (on_purpose boolean);
INSERT INTO single VALUES ('taken');
"""
_SAVE = "INSERT INTO saved VALUES ($1, $2, $3)"


async def save(connection: asyncpg.Connection[asyncpg.Record], answer: baton.EndedAnswer) -> None:
    """Save the answer, and then do what the stream's metadata asks for."""
    await connection.execute(_SAVE, answer.id, answer.status, answer.text)
    if wanted := str(answer.metadata.get("hook") or ""):
        await _DEEDS[wanted](connection)


async def _wait(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", GATE)


async def _fail(_connection: Connection) -> None:
    raise RuntimeError("no such customer")


async def _fail_while_there_is_a_fault(connection: Connection) -> None:
    if await connection.fetchval("SELECT EXISTS (SELECT FROM fault)"):
        await _fail(connection)


async def _hang(_connection: Connection) -> None:
    await asyncio.Event().wait()


async def _query_forever(connection: Connection) -> None:
    await connection.execute("SELECT pg_sleep(600)")


async def _ignore_cancellation(_connection: Connection) -> None:
    until = asyncio.get_running_loop().time() + 2
    while asyncio.get_running_loop().time() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)


async def _cancel_itself(_connection: Connection) -> None:
    raise asyncio.CancelledError


async def _violate(connection: Connection) -> None:
    await connection.execute("INSERT INTO single VALUES ('taken')")  # which is checked later


async def _swallow(connection: Connection) -> None:
    with contextlib.suppress(asyncpg.UndefinedTableError):
        await connection.execute("SELECT * FROM no_such_table")


async def _close(connection: Connection) -> None:
    await connection.close()


async def _become(connection: Connection) -> None:
    await connection.execute("SET ROLE pg_monitor")


_DEEDS: dict[str, Callable[[Connection], Awaitable[None]]] = {
    "wait": _wait,
    "raise": _fail,
    "raise while there is a fault": _fail_while_there_is_a_fault,
    "hang": _hang,
    "query forever": _query_forever,
    "ignore its cancellation": _ignore_cancellation,
    "cancel itself": _cancel_itself,
    "violate": _violate,
    "swallow": _swallow,
    "close": _close,
    "become another role": _become,
}


async def commit(connection: asyncpg.Connection[asyncpg.Record], _answer: baton.EndedAnswer) -> None:
    """Do what a hook must not."""
    await connection.execute("COMMIT")


def plain(_connection: Any, _answer: Any) -> None:
    """No coroutine function."""


async def of_one(_connection: Any) -> None:
    """A function that cannot be called with two arguments."""


async def saved(executor: Connection | Pool) -> list[tuple[UUID, str, str]]:
    """What the hook has saved, and what is committed."""
    return [tuple(row) for row in await executor.fetch("SELECT * FROM saved ORDER BY stream_id")]


async def unlike(executor: Connection | Pool) -> list[tuple[UUID, str]]:
    """The streams whose end is not saved exactly once, or whose saved answer has no end, and why."""
    rows = await executor.fetch(
        "SELECT coalesce(s.id, a.stream_id), format('%s, saved %s times', s.status, count(a.stream_id)) "
        "FROM baton.stream AS s FULL JOIN saved AS a ON a.stream_id = s.id GROUP BY s.id, a.stream_id, s.status "
        "HAVING count(a.stream_id) <> CASE WHEN s.status IN ('completed', 'failed', 'cancelled') "
        "AND NOT s.hook_failed THEN 1 ELSE 0 END"
    )
    return [tuple(row) for row in rows]
