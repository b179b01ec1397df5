"""Connections to Postgres: pools and single connections of asyncpg.

Driver errors become Baton's own here, in `translated`, and nowhere else. Every transaction is READ COMMITTED, whatever
the database's or the role's default is: Baton's statements rely on seeing what others have just committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

from ..dsn.connection_strings import ESCAPE, Dsn
from ..dsn.parameters import UnusableDsn
from ..errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch, Unavailable
from . import pool_shares, sqlstates
from .pool_shares import Shares

# The revision of the schema that this code works with; a test holds it equal to the head of `migrations/`.
REVISION: Final = "0020"

# Advisory locks of a session. Any constants will do, as long as nobody else in the database uses them.
MIGRATION_LOCK: Final = 0x6261_746F_6E31
MAINTENANCE_LOCK: Final = 0x6261_746F_6E32

# Bounds queries over a pool that has no bound of its own.
QUERY_SECONDS: Final = 10.0
# Nobody empties a disk within a second.
_FULL_RETRY_SECONDS: Final = 10
_STATEMENT_CACHE_SIZE: Final = 100
_PIN_SESSION: Final = "SET default_transaction_isolation = 'read committed'"
_READS_COMMITTED: Final = "SELECT current_setting('transaction_isolation') = 'read committed'"
_NOTHING: Final = contextlib.nullcontext()

Result = TypeVar("Result")

# They are generic for type checkers only.
if TYPE_CHECKING:
    _AnyPool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    _AnyContext: TypeAlias = PoolAcquireContext[asyncpg.Record]
    _AnyConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    _AnyPool, _AnyContext, _AnyConnection = asyncpg.Pool, PoolAcquireContext, asyncpg.Connection

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
        opened = await asyncpg.connect(
            **_arguments(dsn, name),
            timeout=timeout_seconds,
            command_timeout=timeout_seconds if command_timeout_seconds == _AS_CONNECTING else command_timeout_seconds,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepare else 0,
            connection_class=PinnedConnection if prepare else PooledConnection,
        )
        try:
            await _pin(opened, own_session=prepare)
        except BaseException:
            opened.terminate()
            raise
        return opened


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


class PinnedConnection(_AnyConnection):
    """A connection whose transactions are READ COMMITTED; it is the default of its session, too, set by `_pin`."""

    __slots__ = ()

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> asyncpg.transaction.Transaction:
        """Begin a transaction, or a savepoint in one."""
        return super().transaction(isolation=isolation or "read_committed", readonly=readonly, deferrable=deferrable)


class PooledConnection(PinnedConnection):
    """The same behind a pooler in transaction mode, which hands sessions around: none of them is ours to set.

    Where their default is another one, a statement by itself becomes a transaction.
    """

    __slots__ = ("begins",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begins = False  # whether each statement needs a BEGIN

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """Run statements. Transactions begin by this, too."""
        async with _NOTHING if query.startswith("BEGIN") else self._begun():
            return await super().execute(query, *arguments, **options)

    async def fetch(self, *arguments: Any, **options: Any) -> list[Any]:
        """Return all rows."""
        async with self._begun():
            rows: list[Any] = await super().fetch(*arguments, **options)
            return rows

    async def fetchrow(self, *arguments: Any, **options: Any) -> Any:
        """Return the first row."""
        async with self._begun():
            return await super().fetchrow(*arguments, **options)

    async def fetchval(self, *arguments: Any, **options: Any) -> Any:
        """Return a value of the first row."""
        async with self._begun():
            return await super().fetchval(*arguments, **options)

    async def look(self) -> None:
        """Find out whether each statement needs a BEGIN."""
        self.begins = await super().fetchval(_READS_COMMITTED) is False

    def _begun(self) -> contextlib.AbstractAsyncContextManager[Any]:
        return self.transaction() if self.begins and not self.is_in_transaction() else _NOTHING


class SharedPool(_AnyPool):
    """A pool whose connections go to tenants by turns; see `shares`. What works for no tenant does not wait for one.

    `timeout_seconds` bounds what is asked of it, in `translated`; `disk_full` says that something could not be written.
    """

    __slots__ = ("disk_full", "shares", "timeout_seconds")

    def __init__(self, *arguments: Any, shares: Shares, timeout_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shares = shares
        self.timeout_seconds = timeout_seconds
        self.disk_full = False

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext[asyncpg.Record]:
        """Acquire a connection, for an `async with` block. All of asyncpg's shortcuts, such as `fetch`, do it by this.

        Raises:
            TooManyQueries: when the block is entered, the tenant's other requests have its share of the connections.
        """
        tenant = pool_shares.acting_for()
        return _Acquired(self, timeout) if tenant is None else _InTurn(self, timeout, tenant)


class _Acquired(_AnyContext):
    """A connection. If it leads to a server that takes no writes, none of the pool's is used again.

    Its name may lead to another server by now, while connections that are open would stay with a standby forever.
    """

    __slots__ = ("_pool",)

    def __init__(self, pool: SharedPool, timeout: float | None) -> None:
        super().__init__(pool, timeout)
        self._pool = pool

    async def __aexit__(self, *exc: Any) -> None:
        if sqlstates.only_reads(exc[1]):
            await self._pool.expire_connections()
        self._pool.disk_full |= sqlstates.disk_is_full(exc[1])
        await super().__aexit__(*exc)


class _InTurn(_Acquired):
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

    async def __aexit__(self, *exc: Any) -> None:
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
            **_arguments(dsn, name),
            shares=shares or Shares(size, 1),
            timeout_seconds=timeout_seconds,
            min_size=1,
            max_size=size,
            max_queries=50_000,
            max_inactive_connection_lifetime=300,
            loop=None,
            connection_class=PinnedConnection if prepare else PooledConnection,
            record_class=asyncpg.Record,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepare else 0,
            init=functools.partial(_pin, own_session=prepare),
            reset=_leave_as_it_is,
        )
    try:
        yield opened
    finally:
        await close_pool(opened, timeout_seconds=2)


async def _leave_as_it_is(_connection: object) -> None:
    """Spare each query the round trip that resets its session: nothing here changes the session."""


async def _pin(opened: Connection, *, own_session: bool) -> None:
    """See to it that transactions over a new connection are READ COMMITTED. It takes one round trip."""
    if own_session:
        await opened.execute(_PIN_SESSION)
        return
    await cast(PooledConnection, opened).look()


async def close_pool(opened: Pool, *, timeout_seconds: float) -> None:
    """Close a pool, and cut what does not close in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await opened.close()
    except TimeoutError:
        opened.terminate()


@contextlib.asynccontextmanager
async def translated(pool: Pool, timeout_seconds: float | None = None) -> AsyncIterator[None]:
    """Bound the time that queries take, the wait for a connection included, and translate what stops them.

    The bound is the pool's `timeout_seconds`, unless another one is given.

    Raises:
        Unavailable: the database does not answer, or cannot do this just now. It is the error that a client sees.
    """
    if timeout_seconds is None:
        timeout_seconds = pool.timeout_seconds if isinstance(pool, SharedPool) else QUERY_SECONDS
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        if not isinstance(error, CONNECTION_ERRORS) and not sqlstates.passes(error):
            raise
        if sqlstates.disk_is_full(error):
            raise Unavailable(
                "The service has no room just now. Try again later.",
                _FULL_RETRY_SECONDS,
                operator="the database's disk is full",
            ) from error
        raise Unavailable(
            "The service does not answer just now. Try again in a moment.", operator="the database does not answer"
        ) from error


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


def _arguments(dsn: str, name: str) -> dict[str, Any]:
    arguments = Dsn.parse(dsn).arguments()
    arguments["server_settings"]["application_name"] = name
    return arguments


@contextlib.contextmanager
def _connecting(dsn: str) -> Iterator[None]:
    """Say in one sentence why no connection came about, without the password."""
    try:
        yield
    except UnusableDsn as error:
        raise ConfigurationError(f"BATON_DATABASE_URL: {error}.") from None
    except asyncpg.InterfaceError as error:
        raise ConfigurationError(f"BATON_DATABASE_URL cannot be used: {error}") from None
    except asyncpg.InvalidCatalogNameError:
        known = Dsn.parse(dsn)
        raise DatabaseUnreachable(
            f"There is no database {known.database!r} on {known.place}. Create it, or correct BATON_DATABASE_URL."
        ) from None
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise DatabaseUnreachable(
            f"Postgres on {Dsn.parse(dsn).place} refused the user of BATON_DATABASE_URL: {error}"
        ) from None
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
        reason = str(error) or type(error).__name__
        raise DatabaseUnreachable(
            f"No Postgres could be reached at {Dsn.parse(dsn).place}: {reason}. "
            "Is it running, and is BATON_DATABASE_URL right?"
        ) from None
    except (ValueError, OverflowError):
        # Not before: a certificate that fails is one of these too. Their own words may quote the host.
        raise ConfigurationError(f"BATON_DATABASE_URL: {ESCAPE}.") from None
