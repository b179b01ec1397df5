"""Connections to Postgres: pools and single connections of asyncpg.

Driver errors become Baton's own here, in `translated`, and nowhere else. Every transaction is READ COMMITTED (see
`read_committed`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from ..dsn.connection_strings import ESCAPE, Dsn
from ..dsn.parameters import UnusableDsn
from ..errors import ConfigurationError, DatabaseUnreachable, Unavailable
from . import sqlstates
from .fair_pool import FairPool
from .fair_semaphore import FairSemaphore
from .read_committed import PinnedConnection, PooledConnection

# Advisory locks of a session. Any constants work, as long as nothing else in the database uses them.
MIGRATION_LOCK: Final = 0x6261_746F_6E31
MAINTENANCE_LOCK: Final = 0x6261_746F_6E32

# Bounds queries over a pool that has no bound of its own.
QUERY_SECONDS: Final = 10.0
# Nobody frees a full disk within a second.
_FULL_RETRY_SECONDS: Final = 10
_STATEMENT_CACHE_SIZE: Final = 100
_AS_CONNECTING: Final = -1.0
_BY_INDEX: Final = "SET enable_seqscan = off"

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
# The place of a row version: its page, and its number on the page (`ctid`).
Place: TypeAlias = tuple[int, int]

# What a lost or refused connection raises, whichever layer notices it first.
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
# What a statement raises if its data is at fault.
DATA_ERRORS: Final = (
    asyncpg.exceptions.DataError,
    asyncpg.exceptions.IntegrityConstraintViolationError,
    asyncpg.exceptions.ProgramLimitExceededError,
)


async def connect(
    dsn: str,
    *,
    timeout_seconds: float = 10,
    command_timeout_seconds: float | None = _AS_CONNECTING,
    name: str = "baton",
    prepare: bool = True,
    by_index: bool = False,
) -> Connection:
    """Open one connection. Without `prepare` it uses no named prepared statements, which a pooler would lose.

    `by_index`: never scan a whole table that has an index. Plans are kept, and one that was made while a table was
    small would scan it until the next vacuum, however large it has become. Without `prepare` each execution is planned.

    `command_timeout_seconds` is by default the same as `timeout_seconds`, which bounds connecting. None means no limit.

    Raises:
        DatabaseUnreachable: no server answers, or the server refuses the connection.
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
            await opened.set_up()
            if by_index and prepare:
                await opened.execute(_BY_INDEX)
        except BaseException:
            opened.terminate()
            raise
        return opened


@contextlib.asynccontextmanager
async def pool(
    dsn: str,
    *,
    size: int,
    timeout_seconds: float,
    name: str = "baton",
    prepare: bool = True,
    semaphore: FairSemaphore | None = None,
    connect_now: bool = True,
) -> AsyncIterator[Pool]:
    """Open a pool of at most `size` connections, and close it at the end. Without `semaphore` no tenant has a share.

    Without `connect_now` the first query connects.

    Raises:
        DatabaseUnreachable: no server answers, or the server refuses the connection.
    """
    with _connecting(dsn):
        opened = await FairPool(
            **_arguments(dsn, name),
            semaphore=semaphore or FairSemaphore(size, 1),
            timeout_seconds=timeout_seconds,
            min_size=int(connect_now),
            max_size=size,
            max_queries=50_000,
            max_inactive_connection_lifetime=300,
            loop=None,
            connection_class=PinnedConnection if prepare else PooledConnection,
            record_class=asyncpg.Record,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            statement_cache_size=_STATEMENT_CACHE_SIZE if prepare else 0,
            init=_set_up,
            reset=_keep_session,
        )
    try:
        yield opened
    finally:
        await close_pool(opened, timeout_seconds=2)


async def _set_up(opened: Any) -> None:
    await opened.set_up()


async def _keep_session(_connection: object) -> None:
    """Spare each query the round trip that resets its session. No query here changes its session."""


async def close_pool(opened: Pool, *, timeout_seconds: float) -> None:
    """Close a pool, and terminate the connections that do not close in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await opened.close()
    except TimeoutError:
        opened.terminate()


@contextlib.asynccontextmanager
async def translated(pool: Pool | None, timeout_seconds: float | None = None) -> AsyncIterator[None]:
    """Bound the time of queries, including the wait for a connection, and translate the errors that stop them.

    The bound is the pool's `timeout_seconds` unless another one is given.

    Raises:
        Unavailable: the database does not answer, or cannot do this at the moment. Clients get this error.
    """
    if timeout_seconds is None:
        timeout_seconds = pool.timeout_seconds if isinstance(pool, FairPool) else QUERY_SECONDS
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        if not isinstance(error, CONNECTION_ERRORS) and not sqlstates.passes(error):
            raise
        if sqlstates.disk_is_full(error):
            raise Unavailable(
                "The service has no room at the moment. Try again later.",
                _FULL_RETRY_SECONDS,
                operator="the database's disk is full",
            ) from error
        raise Unavailable(
            "The service does not answer at the moment. Try again shortly.", operator="the database does not answer"
        ) from error


def _arguments(dsn: str, name: str) -> dict[str, Any]:
    arguments = Dsn.parse(dsn).arguments()
    arguments["server_settings"]["application_name"] = name
    return arguments


@contextlib.contextmanager
def _connecting(dsn: str) -> Iterator[None]:
    """Raise an error with one sentence about why a connection failed. It never contains the password."""
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
        # Last, since a failed certificate is a ValueError too. The text of these errors may quote the host.
        raise ConfigurationError(f"BATON_DATABASE_URL: {ESCAPE}.") from None
