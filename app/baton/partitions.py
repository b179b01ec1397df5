"""Partitions of the log: one for each day of streams, created ahead.

There is no default partition: rows in it would make every later partition's creation scan it.
"""

from __future__ import annotations

from .database import Connection, Pool

_CREATE = "SELECT baton.create_partitions($1)"


async def create_ahead(executor: Connection | Pool, days_ahead: int) -> list[str]:
    """Create what is missing from yesterday to `days_ahead` days from today (UTC); return the names."""
    return [record[0] for record in await executor.fetch(_CREATE, days_ahead)]
