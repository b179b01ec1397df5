"""Brings a database to this version's schema, and creates the partitions ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from . import partitions
from .database import Connection, connect
from .errors import ConfigurationError

# Any constant will do, as long as nobody else in the database uses it.
_ADVISORY_LOCK = 0x6261_746F_6E31


async def migrate(dsn: str, *, days_ahead: int, say: Callable[[str], None] = lambda _line: None) -> None:
    """Run the migrations that are missing, then create partitions up to `days_ahead` days from today.

    Concurrent calls wait for each other.

    Raises:
        DatabaseUnreachable: there is no connection to be had.
        ConfigurationError: Postgres refuses a migration, for want of rights for instance.
    """
    connection = await connect(dsn, timeout_seconds=60, name="baton migrate")
    try:
        async with _alone(connection, say):
            with _refusals():
                await upgrade(dsn)
                for name in await partitions.create_ahead(connection, days_ahead):
                    say(f"Created partition {name}.")
    finally:
        await connection.close()


async def upgrade(dsn: str, revision: str = "head") -> None:
    """Run Alembic's upgrade to `revision`."""

    def run(connection: SyncConnection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    async with engine(dsn) as own, own.connect() as connection:
        await connection.run_sync(run)


def alembic_config() -> Config:
    """Alembic's configuration for the migrations that came with this package."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def migrations_folder() -> Path:
    """Where the migrations are: inside the installed package, or at the top of a checkout.

    Raises:
        ConfigurationError: they are in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "migrations", package.parent.parent / "migrations"):
        if (folder / "env.py").exists():
            return folder
    raise ConfigurationError("The migrations did not come with this installation of Baton. Install it again.")


@contextlib.asynccontextmanager
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Open an SQLAlchemy engine whose connections asyncpg makes, so that one parser reads all DSNs."""
    opened = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: connect(dsn, timeout_seconds=60), poolclass=NullPool
    )
    try:
        yield opened
    finally:
        await opened.dispose()


@contextlib.asynccontextmanager
async def _alone(connection: Connection, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the advisory lock of migrations.

    It is polled for: a session that waits inside `pg_advisory_lock` holds a snapshot, and a concurrent index build in
    the session that has the lock waits for all snapshots to end.
    """
    waited = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _ADVISORY_LOCK):
        if not waited:
            say("Another `baton migrate` is at work; waiting for it.")
            waited = True
        await asyncio.sleep(0.5)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say in one sentence what Postgres refused. SQLAlchemy wraps what the driver raised, twice."""
    try:
        yield
    except (DBAPIError, asyncpg.PostgresError) as error:
        reason: BaseException = error
        if isinstance(error, DBAPIError) and error.orig is not None:
            reason = error.orig.__cause__ or error.orig
        advice = ""
        if isinstance(reason, asyncpg.InsufficientPrivilegeError):
            advice = " `baton migrate` needs a role that owns the schema `baton`, or may create it: see `baton grants`."
        raise ConfigurationError(f"The migrations could not run: {reason}.{advice}") from error
