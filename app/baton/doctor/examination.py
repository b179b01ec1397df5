"""Runs the checks one after another on one connection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from time import time
from typing import Final

import asyncpg

from ..db.postgres import CONNECTION_ERRORS, connect
from ..errors import DatabaseUnreachable
from ..settings import Settings
from . import (
    access_checks,
    capacity_checks,
    durability_checks,
    external_checks,
    installation_checks,
    notify_checks,
    partition_checks,
    role_checks,
    schema_checks,
    server_checks,
    vacuum_checks,
    waiting_checks,
    worker_checks,
)
from .finding import Case, Check, Finding, Level, Thresholds, ok, refusal, warning

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("the installation", installation_checks.other_distribution),
    ("the server's version", server_checks.version),
    ("the encoding", server_checks.encoding),
    ("whether the server accepts writes", server_checks.writable),
    ("the disk", capacity_checks.room),
    ("the schema", schema_checks.revision),
    ("the role's privileges", role_checks.privileges),
    ("the owners of tables", role_checks.owners),
    ("access control", access_checks.access),
    ("the roles that can connect", access_checks.public),
    # Before the check of delivery: asking for the queue's usage frees what every session has read.
    ("the notify queue", notify_checks.queue),
    ("notifications", notify_checks.delivery),
    ("timeouts of the role", server_checks.timeouts),
    ("the server's logging", server_checks.logged_texts),
    ("partitions", partition_checks.partitions),
    ("locks of partitions", partition_checks.locks),
    ("retention", partition_checks.retention),
    ("detached partitions", partition_checks.leftovers),
    ("unlogged tables", schema_checks.unlogged),
    ("indexes", schema_checks.indexes),
    ("autovacuum", vacuum_checks.autovacuum),
    ("old transactions", vacuum_checks.transactions),
    ("old snapshots", vacuum_checks.snapshots),
    ("prepared transactions", vacuum_checks.prepared),
    ("replication slots", vacuum_checks.slots),
    ("workers", worker_checks.workers),
    ("streams without a worker", worker_checks.orphans),
    ("the queue of streams", worker_checks.queue),
    ("end hooks and webhooks", worker_checks.end_hooks),
    ("processes of an older release", external_checks.older_code),
    ("external streams", external_checks.open_streams),
    ("waiting streams", waiting_checks.waits),
    ("connections", capacity_checks.connections),
    ("durability", durability_checks.durability),
    ("the clock", server_checks.clock),
    ("transaction ids", capacity_checks.transaction_ids),
)


# Of several databases, these are examined once: an installation has one of each.
OF_ALL: Final = frozenset({"the installation", "access control"})


@dataclass(slots=True)
class Diagnosis:
    """The findings of a run. `complete` is false if the database was unreachable, at the start or later."""

    findings: list[Finding] = field(default_factory=list)
    complete: bool = True

    def count(self, level: Level) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)


async def examine(
    settings: Settings,
    *,
    thresholds: Thresholds | None = None,
    clock: Callable[[], float] = time,
    say: Callable[[str], None] = lambda _what: None,
    leave_out: Collection[str] = (),
) -> Diagnosis:
    """Run all checks of one database. `say` gets the name of each check before it runs. `leave_out` names checks.

    Raises:
        ConfigurationError: no database is configured, or its DSN is invalid.
    """
    limits = thresholds or Thresholds()
    examination = _Examination(settings, limits, clock, say, leave_out)
    try:
        await examination.run()
    except DatabaseUnreachable as problem:
        examination.diagnosis.findings.append(refusal("unreachable", problem))
        examination.diagnosis.complete = False
    return examination.diagnosis


class _Examination:
    """One run of the checks. After a check that gets no answer, the next check uses a new connection."""

    def __init__(
        self,
        settings: Settings,
        thresholds: Thresholds,
        clock: Callable[[], float],
        say: Callable[[str], None],
        leave_out: Collection[str],
    ) -> None:
        self._settings = settings
        self._thresholds = thresholds
        self._clock = clock
        self._say = say
        self._leave_out = leave_out
        self._forbidden: list[str] = []
        self._sample: tuple[int, float] | None = None
        self.diagnosis = Diagnosis()

    async def run(self) -> None:
        remaining = iter([item for item in CHECKS if item[0] not in self._leave_out])
        while await self._run_on_one_connection(remaining):
            pass
        if self._forbidden:
            self._add(
                warning(
                    "not_permitted",
                    f"Not checked, because this role lacks the privilege: {', '.join(self._forbidden)}.",
                    "Run the doctor as one of the roles of `baton grants`, and GRANT pg_monitor TO that role.",
                )
            )

    async def _run_on_one_connection(self, remaining: Iterator[tuple[str, Check]]) -> bool:
        """Run checks on one connection; return whether checks are left that need a new one."""
        seconds = self._thresholds.answer_seconds
        started = self._clock()
        connection = await connect(
            self._settings.dsn, timeout_seconds=seconds, name="baton doctor", prepare=self._settings.prepare
        )
        try:
            if self._sample is None:
                row = await connection.fetchrow(capacity_checks.SAMPLE)
                assert row is not None
                self._sample = row[0], row[1]
                role = await connection.fetchval("SELECT current_user::text")
                self._add(ok("reachable", f"Connected as {role!r} in {(self._clock() - started) * 1000:.0f} ms."))
            case = Case(self._settings, connection, *self._sample, self._thresholds, self._clock)
            for what, check in remaining:
                self._say(what)
                if not await self._run_one(what, check, case):
                    return True
            return False
        finally:
            connection.terminate()

    async def _run_one(self, what: str, check: Check, case: Case) -> bool:
        """Run a check; return whether the connection is still usable."""
        try:
            async for finding in check(case):
                self._add(finding)
        except asyncpg.InsufficientPrivilegeError:
            self._forbidden.append(what)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            # The schema is missing, or at another revision: the check of the schema reports that.
            pass
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as problem:
            reason = str(problem) or f"no answer within {self._thresholds.answer_seconds:g} s"
            self._add(warning("check_failed", f"The check of {what} failed: {reason}.", "Run the doctor again."))
            return not isinstance(problem, CONNECTION_ERRORS)
        return True

    def _add(self, finding: Finding) -> None:
        self.diagnosis.findings.append(finding)
