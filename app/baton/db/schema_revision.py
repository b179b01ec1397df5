"""The revision of the schema: which one a database has, and which ones this code works with."""

from __future__ import annotations

import contextlib
import re
from typing import Final

import asyncpg

from ..errors import ConfigurationError, SchemaMismatch
from .postgres import Connection, Pool

# The revision of the schema that this code works with. A test compares it with the head of `migrations/`.
REVISION: Final = "0028"

_READ: Final = "SELECT version_num FROM baton.alembic_version"
_HAS_TABLES: Final = "SELECT to_regclass('baton.stream') IS NOT NULL"
_OLDEST_CODE: Final = "SELECT oldest_code FROM baton.compatibility"


async def current_revision(executor: Connection | Pool) -> str | None:
    """Return the revision of a database's schema, or None if it has no Baton tables.

    Raises:
        SchemaMismatch: there are tables, but their revision is missing or unknown.
    """
    found: str | None = None
    with contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        found = await executor.fetchval(_READ)
    if found is None:
        if await executor.fetchval(_HAS_TABLES):
            raise SchemaMismatch(
                "The database has Baton's tables, but their revision is missing in baton.alembic_version. Restore the "
                "row from a backup, or insert the newest revision of the version that last migrated the database "
                f"('{REVISION}' for this version)."
            )
        return None
    if not re.fullmatch("[0-9]{4}", found):
        raise SchemaMismatch(
            f"The database's schema is at an unknown revision, {found!r}: Baton's revisions have four digits. Another "
            "program may have written to baton.alembic_version. Restore its row from a backup."
        )
    return found


async def check_schema(executor: Connection | Pool) -> str:
    """Refuse a database whose schema this code cannot work with; return its revision.

    A newer schema is fine if it declares so: during a roll-out, instances of the previous release must be able to
    restart.

    Raises:
        SchemaMismatch: the migrations have not run, this code is too old for the schema, or its revision is unknown.
        ConfigurationError: the role may not read Baton's tables.
    """
    try:
        found = await current_revision(executor)
        newer = found is not None and found > REVISION
        oldest = await executor.fetchval(_OLDEST_CODE) if newer else REVISION
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"The role of BATON_DATABASE_URL may not use Baton's tables: {error}. Connect as one of the roles that "
            "`baton grants` makes; run its SQL again after each `baton migrate`."
        ) from None
    if found is None:
        raise SchemaMismatch("The database has no Baton tables yet. Run `baton migrate` first.")
    if found < REVISION:
        raise SchemaMismatch(
            f"The database's schema is at revision {found}, and this version needs {REVISION}. "
            "Run `baton migrate` first."
        )
    if oldest is None or oldest > REVISION:
        raise SchemaMismatch(
            f"The database's schema is at revision {found} and needs code of revision {oldest} or newer; this version "
            f"has {REVISION}. Run a newer version of Baton."
        )
    return found
