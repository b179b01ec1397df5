"""Brings a database to this version's schema while pods and workers go on, and creates the partitions ahead.

Who waits for a lock stops everybody who comes after him. So a revision waits for a moment only (`lock_timeout`); then
it is undone, and tried again after a pause, until it gets through or the patience ends. Each revision is a transaction
of its own, or can be repeated: a run that is cut off leaves a database that the next run goes on with.

Two connections: one migrates, and holds an advisory lock, so that there is one at a time; it lives as long as its
backend does, even when this process is gone. The other only asks: where the
database is, and who is in the way.
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
from .blockers import Blocker, BlockerWatch, holder
from .patience import Patience
from .revisions import History, Revision

_TRY_LOCK: Final = text(f"SELECT pg_try_advisory_lock({MIGRATION_LOCK})")
_NAME: Final = "baton migrate"
_TRY_AGAIN: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)

Say = Callable[[str], None]
Result = TypeVar("Result")


def _quiet(_line: str) -> None:
    """Say nothing."""


async def migrate(
    dsn: str,
    *,
    days_ahead: int,
    to: str | None = None,
    patience: Patience | None = None,
    history: History | None = None,
    say: Say = _quiet,
) -> None:
    """Run the revisions that are missing, up to `to`, then create partitions up to `days_ahead` days from today.

    Concurrent calls wait for each other.

    Raises:
        DatabaseUnreachable: there is no connection to be had.
        ConfigurationError: Postgres refuses a revision, or somebody held a lock for longer than our patience.
    """
    patience, history = patience or Patience(), history or History()
    with _refusals():
        async with _beside(dsn) as beside, engine(dsn) as own, own.connect() as connection:
            run = _Run(connection, beside, history, patience, say)
            await run.get_ready()
            await run.wait_for_others()
            pending = await _announced(beside, history, to, say)
            for revision in pending or []:
                await run.apply(revision)
            await run.create_partitions(days_ahead)
            if to is not None and pending is not None:
                say(f"The database is at revision {to}.")


async def announce(
    dsn: str, *, days_ahead: int, to: str | None = None, history: History | None = None, say: Say = _quiet
) -> None:
    """Say what `migrate` would do, and do nothing.

    Raises:
        DatabaseUnreachable: there is no connection to be had.
        ConfigurationError: the role may not read which revision the database is at.
    """
    with _refusals():
        async with _beside(dsn) as connection:
            if await _announced(connection, history or History(), to, say) == []:
                say("No revision is missing.")
            for name in await partitions.missing(connection, days_ahead):
                say(f"Would create partition {name}.")


async def revision_of(dsn: str) -> str | None:
    """Return the revision that a database is at, or None when it has no Baton tables.

    Raises:
        DatabaseUnreachable: there is no connection to be had.
        ConfigurationError: the role may not read it.
    """
    with _refusals():
        async with _beside(dsn) as connection:
            return await current_revision(connection)


@contextlib.asynccontextmanager
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Open an SQLAlchemy engine whose connections asyncpg makes, so that one parser reads all DSNs."""

    async def connected() -> Connection:
        return await connect(dsn, timeout_seconds=60, command_timeout_seconds=None, name=_NAME)

    opened = create_async_engine("postgresql+asyncpg://", async_creator=connected, poolclass=NullPool)
    try:
        yield opened
    finally:
        await opened.dispose()


@contextlib.asynccontextmanager
async def _beside(dsn: str) -> AsyncIterator[Connection]:
    """Open the connection that only asks: where the database is, and who is in the way."""
    connection = await connect(dsn, name=f"{_NAME} (beside)", prepare=False)
    try:
        yield connection
    finally:
        connection.terminate()


async def _announced(connection: Connection, history: History, to: str | None, say: Say) -> list[Revision] | None:
    """Say which revisions are to run; return them, or None if the schema is newer than this code."""
    current = await current_revision(connection)
    if current is not None and current > history.ids[-1]:
        await check_schema(connection)
        say(f"The schema is at revision {current}, newer than {REVISION} and fit for it: nothing to migrate.")
        return None
    pending = history.between(current, to)
    if pending:
        where = "has no Baton tables yet" if current is None else f"is at revision {current}"
        say(f"The database {where}. To do:")
    for revision in pending:
        # In a database without Baton there is nobody whom a lock could stop.
        say(f"  {revision.id} {revision.title}")
        if current is not None:
            say(f"       It {revision.describe_locks()}.")
    return pending


class _Run:
    """The steps of one run, each tried until it gets its locks."""

    def __init__(
        self, connection: AsyncConnection, beside: Connection, history: History, patience: Patience, say: Say
    ) -> None:
        self._connection = connection
        self._beside = beside
        self._history = history
        self._patience = patience
        self._say = say
        self._pid = 0

    async def get_ready(self) -> None:
        """Set the session's limits: for waiting, and none for working, whatever the role's defaults are."""
        milliseconds = self._patience.lock_timeout_milliseconds
        await self._connection.execute(text(f"SET lock_timeout = '{milliseconds}ms'"))
        await self._connection.execute(text("SET statement_timeout = 0"))
        self._pid = (await self._connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await self._connection.commit()

    async def wait_for_others(self) -> None:
        """Take the advisory lock of migrations.

        It is polled for: a session that waits inside `pg_advisory_lock` holds a snapshot, and a concurrent index build
        in the session that has the lock waits for all snapshots to end.
        """
        deadline = time.monotonic() + self._patience.give_up_seconds
        waited = False
        while not (await self._connection.execute(_TRY_LOCK)).scalar_one():
            await self._connection.commit()
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    "Another `baton migrate` or `baton maintain` has been at work for "
                    f"{self._patience.give_up_seconds:g} s{await holder(self._beside, MIGRATION_LOCK)}. "
                    "Run this one again when it has ended."
                )
            if not waited:
                self._say("Another `baton migrate` or `baton maintain` is at work; waiting for it.")
                waited = True
            await asyncio.sleep(0.5)
        await self._connection.commit()

    async def apply(self, revision: Revision) -> None:
        """Run one revision."""

        async def upgrade() -> None:
            await self.get_ready()
            await self._connection.run_sync(self._history.upgrade, revision.id)

        took_seconds = await self._patiently(f"Revision {revision.id}", upgrade)
        self._say(f"Revision {revision.id} is done; it took {took_seconds:.2f} s.")

    async def create_partitions(self, days_ahead: int) -> None:
        """Create the partitions ahead."""
        raw = await self._connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None

        async def create() -> None:
            for name in await partitions.create_ahead(driver, days_ahead):
                self._say(f"Created partition {name}.")

        await self._patiently("Creating partitions", create)

    async def _patiently(self, what: str, step: Callable[[], Awaitable[None]]) -> float:
        """Try a step until it gets its locks; return how many seconds the try took that did."""
        # The shortest pause lets all sessions pass that are queued behind the lock.
        backoff = Backoff(first_seconds=1, cap_seconds=10, least_seconds=0.5)
        deadline = time.monotonic() + self._patience.give_up_seconds
        while True:
            began = time.monotonic()
            watch = BlockerWatch(self._beside, self._pid, what, self._patience.give_up_seconds, self._say)
            try:
                async with watch:
                    await step()
                return time.monotonic() - began
            except (DBAPIError, asyncpg.PostgresError) as error:
                if watch.gave_up:
                    raise self._too_long(what, watch.blockers) from error
                if not isinstance(_reason(error), _TRY_AGAIN):
                    raise
                if time.monotonic() > deadline:
                    raise self._too_long(what, watch.blockers) from error
            await self._connection.rollback()
            pause_seconds = backoff.next_seconds()
            self._say(
                f"{what} waited {self._patience.lock_timeout_milliseconds} ms for a lock and let everybody pass. "
                f"{_in_the_way(watch.blockers)} Trying again in {pause_seconds:.1f} s."
            )
            await asyncio.sleep(pause_seconds)

    def _too_long(self, what: str, blockers: list[Blocker]) -> ConfigurationError:
        ends = " ".join(f"`SELECT pg_terminate_backend({blocker.pid})`" for blocker in blockers if blocker.pid)
        by_force = f" or end it by {ends}" if ends else ""
        return ConfigurationError(
            f"{what} could not get its lock within {self._patience.give_up_seconds:g} s. {_in_the_way(blockers)} "
            f"Wait for its end{by_force}, and run `baton migrate` again: it goes on where it stopped."
        )


def _in_the_way(blockers: list[Blocker]) -> str:
    if not blockers:
        return "Who was in the way was gone before it could be asked."
    return "In the way: " + "; ".join(blocker.describe() for blocker in blockers) + "."


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say in one sentence what Postgres refused."""
    try:
        yield
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        reason = _reason(error)
        advice = ""
        if isinstance(reason, CONNECTION_ERRORS):
            advice = " Run `baton migrate` again: it goes on where it stopped."
        if isinstance(reason, asyncpg.InsufficientPrivilegeError):
            advice = " `baton migrate` needs a role that owns the schema `baton`, or may create it: see `baton grants`."
        raise ConfigurationError(f"The migrations could not run: {reason}.{advice}") from error


def _reason(error: BaseException) -> BaseException:
    """Unwrap what the driver raised, which SQLAlchemy wraps twice."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error
