"""The application's end hook: a function that runs in the transaction that ends a stream (`BATON_ON_END`).

    async def on_end(connection: asyncpg.Connection, answer: baton.EndedAnswer) -> None

What it writes over `connection` is committed with the terminal event, or not at all. It may run more than once for a
stream, but only the changes of one run are committed.

The hook runs within a savepoint. So an error that it has caught itself, after which Postgres accepts no more statements
in the transaction, fails the hook and not the end, and a COMMIT or ROLLBACK of the hook is found out.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from ..db.ended_answers import EndedAnswer
from ..db.postgres import CONNECTION_ERRORS, Connection
from ..errors import ConfigurationError
from ..generators.importing import imported, make_current_directory_importable
from ..observability.metrics import WorkerMetrics
from ..settings import Settings

Function: TypeAlias = Callable[[Any, EndedAnswer], Awaitable[None]]

_ENDED_TRANSACTION: Final = (
    "it has ended Baton's transaction by itself. What it committed is there without the end of the stream. Remove "
    "COMMIT and ROLLBACK from it"
)
_CLOSED: Final = "it has closed Baton's connection, or lost it just before it returned"
_BOUND: Final = (
    "SELECT set_config('statement_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)"
)
# A constraint that is checked at the commit would fail the end. So would another role, which may not write the log.
_AFTER: Final = "SET CONSTRAINTS ALL IMMEDIATE; RESET ROLE"
# How long a hook that is cancelled may take to clean up.
_STUBBORN_SECONDS: Final = 1.0


class HookFailed(Exception):
    """The end hook raised an error, took too long, or left the transaction unusable."""


class EndHook:
    """The hook with its bounds. The statements of its transaction have the same timeout."""

    def __init__(self, function: Function, *, timeout_seconds: float, metrics: WorkerMetrics) -> None:
        self._function = function
        self.timeout_seconds = timeout_seconds
        self._metrics = metrics

    async def __call__(self, connection: Connection, answer: EndedAnswer) -> None:
        """Run the hook in the current transaction.

        Raises:
            HookFailed: the transaction must be rolled back.
        """
        started_at = time.monotonic()
        task = asyncio.create_task(self._run(connection, answer), name=f"end hook {answer.id}")
        try:
            await asyncio.wait([task], timeout=self.timeout_seconds)
            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=_STUBBORN_SECONDS)
                if not task.done():
                    connection.terminate()  # the hook still uses it
                raise HookFailed(f"it took longer than BATON_ON_END_TIMEOUT_SECONDS={self.timeout_seconds:g}")
            if task.cancelled():
                raise HookFailed("it was cancelled from inside")
            task.result()
        finally:
            task.cancel()
            self._metrics.end_hook_seconds.observe(time.monotonic() - started_at)

    async def _run(self, connection: Connection, answer: EndedAnswer) -> None:
        # If this process loses its connection to the server, the server ends the transaction.
        await connection.fetch(_BOUND, f"{self.timeout_seconds * 1000:.0f}ms", f"{self.timeout_seconds * 2000:.0f}ms")
        returned = False
        try:
            async with connection.transaction():  # a savepoint
                await self._function(connection, answer)
                returned = True
                await connection.execute(_AFTER)
        except Exception as error:
            if connection.is_closed() and not returned and isinstance(error, CONNECTION_ERRORS):
                raise  # the connection was lost, which says nothing about the hook
            raise HookFailed(_reason(connection, error)) from error
        if not connection.is_in_transaction():
            raise HookFailed(_ENDED_TRANSACTION)


def _reason(connection: Connection, error: Exception) -> str:
    if connection.is_closed():
        return _CLOSED
    return f"{type(error).__name__}: {error}" if connection.is_in_transaction() else _ENDED_TRANSACTION


class WatchedHook:
    """One run of the hook, whose failure is still known after the rollback has failed too."""

    def __init__(self, hook: EndHook) -> None:
        self._hook = hook
        self.failure: HookFailed | None = None

    async def __call__(self, connection: Connection, answer: EndedAnswer) -> None:
        """Run the hook: see `EndHook`."""
        try:
            await self._hook(connection, answer)
        except HookFailed as error:
            self.failure = error
            raise


def load_end_hook(settings: Settings, metrics: WorkerMetrics) -> EndHook | None:
    """Import the hook that the settings name; return None if they name none.

    Raises:
        ConfigurationError: it cannot be imported, or is not an `async def` function of two arguments.
    """
    target = settings.on_end
    if target is None:
        return None
    make_current_directory_importable()
    function = imported(f"BATON_ON_END={target}", target)
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
        raise ConfigurationError(
            f"BATON_ON_END={target} is not a coroutine function: define it with "
            "`async def on_end(connection, answer):`."
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise ConfigurationError(
            f"BATON_ON_END={target} cannot be called with two arguments: define it with "
            "`async def on_end(connection, answer):`."
        ) from None
    return EndHook(function, timeout_seconds=settings.on_end_timeout_seconds, metrics=metrics)
