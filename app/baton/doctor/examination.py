"""Runs the checks, one after another, on one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import time
from typing import Final

import asyncpg

from ..db.postgres import CONNECTION_ERRORS, connect
from ..errors import DatabaseUnreachable
from ..settings import Settings
from . import access, installation, notifications, role, server, sessions, tables, work
from .finding import Case, Check, Finding, Level, Thresholds, ok, refusal, warning

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("the installation", installation.other_distribution),
    ("the server's version", server.version),
    ("the encoding", server.encoding),
    ("whether it takes writes", server.writable),
    ("the disk", server.room),
    ("the schema", tables.revision),
    ("the role's rights", role.rights),
    ("the owners of tables", role.owners),
    ("access control", access.access),
    ("who may connect", access.public),
    # To ask how full it is frees what all have read, and so may let notifications through again.
    ("the notify queue", notifications.queue),
    ("notifications", notifications.delivery),
    ("timeouts of the role", server.timeouts),
    ("what the server logs", server.logged_texts),
    ("partitions", tables.partitions),
    ("locks of partitions", tables.locks),
    ("retention", tables.retention),
    ("tables left over", tables.leftovers),
    ("unlogged tables", tables.unlogged),
    ("indexes", tables.indexes),
    ("autovacuum", tables.autovacuum),
    ("old transactions", sessions.transactions),
    ("old snapshots", sessions.snapshots),
    ("prepared transactions", sessions.prepared),
    ("replication slots", sessions.slots),
    ("workers", work.workers),
    ("streams without a worker", work.orphans),
    ("the queue of streams", work.queue),
    ("connections", server.connections),
    ("durability", server.durability),
    ("the clock", server.clock),
    ("transaction ids", server.transaction_ids),
)


@dataclass(slots=True)
class Diagnosis:
    """What was found. `complete` is false if the database could not be reached, at first or in the midst of it."""

    findings: list[Finding] = field(default_factory=list)
    complete: bool = True

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level is level for finding in self.findings)


async def examine(
    settings: Settings,
    *,
    thresholds: Thresholds | None = None,
    clock: Callable[[], float] = time,
    say: Callable[[str], None] = lambda _what: None,
) -> Diagnosis:
    """Run all checks; `say` is told what is being looked at.

    Raises:
        ConfigurationError: no database is configured, or its DSN cannot be used.
    """
    limits = thresholds or Thresholds()
    examination = _Examination(settings, limits, clock, say)
    try:
        await examination.run()
    except DatabaseUnreachable as problem:
        examination.diagnosis.findings.append(refusal("unreachable", problem))
        examination.diagnosis.complete = False
    return examination.diagnosis


class _Examination:
    """One run of the checks. The connection of a check that got no answer is given up, and the next has a new one."""

    def __init__(
        self, settings: Settings, thresholds: Thresholds, clock: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._thresholds = thresholds
        self._clock = clock
        self._say = say
        self._forbidden: list[str] = []
        self._sample: tuple[int, float] | None = None
        self.diagnosis = Diagnosis()

    async def run(self) -> None:
        remaining = iter(CHECKS)
        while await self._run_some(remaining):
            pass
        if self._forbidden:
            self._add(
                warning(
                    "not_permitted",
                    f"Not looked at, since this role may not: {', '.join(self._forbidden)}.",
                    "Run it as one of the roles of `baton grants`, and GRANT pg_monitor TO that role to see all.",
                )
            )

    async def _run_some(self, remaining: Iterator[tuple[str, Check]]) -> bool:
        """Run checks over one connection; return whether there are more, that need another one."""
        seconds = self._thresholds.answer_seconds
        started = self._clock()
        connection = await connect(
            self._settings.dsn, timeout_seconds=seconds, name="baton doctor", prepare=self._settings.prepare
        )
        try:
            if self._sample is None:
                row = await connection.fetchrow(server.SAMPLE)
                assert row is not None
                self._sample = row[0], row[1]
                role = await connection.fetchval("SELECT current_user::text")
                self._add(ok("reachable", f"Connected as {role!r} within {(self._clock() - started) * 1000:.0f} ms."))
            case = Case(self._settings, connection, *self._sample, self._thresholds, self._clock)
            for what, check in remaining:
                self._say(what)
                if not await self._run_one(what, check, case):
                    return True
            return False
        finally:
            connection.terminate()

    async def _run_one(self, what: str, check: Check, case: Case) -> bool:
        """Run a check; return whether the connection is still good."""
        try:
            async for finding in check(case):
                self._add(finding)
        except asyncpg.InsufficientPrivilegeError:
            self._forbidden.append(what)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            # There is no schema, or it is of another revision; that was told.
            pass
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as problem:
            reason = str(problem) or f"no answer within {self._thresholds.answer_seconds:g} s"
            self._add(warning("check_failed", f"{what.capitalize()} could not be looked at: {reason}.", "Try again."))
            return not isinstance(problem, CONNECTION_ERRORS)
        return True

    def _add(self, finding: Finding) -> None:
        self.diagnosis.findings.append(finding)
