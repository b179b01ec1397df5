"""What processes use."""

from __future__ import annotations

import asyncpg
import psutil


def cpu_seconds(process: psutil.Process) -> float:
    """The CPU time of a process and of its children, living and reaped."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system)
    return total


async def postmaster(dsn: str) -> psutil.Process:
    """The parent of all of Postgres' processes."""
    connection = await asyncpg.connect(dsn)
    try:
        parent = psutil.Process(connection.get_server_pid()).parent()
    finally:
        await connection.close()
    assert parent is not None
    return parent
