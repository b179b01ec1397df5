"""A finding: what a check found, and what to do about it."""

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
    """The severity: an error loses or delays streams, now or soon; a warning deserves a look."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found and, unless it is OK, what to do about it. A code keeps its meaning across releases."""

    level: Level
    code: str
    message: str
    advice: str = ""


def ok(code: str, found: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(Level.OK, code, found)


def warning(code: str, found: str, advice: str) -> Finding:
    """Return a finding that deserves a look."""
    return Finding(Level.WARNING, code, found, advice)


def error(code: str, found: str, advice: str) -> Finding:
    """Return a finding of something wrong."""
    return Finding(Level.ERROR, code, found, advice)


def refusal(code: str, problem: ConfigurationError, advice: str = "Correct BATON_DATABASE_URL.") -> Finding:
    """Return the finding for a caught error. Its last sentence is the advice, or `advice` if it has only one."""
    found, separator, last = str(problem).rpartition(". ")
    return error(code, f"{found}.", last) if separator else error(code, str(problem), advice)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The values above which a check warns."""

    queue_usage: float = 0.1  # a fraction of the notify queue
    transaction_seconds: float = 60
    snapshot_transactions: int = 50_000
    queued_seconds: float = 30
    dead_rows: int = 50_000
    partitions: int = round(0.9 * MOST)
    # The server needs room for this many at once: a migration, a dump, and reports.
    whole_log_statements: int = 4
    clock_seconds: float = 1
    retained_wal_bytes: int = 1 << 30
    transaction_ids_a_day: float = 500e6
    sample_seconds: float = 1
    answer_seconds: float = 5  # for a query, or for connecting


@dataclass(frozen=True, slots=True)
class Case:
    """What a check can examine. `transaction_id` is the next id at `sampled_at`, in seconds on the database's clock."""

    settings: Settings
    connection: Connection
    transaction_id: int
    sampled_at: float
    thresholds: Thresholds = field(default_factory=Thresholds)
    clock: Callable[[], float] = time

    async def row(self, query: str, *arguments: object) -> asyncpg.Record:
        """Return the row of a query that always returns one row."""
        row = await self.connection.fetchrow(query, *arguments)
        assert row is not None
        return row


Check: TypeAlias = Callable[[Case], AsyncIterator[Finding]]

_FEW: Final = 3
_UNITS: Final = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Format a duration in the largest unit that fits at least twice."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def listed(names: Sequence[str]) -> str:
    """Join the first three names, and add how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def amount(count: int, noun: str) -> str:
    """Return a count with its noun, in the singular or the plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
