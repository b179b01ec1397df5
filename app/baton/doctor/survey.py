"""Examines several databases at once: each by itself, and then all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import time

from ..database_entries import DatabaseEntry
from ..db.named_errors import sentence
from ..settings import Settings
from . import database_facts, several_checks
from .examination import OF_ALL, Diagnosis, examine
from .finding import Level, Thresholds
from .installation_checks import distributions


@dataclass(frozen=True, slots=True)
class Survey:
    """The diagnosis of all databases together, and that of each one by its name."""

    together: Diagnosis
    databases: dict[str, Diagnosis]

    @property
    def complete(self) -> bool:
        """Whether each database answered to the end."""
        return all(diagnosis.complete for diagnosis in self.databases.values())

    def count(self, level: Level) -> int:
        """Return the number of findings of a level."""
        return sum(diagnosis.count(level) for diagnosis in (self.together, *self.databases.values()))


async def survey(
    settings: Settings,
    *,
    thresholds: Thresholds | None = None,
    clock: Callable[[], float] = time,
    say: Callable[[str], None] = lambda _what: None,
) -> Survey:
    """Run all checks of each database of BATON_DATABASES, and those over all of them."""
    limits = thresholds or Thresholds()
    entries = settings.all_databases
    found = await asyncio.gather(*(_examine(settings, entry, limits, clock, say) for entry in entries))
    say("what the databases have in common")
    read = await asyncio.gather(*(database_facts.read(settings.of(entry), entry, limits, clock) for entry in entries))
    facts = [item for item in read if not isinstance(item, str)]
    missing = {entry.name: reason for entry, reason in zip(entries, read, strict=True) if isinstance(reason, str)}
    together = Diagnosis([distributions()])
    together.findings += several_checks.findings(settings, facts, missing, limits)
    return Survey(together, {entry.name: diagnosis for entry, diagnosis in zip(entries, found, strict=True)})


async def _examine(
    settings: Settings,
    entry: DatabaseEntry,
    limits: Thresholds,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> Diagnosis:
    diagnosis = await examine(
        settings.of(entry),
        thresholds=limits,
        clock=clock,
        say=lambda what: say(f"{what} of {entry.name}"),
        leave_out=OF_ALL,
    )
    named = partial(sentence, database=entry)
    diagnosis.findings = [
        replace(item, message=named(item.message), advice=named(item.advice)) for item in diagnosis.findings
    ]
    return diagnosis
