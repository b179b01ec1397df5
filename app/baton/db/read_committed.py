"""Connections whose transactions are READ COMMITTED, whatever the default of the database or the role is.

Baton's statements rely on seeing what others have just committed. Over a session of its own, a connection sets the
default once. Behind a pooler in transaction mode sessions are shared, so the connection asks once for their default.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

_PIN: Final = "SET default_transaction_isolation = 'read committed'"
_READS_COMMITTED: Final = "SELECT current_setting('transaction_isolation') = 'read committed'"
_NOTHING: Final = contextlib.nullcontext()

# It is generic for type checkers only.
if TYPE_CHECKING:
    _AnyConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    _AnyConnection = asyncpg.Connection


class PinnedConnection(_AnyConnection):
    """A connection over a session of its own. `set_up` must run before it is used."""

    __slots__ = ()

    async def set_up(self) -> None:
        """Make READ COMMITTED the default of the session. This takes one round trip."""
        await self.execute(_PIN)

    def transaction(
        self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False
    ) -> asyncpg.transaction.Transaction:
        """Begin a transaction, or a savepoint within one."""
        return super().transaction(isolation=isolation or "read_committed", readonly=readonly, deferrable=deferrable)


class PooledConnection(PinnedConnection):
    """A connection through a pooler in transaction mode, which must not change the sessions that it shares.

    Where their default is another level, each single statement becomes a transaction.
    """

    __slots__ = ("begins",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begins = False  # whether each statement needs a BEGIN

    async def set_up(self) -> None:
        """Find out whether each statement needs a BEGIN. This takes one round trip."""
        self.begins = await super().fetchval(_READS_COMMITTED) is False

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

    def _begun(self) -> contextlib.AbstractAsyncContextManager[Any]:
        return self.transaction() if self.begins and not self.is_in_transaction() else _NOTHING
