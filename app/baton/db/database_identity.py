"""Which database this is: the installation that it belongs to, and its number there, which its streams' ids carry.

A swapped or mistyped URL would lead a pod to another database than the id of a stream says. So each process compares
the number with its settings at the start, and with several databases also that all belong to one installation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..database_entries import DatabaseEntry
from ..errors import ConfigurationError
from .postgres import Connection, Pool

# How long a start waits for further databases once one has answered.
START_SECONDS: Final = 3.0

_READ: Final = "SELECT installation, number FROM baton.database_identity"


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """One row: an installation, which is a random UUID, and a number from 0 to `stream_ids.MAX_NUMBER`."""

    installation: UUID
    number: int


async def read(executor: Connection | Pool) -> DatabaseIdentity:
    """Read the identity. The schema is up to date."""
    row = await executor.fetchrow(_READ)
    if row is None:
        raise ConfigurationError(
            "The database has no row in baton.database_identity. Restore it from a backup: without it no stream can be "
            "created."
        )
    return DatabaseIdentity(**row)


async def check_number(executor: Connection | Pool, database: DatabaseEntry) -> DatabaseIdentity:
    """Read the identity, and compare its number with the settings.

    Raises:
        ConfigurationError: the settings lead to a database with another number.
    """
    found = await read(executor)
    compare(found, database)
    return found


def compare(found: DatabaseIdentity, database: DatabaseEntry) -> None:
    """Compare the number of a database with the settings.

    Raises:
        ConfigurationError: they differ.
    """
    if found.number == database.number:
        return
    if not database.name:
        raise ConfigurationError(
            f"This is the database with the number {found.number} of an installation with several. Set BATON_DATABASES "
            "instead of BATON_DATABASE_URL, with all of its databases."
        )
    raise ConfigurationError(
        f"BATON_DATABASES: the url of {database.name!r} leads to the database with the number {found.number}, and its "
        f"entry says {database.number}. If the URLs are mixed up, correct them. If the database is new, run `baton "
        "migrate`, which gives it its number."
    )


def check_installation(found: dict[str, DatabaseIdentity]) -> None:
    """Refuse databases, by name, that belong to different installations.

    Raises:
        ConfigurationError: they do.
    """
    by_installation: dict[UUID, str] = {}
    for name, identity in found.items():
        by_installation.setdefault(identity.installation, name)
    if len(by_installation) > 1:
        first, other, *_ = by_installation.values()
        raise ConfigurationError(
            f"BATON_DATABASES: {first!r} and {other!r} belong to different installations. Correct the URLs. To add a "
            "database, take an empty one, and run `baton migrate`."
        )


async def wait_for_first(checks: Iterable[asyncio.Task[DatabaseIdentity]]) -> None:
    """Wait until all checks have ended; once one has succeeded, `START_SECONDS` for the others."""
    pending = set(checks)
    loop = asyncio.get_running_loop()
    deadline: float | None = None
    while pending:
        timeout = None if deadline is None else max(0.0, deadline - loop.time())
        done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return
        if deadline is None and any(task.exception() is None for task in done):
            deadline = loop.time() + START_SECONDS
