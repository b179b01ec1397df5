"""Connections to Postgres: pools and single connections of asyncpg.

Driver errors become Baton's own here, in `translated`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

from . import shares
from .errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch, Unavailable
from .shares import Shares

# The revision of the schema that this code works with; a test holds it equal to the head of `migrations/`.
REVISION: Final = "0019"

# What a database in trouble says over a connection that works: its user or name is gone, a failover left us on a server
# that only reads, or the log has no partition for today.
_PASSING_ERRORS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.CheckViolationError,
)

# Advisory locks of a session. Any constants will do, as long as nobody else in the database uses them.
MIGRATION_LOCK: Final = 0x6261_746F_6E31
MAINTENANCE_LOCK: Final = 0x6261_746F_6E32

QUERY_SECONDS: Final = 10.0
_STATEMENT_CACHE_SIZE: Final = 100

Result = TypeVar("Result")

# They are generic for type checkers only.
if TYPE_CHECKING:
    _AnyPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    _AnyContext: TypeAlias = PoolAcquireContext[asyncpg.Record]
else:
    _AnyPool, _AnyContext = asyncpg.Pool, PoolAcquireContext

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
# Where a version of a row is: its page, and its number there (`ctid`).
Place: TypeAlias = tuple[int, int]

# What a lost or refused connection raises, in whichever layer notices it first.
CONNECTION_ERRORS: Final = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.CannotConnectNowError,
)


_AS_CONNECTING: Final = -1.0


async def connect(
    dsn: str,
    *,
    timeout_seconds: float = 10,
    command_timeout_seconds: float | None = _AS_CONNECTING,
    name: str = "baton",
    prepare: bool = True,
) -> Connection:
    """Open one connection. Without `prepare` it names no prepared statements, which a pooler in between would lose.

    A command may take as long as connecting, unless something else is said; None is no limit.

    Raises:
        DatabaseUnreachable: nobody answers there, or the server refuses us.
        ConfigurationError: the DSN is malformed.
    """
    with _connecting(dsn):
        return await asyncpg.connect(
            dsn,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds if command_timeout_seconds == _AS_CONNECTING else command_timeout_seconds,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepare else 0,
            server_settings={"application_name": name},
        )


async def ask(
    dsn: str, question: Callable[[Connection], Awaitable[Result]], *, name: str, role: str, prepare: bool = True
) -> Result:
    """Open a connection for a command that has one thing to ask or to do, check the schema, and do it.

    `role`: whom to connect as, in the sentence for somebody who may not.

    Raises:
        ConfigurationError: the database cannot be reached or used, or refuses.
    """
    connection = await connect(dsn, name=name, prepare=prepare)
    try:
        await check_schema(connection)
        return await question(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"The role of BATON_DATABASE_URL may not do this: {error}. Connect as {role}."
        ) from None
    except asyncpg.PostgresError as error:
        raise ConfigurationError(f"The database refused: {error}.") from error
    finally:
        connection.terminate()


class SharedPool(_AnyPool):
    """A pool whose connections go to tenants by turns; see `shares`. What works for no tenant does not wait for one."""

    __slots__ = ("shares",)

    def __init__(self, *arguments: Any, shares: Shares, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shares = shares

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext[asyncpg.Record]:
        """Acquire a connection, for an `async with` block. All of asyncpg's shortcuts, such as `fetch`, do it by this.

        Raises:
            TooManyQueries: when the block is entered, the tenant's other requests have its share of the connections.
        """
        tenant = shares.acting_for()
        return super().acquire(timeout=timeout) if tenant is None else _InTurn(self, timeout, tenant)


class _InTurn(_AnyContext):
    """A connection, and the tenant's place for it."""

    __slots__ = ("_shares", "_tenant")

    def __init__(self, pool: SharedPool, timeout: float | None, tenant: str) -> None:
        super().__init__(pool, timeout)
        self._shares = pool.shares
        self._tenant = tenant

    async def __aenter__(self) -> PoolConnectionProxy[asyncpg.Record]:
        await self._shares.enter(self._tenant)
        try:
            return await super().__aenter__()
        except BaseException:
            self._shares.leave(self._tenant)
            raise

    async def __aexit__(self, *exc: object) -> None:
        try:
            await super().__aexit__(*exc)
        finally:
            self._shares.leave(self._tenant)


@contextlib.asynccontextmanager
async def pool(
    dsn: str,
    *,
    size: int,
    timeout_seconds: float,
    name: str = "baton",
    prepare: bool = True,
    shares: Shares | None = None,
) -> AsyncIterator[Pool]:
    """Open a pool of at most `size` connections, and close it at the end. Without `shares`, no tenant waits for others.

    Raises:
        DatabaseUnreachable: nobody answers there, or the server refuses us.
    """
    with _connecting(dsn):
        opened = await SharedPool(
            dsn,
            shares=shares or Shares(size, 1),
            min_size=1,
            max_size=size,
            max_queries=50_000,
            max_inactive_connection_lifetime=300,
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepare else 0,
            server_settings={"application_name": name},
            reset=_leave_as_it_is,
        )
    try:
        yield opened
    finally:
        await close_pool(opened, timeout_seconds=2)


async def _leave_as_it_is(_connection: object) -> None:
    """Spare each query the round trip that resets its session: nothing here changes the session."""


async def close_pool(opened: Pool, *, timeout_seconds: float) -> None:
    """Close a pool, and cut what does not close in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await opened.close()
    except TimeoutError:
        opened.terminate()


@contextlib.asynccontextmanager
async def translated(timeout_seconds: float = QUERY_SECONDS) -> AsyncIterator[None]:
    """Bound the time that queries take, the wait for a connection included, and translate what stops them.

    Raises:
        Unavailable: the database does not answer, or cannot do this just now. It is the error that a client sees.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except (*CONNECTION_ERRORS, *_PASSING_ERRORS) as error:
        raise Unavailable("The service does not answer just now. Try again in a moment.") from error


async def current_revision(executor: Connection | Pool) -> str | None:
    """Return the revision that a database is at, or None when it has no Baton tables.

    Raises:
        SchemaMismatch: there are tables, and nothing says of which revision, or something that is none.
    """
    found: str | None = None
    with contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        found = await executor.fetchval("SELECT version_num FROM baton.alembic_version")
    if found is None:
        if await executor.fetchval("SELECT to_regclass('baton.stream') IS NOT NULL"):
            raise SchemaMismatch(
                "The database has Baton's tables, and baton.alembic_version does not say of which revision they are. "
                "Restore its row from a backup, or put the newest revision of the version that migrated it last there "
                f"(for this one '{REVISION}')."
            )
        return None
    if not re.fullmatch("[0-9]{4}", found):
        raise SchemaMismatch(
            f"The database's schema is at an unknown revision, {found!r}: Baton's have four digits. Has something else "
            "written to baton.alembic_version? Write back what was there, or restore it from a backup."
        )
    return found


async def check_schema(executor: Connection | Pool) -> str:
    """Refuse a database whose schema this code cannot work with; return its revision.

    A newer schema will do as long as it says so: during a roll-out, instances of the release before must be able to
    start again.

    Raises:
        SchemaMismatch: the migrations have not run, this code is too old for the schema, or nobody knows its revision.
        ConfigurationError: the role may not read Baton's tables.
    """
    try:
        found = await current_revision(executor)
        newer = found is not None and found > REVISION
        oldest = await executor.fetchval("SELECT oldest_code FROM baton.compatibility") if newer else REVISION
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
            f"The database's schema is at revision {found}, and needs code of revision {oldest} at least; this version "
            f"is of {REVISION}. Run a newer version of Baton."
        )
    return found


@contextlib.contextmanager
def _connecting(dsn: str) -> Iterator[None]:
    """Say in one sentence why no connection came about, without the password."""
    try:
        yield
    except (ValueError, OverflowError):
        # Its own words quote what was taken for a port: a part of the password where that has a `/`, say.
        raise ConfigurationError(
            "BATON_DATABASE_URL cannot be used: it must look like postgresql://user:password@host:5432/name. In a user "
            "or a password, write % / ? # [ ] @ and : as %25 %2F %3F %23 %5B %5D %40 and %3A."
        ) from None
    except asyncpg.InterfaceError as error:
        raise ConfigurationError(f"BATON_DATABASE_URL cannot be used: {error}") from None
    except asyncpg.InvalidCatalogNameError:
        raise DatabaseUnreachable(
            f"There is no database {_database(dsn)!r} on {_place(dsn)}. Create it, or correct BATON_DATABASE_URL."
        ) from None
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise DatabaseUnreachable(
            f"Postgres on {_place(dsn)} refused the user of BATON_DATABASE_URL: {error}"
        ) from None
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
        reason = str(error) or type(error).__name__
        raise DatabaseUnreachable(
            f"No Postgres could be reached at {_place(dsn)}: {reason}. Is it running, and is BATON_DATABASE_URL right?"
        ) from None


def _place(dsn: str) -> str:
    parts = urlsplit(dsn)
    where = parts.netloc.rpartition("@")[2]
    if where == parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return "the address of BATON_DATABASE_URL"  # a user or a password that is not escaped may stand in its place
    if not where:
        return "the local socket"
    return where if ":" in where.rpartition("]")[2] else f"{where}:5432"


def _database(dsn: str) -> str:
    return urlsplit(dsn).path.lstrip("/")
