"""The Postgres of a measurement: an embedded one with its wheel's settings."""

from __future__ import annotations

from typing import Final

import asyncpg
import psutil

# Every commit waits this long, as on an ordinary cloud disk.
_SLOW_COMMITS: Final = ("ALTER SYSTEM SET commit_delay = 1500", "ALTER SYSTEM SET commit_siblings = 0")
_SETTINGS: Final = """
SELECT name, current_setting(name) FROM unnest($1::text[]) AS name
"""
_RECORDED: Final = (
    *("server_version", "fsync", "synchronous_commit", "full_page_writes"),
    *("wal_level", "shared_buffers", "max_connections"),
)


async def postmaster(dsn: str) -> psutil.Process:
    """Return the parent of all Postgres processes."""
    connection = await asyncpg.connect(dsn)
    try:
        parent = psutil.Process(connection.get_server_pid()).parent()
    finally:
        await connection.close()
    assert parent is not None
    return parent


async def slow_commits(dsn: str) -> None:
    """Make commits take 1.5 ms on this server."""
    connection = await asyncpg.connect(dsn)
    for statement in (*_SLOW_COMMITS, "SELECT pg_reload_conf()"):
        await connection.execute(statement)
    await connection.close()


async def postgres_settings(dsn: str) -> dict[str, str]:
    """Return the version, and the settings that cost most."""
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch(_SETTINGS, _RECORDED)
    await connection.close()
    return {row["name"]: row[1] for row in found}
