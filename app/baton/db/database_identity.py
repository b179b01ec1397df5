"""Which database this is: the installation that it belongs to, and its number there, which its streams' ids carry.

A swapped or mistyped URL would lead a pod to another database than the id of a stream says. So each process compares
the number with its settings at the start, and with several databases also that all belong to one installation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..database_entries import DatabaseEntry
from ..errors import ConfigurationError
from .postgres import Connection, Pool

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
    if found.number == database.number:
        return found
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
