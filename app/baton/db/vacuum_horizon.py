"""What holds back vacuum's horizon: a session with an old snapshot, a prepared transaction, or a replication slot.

Vacuum removes no row version that the oldest snapshot may still see. A role without pg_monitor cannot see how long
another role's session has been in a transaction. But every role can see what the session holds back: the id of its
transaction, or the oldest one that its snapshot cannot see. While that id stays the same, it is the same snapshot. So
repeated checks show how long it has been open, at least.

A standby with `hot_standby_feedback` appears as the session that sends it the WAL, or as its slot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .postgres import Connection, Pool

logger = logging.getLogger(__name__)

WARN_SECONDS: Final = 60.0

# Vacuum itself has a snapshot that holds nothing back. That of autovacuum belongs to no role.
_HOLDERS: Final = """
SELECT 'session' AS kind, pid::text AS name, usename::text AS owner, application_name AS application,
       coalesce(backend_xid, backend_xmin)::text AS holds, age(coalesce(backend_xid, backend_xmin)) AS transactions
FROM pg_stat_activity
WHERE coalesce(backend_xid, backend_xmin) IS NOT NULL AND pid <> pg_backend_pid() AND usesysid IS NOT NULL
  AND (datname = current_database() OR datid IS NULL)
UNION ALL
SELECT 'prepared transaction', gid, owner::text, '', transaction::text, age(transaction)
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'replication slot', slot_name::text, '', '', xmin::text, age(xmin)
FROM pg_replication_slots WHERE xmin IS NOT NULL
ORDER BY transactions DESC
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds the horizon back, and by how many transactions. `holds` identifies the snapshot."""

    kind: str
    name: str
    owner: str
    application: str
    holds: str
    transactions: int

    @property
    def title(self) -> str:
        """Its name for people."""
        if self.kind == "session":
            return f"pid {self.name} ({self.owner}, {self.application or 'no name'})"
        return f"the {self.kind} {self.name!r}" + (f" of {self.owner}" if self.owner else "")


async def holders(executor: Connection | Pool) -> list[Holder]:
    """Return everything that holds back the horizon of this database, oldest first."""
    return [Holder(*row) for row in await executor.fetch(_HOLDERS)]


class HorizonWatch:
    """Remembers how long each snapshot has been seen."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str, str], float] = {}
        self._logged: set[tuple[str, str, str]] = set()

    async def check(self, executor: Connection | Pool) -> float:
        """Return for how many seconds the oldest snapshot has been seen. Log each one older than a minute, once."""
        seen = {(item.kind, item.name, item.holds): item for item in await holders(executor)}
        now = self._clock()
        self._since = {key: self._since.get(key, now) for key in seen}
        self._logged &= seen.keys()
        for key, holder in seen.items():
            if now - self._since[key] >= WARN_SECONDS and key not in self._logged:
                self._logged.add(key)
                logger.warning(
                    "An old snapshot has kept vacuum from removing anything for %.0f s. It belongs to %s. See "
                    "BatonOldSnapshot in docs/runbook.md.",
                    now - self._since[key],
                    holder.title,
                )
        return max((now - since for since in self._since.values()), default=0.0)
