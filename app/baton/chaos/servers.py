"""Chaos' own Postgres, whose place an asynchronous standby can take, with the loss of what it had not received.

Processes that are to follow the change reach the server through proxies that are registered here.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..db.postgres import Connection, connect
from ..demo.embedded import EmbeddedPostgres
from .proxy import Proxy

CATCH_UP_SECONDS: Final = 30

_POSITION = "SELECT pg_current_wal_lsn()::text"
_REACHED = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)"


class Servers:
    """The server of the moment, and who takes its place. One thing is done to it at a time."""

    def __init__(self, first: EmbeddedPostgres, folder: Path) -> None:
        self.current = first
        self._folder = folder
        self._proxies: list[Proxy] = []
        self._standby: EmbeddedPostgres | None = None
        self._count = 0

    def follow(self, proxies: Iterable[Proxy]) -> None:
        """Have these lead to whichever server is the present one."""
        self._proxies += proxies

    async def build_standby(self) -> None:
        """Copy the server, have the copy follow it, and wait until it has all that there is.

        Raises:
            ConfigurationError: it does not start.
            TimeoutError: it does not catch up.
        """
        self._count += 1
        self._standby = await asyncio.to_thread(self.current.copy, self._folder / f"postgres-{self._count}")
        primary, standby = await _session(self.current), await _session(self._standby)
        try:
            position = await primary.fetchval(_POSITION)
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await _reach(standby, position)
        finally:
            primary.terminate()
            standby.terminate()

    async def part(self) -> None:
        """Let the standby receive nothing more."""
        assert self._standby is not None
        standby = await _session(self._standby)
        try:
            await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await standby.execute("SELECT pg_reload_conf()")
        finally:
            standby.terminate()

    async def promote(self) -> None:
        """Have the standby take the place of the server, which is down for good, and lead everybody there."""
        assert self._standby is not None
        lost, self.current, self._standby = self.current, self._standby, None
        await asyncio.to_thread(self.current.promote)
        for proxy in self._proxies:
            proxy.lead_to(self.current.dsn)
            proxy.cut()
        await asyncio.to_thread(_remove, lost)

    async def drop_standby(self) -> None:
        """Give up a standby that has not taken the server's place."""
        standby, self._standby = self._standby, None
        if standby is not None:
            await asyncio.to_thread(_remove, standby)

    def close(self) -> None:
        """End whatever runs."""
        for server in filter(None, (self.current, self._standby)):
            server.close()


async def _reach(standby: Connection, position: str) -> None:
    while True:
        if await standby.fetchval(_REACHED, position):
            return
        await asyncio.sleep(0.05)


def _remove(server: EmbeddedPostgres) -> None:
    server.close()
    shutil.rmtree(server.folder, ignore_errors=True)


async def _session(server: EmbeddedPostgres) -> Connection:
    return await connect(server.dsn, name="chaos")
