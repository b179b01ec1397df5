"""Run a command that does one thing over one database connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from ..db.postgres import Connection, connect
from ..db.schema_revision import check_schema
from ..errors import ConfigurationError
from ..settings import Settings

Result = TypeVar("Result")

# How the roles of BATON_DATABASE_URL are named in errors.
MIGRATING_ROLE: Final = "the role of `baton migrate`"
ANY_ROLE: Final = "one of the roles that `baton grants` makes"


def run_over_connection(
    settings: Settings, work: Callable[[Connection], Awaitable[Result]], *, name: str, role: str
) -> Result:
    """Open a connection, check the schema, do the work, and return its result.

    `name` is the connection's application name. `role` is the role to connect as, for the error if this one may not.

    Raises:
        ConfigurationError: the database cannot be reached or used, or refuses.
    """
    return asyncio.run(_run(settings, work, name, role))


async def _run(settings: Settings, work: Callable[[Connection], Awaitable[Result]], name: str, role: str) -> Result:
    connection = await connect(settings.dsn, name=name, prepare=settings.prepare)
    try:
        await check_schema(connection)
        return await work(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"The role of BATON_DATABASE_URL may not do this: {error}. Connect as {role}."
        ) from None
    except asyncpg.PostgresError as error:
        raise ConfigurationError(f"The database refused: {error}.") from error
    finally:
        connection.terminate()
