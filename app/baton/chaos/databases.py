"""The databases of a run of chaos: each on a server of its own, with the lines of each process to it.

One that the user has named has no server that chaos may disturb. The names of several are a, b, c, …, as in
`BATON_DATABASES`; the only one has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Final, Self
from uuid import UUID

from pydantic import SecretStr

from ..database_entries import DatabaseEntry
from ..db import postgres
from ..db.postgres import Pool, connect
from ..db.schema_revision import check_schema
from ..demo.embedded import EmbeddedPostgres, embedded_server
from ..schema import numbering
from ..schema.migrate import migrate
from ..schema.numbering import NumberedDatabase
from ..stream_ids import number_of
from . import end_hook
from .postgres_pair import PostgresPair
from .proxy import Proxy
from .trouble import Trouble

_JUDGES: Final = 4  # connections


@dataclass(slots=True)
class Lines:
    """The two proxies between one process and one database."""

    queries: Proxy
    listen: Proxy


@dataclass(frozen=True, slots=True, eq=False)
class Database:
    """One database. `dsn` and `pool` lead to it around all faults, whichever server is the primary.

    `trouble` is what happened to it, and to the workers' work with it.
    """

    name: str
    number: int
    dsn: str
    pool: Pool
    lines: Mapping[str, Lines]  # by the names of the processes
    pair: PostgresPair | None
    trouble: Trouble

    @property
    def suffix(self) -> str:
        """What names it after something that each database has; empty if it is the only one."""
        return f", database {self.name}" if self.name else ""


class Databases:
    """All of them, by their numbers."""

    def __init__(self, databases: Sequence[Database]) -> None:
        self._all = databases

    def __iter__(self) -> Iterator[Database]:
        """Yield them by number."""
        return iter(self._all)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    @property
    def several(self) -> bool:
        """Whether there are more than one."""
        return len(self._all) > 1

    @property
    def own_servers(self) -> bool:
        """Whether the servers are chaos' own."""
        return all(database.pair is not None for database in self)

    def of(self, stream: str) -> Database:
        """Return the database of a stream, as its id says."""
        return self._all[number_of(UUID(stream))]

    def settings_of(self, process: str) -> dict[str, str]:
        """Return the settings with which a process reaches all of them through its proxies."""
        if not self.several:
            (only,) = self
            lines = only.lines[process]
            return {"BATON_DATABASE_URL": lines.queries.dsn, "BATON_LISTEN_DATABASE_URL": lines.listen.dsn}
        entries = {
            database.name: {
                "url": database.lines[process].queries.dsn,
                "listen_url": database.lines[process].listen.dsn,
                "number": database.number,
                "weight": 1,
            }
            for database in self
        }
        return {"BATON_DATABASES": json.dumps(entries)}

    @classmethod
    @contextlib.asynccontextmanager
    async def of_own_servers(cls, count: int, folder: Path, processes: Sequence[str]) -> AsyncIterator[Self]:
        """Start so many embedded servers, and prepare a database on each, as `baton migrate` does.

        Raises:
            ConfigurationError: one does not start.
        """
        names = [""] if count == 1 else list(ascii_lowercase[:count])
        async with contextlib.AsyncExitStack() as stack:
            pairs = [await _started_pair(stack, _folder(folder, name)) for name in names]
            if count > 1:
                await _number({name: pair.primary.dsn for name, pair in zip(names, pairs, strict=True)})
            found = []
            for number, (name, pair) in enumerate(zip(names, pairs, strict=True)):
                lines = await _lines(stack, pair.primary.dsn, processes)
                # No fault strikes this proxy. It leads to whichever server is the primary.
                own = await stack.enter_async_context(Proxy(pair.primary.dsn))
                pair.follow([own, *(proxy for line in lines.values() for proxy in (line.queries, line.listen))])
                pool = await _pool(stack, own.dsn)
                found.append(Database(name, number, own.dsn, pool, lines, pair, Trouble()))
            yield cls(found)

    @classmethod
    @contextlib.asynccontextmanager
    async def of_users(cls, dsn: str, processes: Sequence[str]) -> AsyncIterator[Self]:
        """Use the database that the user has named.

        Raises:
            ConfigurationError: it cannot be used.
        """
        async with contextlib.AsyncExitStack() as stack:
            connection = await connect(dsn, name="chaos")
            try:
                await check_schema(connection)
            finally:
                await connection.close()
            lines = await _lines(stack, dsn, processes)
            yield cls([Database("", 0, dsn, await _pool(stack, dsn), lines, None, Trouble())])


async def _started_pair(stack: contextlib.AsyncExitStack, folder: Path) -> PostgresPair:
    pair = PostgresPair(stack.enter_context(embedded_server(folder)), folder)
    stack.callback(pair.close)
    await asyncio.to_thread(prepare, pair.primary)
    await migrate(pair.primary.dsn, days_ahead=1)
    connection = await connect(pair.primary.dsn, name="chaos")
    try:
        await end_hook.prepare(connection)
    finally:
        await connection.close()
    return pair


def _folder(folder: Path, name: str) -> Path:
    """Return the folder of a database's servers, which may be one for all files of chaos if it is the only one."""
    if name:
        folder /= f"postgres-{name}"
        folder.mkdir()
    return folder


async def _number(dsns: Mapping[str, str]) -> None:
    """Give each database its number, and all the same weight."""
    async with contextlib.AsyncExitStack() as stack:
        numbered = []
        for number, (name, dsn) in enumerate(dsns.items()):
            connection = await connect(dsn, name="chaos")
            stack.push_async_callback(connection.close)
            numbered.append(NumberedDatabase(DatabaseEntry(name, number, 1, SecretStr(dsn)), connection))
        await numbering.number(numbered)
        await numbering.record_weights(numbered)


async def _lines(stack: contextlib.AsyncExitStack, dsn: str, processes: Sequence[str]) -> dict[str, Lines]:
    return {
        name: Lines(await stack.enter_async_context(Proxy(dsn)), await stack.enter_async_context(Proxy(dsn)))
        for name in processes
    }


async def _pool(stack: contextlib.AsyncExitStack, dsn: str) -> Pool:
    return await stack.enter_async_context(postgres.pool(dsn, size=_JUDGES, timeout_seconds=10, name="chaos judge"))


def prepare(server: EmbeddedPostgres) -> None:
    """Make the notification queue small enough to fill, and allow more connections."""
    asyncio.run(_configure(server.dsn))
    server.restart()


async def _configure(dsn: str) -> None:
    connection = await connect(dsn, name="chaos")
    try:
        await connection.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
        await connection.execute("ALTER SYSTEM SET max_connections = 300")
    finally:
        await connection.close()
