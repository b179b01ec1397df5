"""What a check has found, and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import time
from typing import Final, TypeAlias

import asyncpg

from ..db.partitions import MOST
from ..db.postgres import Connection
from ..errors import ConfigurationError
from ..settings import Settings


class Level(StrEnum):
    """How bad it is: an error loses or delays streams, or soon will; a warning is worth a look."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found and, unless all is well, what to do, each in a sentence. A code never changes its meaning."""

    level: Level
    code: str
    message: str
    advice: str = ""


def ok(code: str, found: str) -> Finding:
    """Say that all is well."""
    return Finding(Level.OK, code, found)


def warning(code: str, found: str, advice: str) -> Finding:
    """Say what is worth a look."""
    return Finding(Level.WARNING, code, found, advice)


def error(code: str, found: str, advice: str) -> Finding:
    """Say what is wrong."""
    return Finding(Level.ERROR, code, found, advice)


def refusal(code: str, problem: ConfigurationError, advice: str = "Correct BATON_DATABASE_URL.") -> Finding:
    """Say what an error says, whose last sentence is what to do; if there is but one, `advice` is."""
    found, several, last = str(problem).rpartition(". ")
    return error(code, f"{found}.", last) if several else error(code, str(problem), advice)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is worth a warning."""

    queue_usage: float = 0.1  # of the notify queue
    transaction_seconds: float = 60
    snapshot_transactions: int = 50_000
    queued_seconds: float = 30
    dead_rows: int = 50_000
    partitions: int = round(0.9 * MOST)
    # As many must fit in at once: a migration, a dump, and people's reports.
    whole_log_statements: int = 4
    clock_seconds: float = 1
    retained_wal_bytes: int = 1 << 30
    transaction_ids_a_day: float = 500e6
    sample_seconds: float = 1
    answer_seconds: float = 5  # to a query, or to connecting


@dataclass(frozen=True, slots=True)
class Case:
    """What a check may look at. `transaction_id` is the next one as it was at `sampled_at`, on the database's clock."""

    settings: Settings
    connection: Connection
    transaction_id: int
    sampled_at: float
    thresholds: Thresholds = field(default_factory=Thresholds)
    clock: Callable[[], float] = time

    async def row(self, query: str, *arguments: object) -> asyncpg.Record:
        """Return the one row of a query that always has one."""
        row = await self.connection.fetchrow(query, *arguments)
        assert row is not None
        return row


Check: TypeAlias = Callable[[Case], AsyncIterator[Finding]]

_FEW: Final = 3
_UNITS: Final = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Say how long, in the largest unit that fits."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def listed(names: Sequence[str]) -> str:
    """Name the first three, and say how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def amount(count: int, noun: str) -> str:
    """Say how many, in the singular or the plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
