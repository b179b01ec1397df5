"""Migrates a database to this version's schema while pods and workers keep running, and creates partitions ahead.

A session that waits for a lock blocks every session queued behind it. So a revision waits only for a moment
(`lock_timeout`). Then it is rolled back and retried after a pause, until it succeeds or `give_up_seconds` have passed.
Each revision is a transaction of its own, or can be repeated: after an interrupted run, the next run continues.

There are two connections. One migrates and holds an advisory lock, so that one migration runs at a time; the lock lasts
as long as the backend of that connection, even when this process is gone. The other one reads the database's revision
and finds out which sessions block the migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeVar

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from ..backoff import Backoff
from ..db import partitions
from ..db.postgres import CONNECTION_ERRORS, MIGRATION_LOCK, Connection, connect
from ..db.schema_revision import REVISION, check_schema, current_revision
from ..errors import ConfigurationError
from .lock_timeouts import LockTimeouts
from .lock_waits import Blocker, BlockerWatch, advisory_lock_holder
from .revisions import Revision, RevisionHistory

_TRY_LOCK: Final = text(f"SELECT pg_try_advisory_lock({MIGRATION_LOCK})")
_NAME: Final = "baton migrate"
_RETRIED: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)

Say = Callable[[str], None]
Result = TypeVar("Result")


def _quiet(_line: str) -> None:
    """Print nothing."""


async def migrate(
    dsn: str,
    *,
    days_ahead: int,
    to: str | None = None,
    timeouts: LockTimeouts | None = None,
    history: RevisionHistory | None = None,
    say: Say = _quiet,
) -> None:
    """Run the missing revisions, up to `to`, then create partitions up to `days_ahead` days from today.

    Concurrent calls wait for each other. `say` gets each line of progress.

    Raises:
        DatabaseUnreachable: no connection can be opened.
        ConfigurationError: Postgres refuses a revision, or other sessions hold a lock until the migration gives up.
    """
    timeouts, history = timeouts or LockTimeouts(), history or RevisionHistory()
    with _translated_errors():
        async with _second_connection(dsn) as second, engine(dsn) as own, own.connect() as connection:
            run = _Run(connection, second, history, timeouts, say)
            await run.set_session_timeouts()
            await run.take_migration_lock()
            pending = await _announced(second, history, to, say)
            for revision in pending or []:
                await run.apply(revision)
            await run.create_partitions(days_ahead)
            if to is not None and pending is not None:
                say(f"The database is at revision {to}.")


async def announce(
    dsn: str, *, days_ahead: int, to: str | None = None, history: RevisionHistory | None = None, say: Say = _quiet
) -> None:
    """Report what `migrate` would do, and change nothing.

    Raises:
        DatabaseUnreachable: no connection can be opened.
        ConfigurationError: the role may not read the revision of the database.
    """
    with _translated_errors():
        async with _second_connection(dsn) as connection:
            if await _announced(connection, history or RevisionHistory(), to, say) == []:
                say("No revision is missing.")
            for name in await partitions.missing(connection, days_ahead):
                say(f"Would create partition {name}.")


async def revision_of(dsn: str) -> str | None:
    """Return the revision of a database, or None if it has no Baton tables.

    Raises:
        DatabaseUnreachable: no connection can be opened.
        ConfigurationError: the role may not read it.
    """
    with _translated_errors():
        async with _second_connection(dsn) as connection:
            return await current_revision(connection)


@contextlib.asynccontextmanager
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Open an SQLAlchemy engine over our own `connect`, so that every DSN is parsed in one place."""

    async def connected() -> Connection:
        return await connect(dsn, timeout_seconds=60, command_timeout_seconds=None, name=_NAME)

    opened = create_async_engine("postgresql+asyncpg://", async_creator=connected, poolclass=NullPool)
    try:
        yield opened
    finally:
        await opened.dispose()


@contextlib.asynccontextmanager
async def _second_connection(dsn: str) -> AsyncIterator[Connection]:
    """Open the connection that only reads: the database's revision, and which sessions block the migration."""
    connection = await connect(dsn, name=f"{_NAME} (monitor)", prepare=False)
    try:
        yield connection
    finally:
        connection.terminate()


async def _announced(
    connection: Connection, history: RevisionHistory, to: str | None, say: Say
) -> list[Revision] | None:
    """Report the revisions to run and return them; return None if the schema is newer than this code."""
    current = await current_revision(connection)
    if current is not None and current > history.ids[-1]:
        await check_schema(connection)
        say(f"The schema is at revision {current}, newer than {REVISION} and compatible with it: nothing to migrate.")
        return None
    pending = history.between(current, to)
    if pending:
        where = "has no Baton tables yet" if current is None else f"is at revision {current}"
        say(f"The database {where}. Revisions to run:")
    for revision in pending:
        # Without Baton tables, no pod or worker runs that a lock could block.
        say(f"  {revision.id} {revision.title}")
        if current is not None:
            say(f"       It {revision.describe_locks()}.")
    return pending


class _Run:
    """The steps of one run. Each step is retried until it gets its locks."""

    def __init__(
        self,
        connection: AsyncConnection,
        second: Connection,
        history: RevisionHistory,
        timeouts: LockTimeouts,
        say: Say,
    ) -> None:
        self._connection = connection
        self._second = second
        self._history = history
        self._timeouts = timeouts
        self._say = say
        self._pid = 0

    async def set_session_timeouts(self) -> None:
        """Set the session's timeouts, whatever the role's defaults are: `lock_timeout`, and none for statements."""
        milliseconds = self._timeouts.lock_timeout_milliseconds
        await self._connection.execute(text(f"SET lock_timeout = '{milliseconds}ms'"))
        await self._connection.execute(text("SET statement_timeout = 0"))
        self._pid = (await self._connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await self._connection.commit()

    async def take_migration_lock(self) -> None:
        """Take the advisory lock of migrations.

        This polls: a session that waits inside `pg_advisory_lock` holds a snapshot, and a concurrent index build in the
        session that has the lock waits for all snapshots to end.
        """
        deadline = time.monotonic() + self._timeouts.give_up_seconds
        waited = False
        while not (await self._connection.execute(_TRY_LOCK)).scalar_one():
            await self._connection.commit()
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    "Another `baton migrate` or `baton maintain` is still running after "
                    f"{self._timeouts.give_up_seconds:g} s{await advisory_lock_holder(self._second, MIGRATION_LOCK)}. "
                    "Run this again when it has ended."
                )
            if not waited:
                self._say("Another `baton migrate` or `baton maintain` is running; waiting for it to end.")
                waited = True
            await asyncio.sleep(0.5)
        await self._connection.commit()

    async def apply(self, revision: Revision) -> None:
        """Run one revision."""

        async def upgrade() -> None:
            await self.set_session_timeouts()
            await self._connection.run_sync(self._history.upgrade, revision.id)

        took_seconds = await self._with_retries(f"Revision {revision.id}", upgrade)
        self._say(f"Revision {revision.id} is done. It took {took_seconds:.2f} s.")

    async def create_partitions(self, days_ahead: int) -> None:
        """Create the partitions ahead."""
        raw = await self._connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None

        async def create() -> None:
            for name in await partitions.create_ahead(driver, days_ahead):
                self._say(f"Created partition {name}.")

        await self._with_retries("Creating partitions", create)

    async def _with_retries(self, what: str, step: Callable[[], Awaitable[None]]) -> float:
        """Retry a step until it gets its locks; return how many seconds the successful try took."""
        # Even the shortest pause lets through every session that was queued behind the lock.
        backoff = Backoff(first_seconds=1, cap_seconds=10, least_seconds=0.5)
        deadline = time.monotonic() + self._timeouts.give_up_seconds
        while True:
            began = time.monotonic()
            watch = BlockerWatch(self._second, self._pid, what, self._timeouts.give_up_seconds, self._say)
            try:
                async with watch:
                    await step()
                return time.monotonic() - began
            except (DBAPIError, asyncpg.PostgresError) as error:
                if watch.gave_up:
                    raise self._gave_up(what, watch.blockers) from error
                if not isinstance(_driver_error(error), _RETRIED):
                    raise
                if time.monotonic() > deadline:
                    raise self._gave_up(what, watch.blockers) from error
            await self._connection.rollback()
            pause_seconds = backoff.next_seconds()
            self._say(
                f"{what} waited {self._timeouts.lock_timeout_milliseconds} ms for a lock, then gave way. "
                f"{_blocked_by(watch.blockers)} Retrying in {pause_seconds:.1f} s."
            )
            await asyncio.sleep(pause_seconds)

    def _gave_up(self, what: str, blockers: list[Blocker]) -> ConfigurationError:
        statements = " ".join(f"`SELECT pg_terminate_backend({blocker.pid})`" for blocker in blockers if blocker.pid)
        by_force = f" or terminate it: {statements}" if statements else ""
        return ConfigurationError(
            f"{what} did not get its lock within {self._timeouts.give_up_seconds:g} s. {_blocked_by(blockers)} "
            f"Let that transaction end{by_force}. Then run `baton migrate` again: it continues where it stopped."
        )


def _blocked_by(blockers: list[Blocker]) -> str:
    if not blockers:
        return "The blocking session was gone before it could be identified."
    return "Blocked by: " + "; ".join(blocker.describe() for blocker in blockers) + "."


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn what Postgres or the driver raises into one sentence with advice."""
    try:
        yield
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        reason = _driver_error(error)
        advice = ""
        if isinstance(reason, CONNECTION_ERRORS):
            advice = " Run `baton migrate` again: it continues where it stopped."
        if isinstance(reason, asyncpg.InsufficientPrivilegeError):
            advice = " Run `baton migrate` as a role that owns the schema `baton` or may create it: see `baton grants`."
        raise ConfigurationError(f"The migration failed: {reason}.{advice}") from error


def _driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error, which SQLAlchemy wraps twice."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error
