"""A primary and its asynchronous standby: two servers of the wheel, one of which takes the other's place."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import asyncpg
from tests.faults.servers import BreakablePostgres
from tests.support.data_folder import data_folder
from tests.support.databases import create_template, execute, memory, named_database
from tests.support.logbook import until

DATABASE = "baton_test"


class Replicas:
    """Two servers, of which `primary` takes the writes. What the standby has not received when it is promoted is lost.

    Its owner sends clients to `primary.dsn` of the moment.
    """

    def __init__(self, folder: Path, primary: BreakablePostgres) -> None:
        self.primary = primary
        self.standby: BreakablePostgres | None = None
        self._folder = folder
        self._count = 0

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Self]:
        """Run a primary that has a template database."""
        with data_folder(memory()) as folder:
            (folder / "first").mkdir()
            replicas = cls(folder, BreakablePostgres(folder / "first"))
            replicas.primary.init()
            replicas.primary.start()
            try:
                asyncio.run(create_template(replicas.primary.dsn, "baton_template"))
                yield replicas
            finally:
                replicas.primary.stop()
                if replicas.standby is not None:
                    replicas.standby.stop()

    @property
    def dsn(self) -> str:
        """The database of a test, on the primary."""
        return named_database(self.primary.dsn, DATABASE)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[None]:
        """Make the database of a test, and a standby that has it."""
        await execute(self.primary.dsn, f"CREATE DATABASE {DATABASE} TEMPLATE baton_template STRATEGY FILE_COPY")
        try:
            await self.build_standby()
            yield
        finally:
            if self.standby is not None:
                await self._discard(self.standby)
                self.standby = None
            await execute(self.primary.dsn, f"DROP DATABASE {DATABASE} WITH (FORCE)")

    async def build_standby(self) -> None:
        """Copy the primary, and have the copy follow it."""
        self._count += 1
        data = self._folder / f"standby{self._count}"
        self.standby = BreakablePostgres(data)
        await asyncio.to_thread(self.standby.copy, self.primary)
        await asyncio.to_thread(self.standby.start)
        await self.caught_up()

    async def caught_up(self) -> None:
        """Wait until the standby has all that the primary has by now."""
        assert self.standby is not None
        async with _connected(self.primary.dsn) as primary, _connected(self.standby.dsn) as standby:
            there = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
            await until(
                lambda: standby.fetchval("SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", there)
            )

    async def part(self) -> None:
        """Let the standby receive everything up to now, and nothing later."""
        assert self.standby is not None
        await self.caught_up()
        await execute(self.standby.dsn, "ALTER SYSTEM SET primary_conninfo = ''")
        await execute(self.standby.dsn, "SELECT pg_reload_conf()")
        async with _connected(self.standby.dsn) as standby:
            await until(lambda: standby.fetchval("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"))

    async def promote(self) -> None:
        """Lose the primary for good, and have the standby take its place."""
        assert self.standby is not None
        lost, self.primary, self.standby = self.primary, self.standby, None
        await self._discard(lost)
        await asyncio.to_thread(self.primary.promote)

    async def restore_to(self, position: str) -> None:
        """Lose the primary for good, and restore its backup to a position of the log of changes, as from an archive.

        The backup is the standby, which must not have come so far by itself.
        """
        assert self.standby is not None
        lost, self.primary, self.standby = self.primary, self.standby, None
        await asyncio.to_thread(lost.stop, "fast")
        await asyncio.to_thread(self.primary.restore, lost, position)
        # Else its next copy would look for that position, too.
        await execute(self.primary.dsn, "ALTER SYSTEM RESET ALL")
        await self._remove(lost)

    async def take_snapshot(self) -> None:
        """Copy the primary's files, as they are while it is down, and start it again."""
        await asyncio.to_thread(self.primary.stop, "fast")
        await asyncio.to_thread(_copy_files, self.primary.data, self._folder / "snapshot")
        await asyncio.to_thread(self.primary.start)

    async def restore_snapshot(self) -> None:
        """Put the files back."""
        await asyncio.to_thread(self.primary.stop)
        await asyncio.to_thread(shutil.rmtree, self.primary.data)
        await asyncio.to_thread((self._folder / "snapshot").rename, self.primary.data)
        await asyncio.to_thread(self.primary.start)

    async def _discard(self, server: BreakablePostgres) -> None:
        await asyncio.to_thread(server.stop)
        await self._remove(server)

    async def _remove(self, server: BreakablePostgres) -> None:
        await asyncio.to_thread(shutil.rmtree, server.data)


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def _copy_files(source: Path, target: Path) -> None:
    """Copy a folder with its owner, who is another user."""
    subprocess.run(["cp", "-a", source, target], check=True)
