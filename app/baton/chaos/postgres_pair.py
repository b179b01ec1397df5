"""Chaos' own Postgres, and an asynchronous standby that can replace it and lose what it had not received.

Processes reach the primary through proxies that are registered here, and so follow a promotion.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..db import event_log
from ..db.postgres import Connection, connect
from ..demo.embedded import EmbeddedPostgres
from .proxy import Proxy

CATCH_UP_SECONDS: Final = 30

_POSITION = "SELECT pg_current_wal_lsn()::text"
# Streams whose worker lives according to the standby.
_RUNNING = """
SELECT s.id, s.epoch, w.name
FROM baton.stream AS s JOIN baton.worker AS w ON w.id = s.worker_id
WHERE s.status = 'running'
"""
_REACHED = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)"


class PostgresPair:
    """The primary, and the standby if there is one. The caller does one thing to them at a time."""

    def __init__(self, first: EmbeddedPostgres, folder: Path) -> None:
        self.primary = first
        self._folder = folder
        self._proxies: list[Proxy] = []
        self._standby: EmbeddedPostgres | None = None
        self._count = 0

    def follow(self, proxies: Iterable[Proxy]) -> None:
        """Make these proxies lead to whichever server is the primary."""
        self._proxies += proxies

    async def build_standby(self) -> None:
        """Copy the primary, make the copy its standby, and wait until it has caught up.

        Raises:
            ConfigurationError: it does not start.
            TimeoutError: it does not catch up.
        """
        self._count += 1
        self._standby = await asyncio.to_thread(self.primary.copy, self._folder / f"postgres-{self._count}")
        primary, standby = await _session(self.primary), await _session(self._standby)
        try:
            position = await primary.fetchval(_POSITION)
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await _wait_for_replay(standby, position)
        finally:
            primary.terminate()
            standby.terminate()

    @property
    def standby_dsn(self) -> str:
        """Where the standby is. There must be one."""
        assert self._standby is not None
        return self._standby.dsn

    async def detach_standby(self) -> None:
        """Stop the replication: the standby receives nothing more."""
        assert self._standby is not None
        standby = await _session(self._standby)
        try:
            await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await standby.execute("SELECT pg_reload_conf()")
        finally:
            standby.terminate()

    async def running_on_standby(self) -> dict[str, str]:
        """Return the streams that run and have begun according to the standby, with the names of their workers."""
        assert self._standby is not None
        standby = await _session(self._standby)
        try:
            return {
                str(stream_id): worker
                for stream_id, epoch, worker in await standby.fetch(_RUNNING)
                # The worker has written to the stream: it knows that it has it.
                if (await event_log.read_tail(standby, stream_id)).epoch == epoch
            }
        finally:
            standby.terminate()

    async def promote(self) -> None:
        """Make the standby the primary, after the primary has stopped for good, and lead all proxies to it."""
        assert self._standby is not None
        stopped, self.primary, self._standby = self.primary, self._standby, None
        await asyncio.to_thread(self.primary.promote)
        for proxy in self._proxies:
            proxy.lead_to(self.primary.dsn)
            proxy.cut()
        await asyncio.to_thread(_remove, stopped)

    async def drop_standby(self) -> None:
        """Remove a standby that was not promoted."""
        standby, self._standby = self._standby, None
        if standby is not None:
            await asyncio.to_thread(_remove, standby)

    def close(self) -> None:
        """Stop both servers."""
        for server in filter(None, (self.primary, self._standby)):
            server.close()


async def _wait_for_replay(standby: Connection, position: str) -> None:
    while True:
        if await standby.fetchval(_REACHED, position):
            return
        await asyncio.sleep(0.05)


def _remove(server: EmbeddedPostgres) -> None:
    server.close()
    shutil.rmtree(server.folder, ignore_errors=True)


async def _session(server: EmbeddedPostgres) -> Connection:
    return await connect(server.dsn, name="chaos")
