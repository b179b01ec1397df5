"""Counts the buffers that statements read: pages, whether from memory or from disk."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson


class Counted:
    """A connection that runs each statement twice: once to count buffers, rolled back, and once for its effect."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.buffers = 0

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Count, and fetch."""
        await self._count(statement, arguments)
        rows: list[asyncpg.Record] = await self._connection.fetch(statement, *arguments)
        return rows

    async def fetchrow(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        """Count, and fetch a row."""
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *arguments: object) -> Any:
        """Count, and fetch a value."""
        row = await self.fetchrow(statement, *arguments)
        return None if row is None else row[0]

    async def execute(self, statement: str, *arguments: object) -> str:
        """Execute without counting: locks and settings."""
        done: str = await self._connection.execute(statement, *arguments)
        return done

    async def _count(self, statement: str, arguments: tuple[object, ...]) -> None:
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
            plan = orjson.loads(await self._connection.fetchval(explain, *arguments))[0]["Plan"]
        finally:
            await transaction.rollback()
        self.buffers += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.buffers += plan["Local Hit Blocks"] + plan["Local Read Blocks"]
