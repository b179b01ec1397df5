"""Gives the databases of an installation their numbers, and records how they share new streams.

`baton migrate` does this once all databases have the newest schema. A database gets its number while it is empty: the
ids of its streams have the number in them.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..database_entries import DatabaseEntry
from ..db import database_identity, placements
from ..db.database_identity import DatabaseIdentity
from ..db.placements import DELAY_SECONDS, Placement
from ..db.postgres import Connection
from ..errors import ConfigurationError

# Creates of streams read the row, and wait for the lock.
_LOCK: Final = "LOCK TABLE baton.database_identity IN ACCESS EXCLUSIVE MODE"
_IS_USED: Final = """
SELECT EXISTS (SELECT FROM baton.stream) OR EXISTS (SELECT FROM baton.placement) OR EXISTS (SELECT FROM baton.retention)
"""
_HAS_STREAMS: Final = "SELECT EXISTS (SELECT FROM baton.stream)"
_ALWAYS: Final = datetime.datetime.fromtimestamp(0, datetime.UTC)
_SET: Final = "UPDATE baton.database_identity SET installation = $1, number = $2"


@dataclass(frozen=True, slots=True)
class NumberedDatabase:
    """A database of the settings, and a connection to it."""

    entry: DatabaseEntry
    connection: Connection


async def number(databases: Sequence[NumberedDatabase]) -> list[str]:
    """Give the databases that are new their numbers; return a line about each.

    Raises:
        ConfigurationError: one that is in use has another number, or belongs to another installation.
    """
    used = {item.entry.name: await _identity(item) for item in databases if await item.connection.fetchval(_IS_USED)}
    database_identity.check_installation(used)
    first = databases[0]
    installation = (
        next((found.installation for found in used.values()), None)
        or (await database_identity.read(first.connection)).installation
    )
    new = [item for item in databases if item.entry.name not in used and await _take_number(item, installation)]
    return [f"The database {item.entry.name!r} has the number {item.entry.number}." for item in new]


async def record_weights(databases: Sequence[NumberedDatabase]) -> str | None:
    """Record the weights of the settings in every database, unless they are in force; return a line about it.

    The first list is in force at once, unless the installation has had one database so far: then that is the list
    before it.
    """
    known = placements.merged([await placements.read(item.connection) for item in databases])
    if not known and await _had_one(databases):
        known = [Placement(uuid.uuid4(), {0: 1}, _ALWAYS)]
    weights = {item.entry.number: item.entry.weight for item in databases}
    if known and known[-1].weights == weights:
        latest, line = known[-1], None
    else:
        now = await placements.now(databases[0].connection)
        delay = datetime.timedelta(seconds=DELAY_SECONDS if known else 0)
        latest = Placement(uuid.uuid4(), weights, now + delay)
        shares = ", ".join(f"{item.entry.name} {item.entry.weight:g}" for item in databases)
        line = f"New streams are shared by these weights, in {delay.seconds} s on every pod: {shares}."
    for item in databases:
        for each in [*known, latest]:
            await placements.write(item.connection, each)
    return line


async def _identity(item: NumberedDatabase) -> DatabaseIdentity:
    return await database_identity.check_number(item.connection, item.entry)


async def _had_one(databases: Sequence[NumberedDatabase]) -> bool:
    return any([await item.connection.fetchval(_HAS_STREAMS) for item in databases if item.entry.number == 0])


async def _take_number(item: NumberedDatabase, installation: UUID) -> bool:
    """Set the identity of a database without streams; return whether that changed it."""
    wanted = DatabaseIdentity(installation, item.entry.number)
    async with item.connection.transaction():
        await item.connection.execute(_LOCK)
        if await database_identity.read(item.connection) == wanted:
            return False
        if await item.connection.fetchval(_IS_USED):
            raise ConfigurationError(
                f"The database {item.entry.name!r} has got streams before it got its number. Run `baton migrate` again."
            )
        await item.connection.execute(_SET, installation, item.entry.number)
    return True
