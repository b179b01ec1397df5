"""Run a command that does one thing over one connection: to the only database, to one of several, or to each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeVar

import asyncpg

from ..db import database_identity
from ..db.named_errors import naming
from ..db.postgres import CONNECTION_ERRORS, Connection, connect
from ..db.schema_revision import check_schema
from ..errors import ConfigurationError, DatabaseUnreachable
from .each_database import EachDatabase, OneDatabase

Result = TypeVar("Result")

# How the roles of BATON_DATABASE_URL are named in errors.
MIGRATING_ROLE: Final = "the role of `baton migrate`"
ANY_ROLE: Final = "one of the roles that `baton grants` makes"


def run_over_connection(
    database: OneDatabase, work: Callable[[Connection], Awaitable[Result]], *, name: str, role: str
) -> Result:
    """Open a connection, check what it leads to, do the work, and return its result.

    `name` is the connection's application name. `role` is the role to connect as, for the error if this one may not.

    Raises:
        ConfigurationError: the database cannot be reached or used, or refuses.
    """
    return asyncio.run(over_connection(database, work, name=name, role=role))


def run_over_each(
    each: EachDatabase, work: Callable[[Connection], Awaitable[Result]], *, name: str, role: str
) -> dict[str, Result]:
    """Do the same for each database at once; return the results by the names of the databases.

    Raises:
        ConfigurationError: the work failed for the only database.
    """
    return asyncio.run(each.run(lambda database: over_connection(database, work, name=name, role=role), at_once=True))


async def over_connection(
    database: OneDatabase, work: Callable[[Connection], Awaitable[Result]], *, name: str, role: str
) -> Result:
    """Do the work over a connection of its own: see `run_over_connection`."""
    async with connected(database, name=name, role=role) as connection:
        with refusals(database, role):
            return await work(connection)


@contextlib.asynccontextmanager
async def connected(database: OneDatabase, *, name: str, role: str) -> AsyncIterator[Connection]:
    """Open a connection, and check the schema. Of several databases, check the number as well.

    Raises:
        ConfigurationError: the database cannot be reached or used, or is another one than the settings say.
    """
    with naming(database.entry):
        connection = await connect(database.settings.dsn, name=name, prepare=database.settings.prepare)
    try:
        with refusals(database, role):
            await check_schema(connection)
            if database.name:
                await database_identity.check_number(connection, database.entry)
        yield connection
    finally:
        connection.terminate()


@contextlib.contextmanager
def refusals(database: OneDatabase, role: str) -> Iterator[None]:
    """Turn what Postgres or the driver raises into one sentence that names the database, if it has a name."""
    with naming(database.entry):
        try:
            yield
        except asyncpg.InsufficientPrivilegeError as error:
            raise ConfigurationError(
                f"The role of BATON_DATABASE_URL may not do this: {error}. Connect as {role}."
            ) from None
        except asyncpg.PostgresError as error:
            raise ConfigurationError(f"The database refused: {error}.") from error
        except CONNECTION_ERRORS as error:
            raise DatabaseUnreachable(f"The connection to the database was lost: {error!r}.") from error
