"""What the checks over several databases need to know of each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from ..auth import all_keys
from ..auth.all_keys import Rows
from ..database_entries import DatabaseEntry
from ..db import database_identity, placements
from ..db.database_identity import DatabaseIdentity
from ..db.placements import Placement
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..errors import ConfigurationError
from ..settings import Settings
from .finding import Thresholds

MOST_COUNTED: Final = 10_000

_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::double precision"
# Those that have not expired, or have not ended.
_STREAMS: Final = f"""
SELECT count(*) FROM (
    SELECT FROM baton.stream
    WHERE status NOT IN ('completed', 'failed', 'cancelled')
       OR id >= coalesce((SELECT expired_before FROM baton.retention), '00000000-0000-0000-0000-000000000000'::uuid)
    LIMIT {MOST_COUNTED}
) AS counted
"""  # noqa: S608
_NEWEST: Final = "SELECT id FROM baton.stream ORDER BY id DESC LIMIT 1"
_CALLS: Final = f"SELECT count(*) FROM (SELECT FROM baton.webhook_call LIMIT {MOST_COUNTED}) AS counted"  # noqa: S608
_WORKERS: Final = """
SELECT count(*) FROM baton.worker WHERE heartbeat_at > clock_timestamp() - make_interval(secs => $1)
"""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One database, as it answered."""

    entry: DatabaseEntry
    identity: DatabaseIdentity
    placements: Sequence[Placement]
    keys: Rows | None  # None: the role may not read them
    clock_ahead_seconds: float  # of this machine's clock
    clock_uncertain_seconds: float
    streams: int  # at most MOST_COUNTED
    newest: UUID | None
    webhook_calls: int  # that are to be made; at most MOST_COUNTED
    live_workers: int


async def read(
    settings: Settings, entry: DatabaseEntry, thresholds: Thresholds, clock: Callable[[], float]
) -> DatabaseFacts | str:
    """Read the facts of a database; return why not if it does not answer, or has another schema."""
    try:
        connection = await connect(
            settings.dsn, timeout_seconds=thresholds.answer_seconds, name="baton doctor", prepare=settings.prepare
        )
    except ConfigurationError:
        return "it is unreachable"
    try:
        return await _read(connection, settings, entry, clock)
    except (ConfigurationError, *CONNECTION_ERRORS, asyncpg.PostgresError) as problem:
        return str(problem) or f"no answer within {thresholds.answer_seconds:g} s"
    finally:
        connection.terminate()


async def _read(
    connection: Connection, settings: Settings, entry: DatabaseEntry, clock: Callable[[], float]
) -> DatabaseFacts:
    before = clock()
    theirs = await connection.fetchval(_CLOCK)
    after = clock()
    return DatabaseFacts(
        entry,
        await database_identity.read(connection),
        await placements.read(connection),
        await _keys(connection),
        theirs - (before + after) / 2,
        (after - before) / 2,
        await connection.fetchval(_STREAMS),
        await connection.fetchval(_NEWEST),
        await connection.fetchval(_CALLS),
        await connection.fetchval(_WORKERS, settings.lease_seconds),
    )


async def _keys(connection: Connection) -> Rows | None:
    try:
        return await all_keys.read(connection)
    except asyncpg.InsufficientPrivilegeError:
        return None
