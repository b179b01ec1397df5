"""Which running processes are older than this code: each writes the revision that it works with into its row.

Older code takes an open or a waiting stream for one that has ended. So there is none until no older process runs, and
from then on no older process can start.
"""

from __future__ import annotations

from typing import Final

from .postgres import Connection, Pool
from .schema_revision import REVISION

# A pod that died leaves its row for a while, so a row that was not written for a minute does not count. The same holds
# in `baton.raise_oldest_code`.
_WORKERS: Final = "SELECT 'worker ' || name FROM baton.worker WHERE coalesce(code, '') < $1 ORDER BY 1 LIMIT 20"
_PODS: Final = """
SELECT 'pod ' || name FROM baton.pod
WHERE coalesce(code, '') < $1 AND noted_at > clock_timestamp() - interval '1 minute'
ORDER BY 1 LIMIT 20
"""
_MAY_READ_PODS: Final = "SELECT has_table_privilege('baton.pod', 'SELECT')"
_RAISE_OLDEST: Final = "SELECT baton.raise_oldest_code($1)"


async def older_processes(executor: Connection | Pool) -> list[str]:
    """Return the names of the workers and pods that run older code than this: 40 at most.

    A role that may not read the rows of pods, such as a worker's, gets the workers only.
    """
    queries = [_WORKERS, _PODS] if await executor.fetchval(_MAY_READ_PODS) else [_WORKERS]
    return [row[0] for query in queries for row in await executor.fetch(query, REVISION)]


async def exclude_older(executor: Connection | Pool) -> bool:
    """Keep older code from starting, unless such a process runs; return whether none does. It stays true."""
    excluded: bool = await executor.fetchval(_RAISE_OLDEST, REVISION)
    return excluded
