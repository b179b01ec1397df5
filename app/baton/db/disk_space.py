"""Whether the server's disk has room: Postgres has no function for it, so it is made to write a temporary file.

A set that outgrows `work_mem` is written to a file next to the database's tables, and removed with the statement. This
needs no privilege, leaves nothing behind, and writes nothing to the WAL. It works on a standby, too.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from .postgres import Connection

# The file goes to the tablespace of the database, even if the role's temporary files normally go elsewhere.
_SPILL: Final = "SET LOCAL work_mem = '64kB'; SET LOCAL temp_tablespaces = ''"
_ROWS: Final = "SELECT count(*) FROM string_to_table(repeat(repeat('x', 1023) || ',', $1::integer * 1024), ',')"


async def has_room(connection: Connection, megabytes: int = 1) -> bool:
    """Return whether this many megabytes fit on the disk, or true if a limit of the role prevents the test."""
    try:
        async with connection.transaction(readonly=True):
            await connection.execute(_SPILL)
            await connection.fetchval(_ROWS, megabytes)
    except asyncpg.DiskFullError:
        return False
    except asyncpg.ConfigurationLimitExceededError:
        return True
    return True
