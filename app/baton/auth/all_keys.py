"""The API keys of several databases. Each has all keys, with the same id and hash, so that none of them is special.

A command may have reached only some of them. Then keys or revocations are missing in the others, until they are copied.
A revocation in any database is one of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from ..db.postgres import Connection
from . import keys
from .keys import ApiKey

_COLUMNS: Final = "id, name, tenant, scopes, secret_hash, created_at, expires_at, revoked_at"
_READ: Final = f"SELECT {_COLUMNS}, now() AS now FROM baton.api_key"  # noqa: S608
_COPY: Final = f"""
INSERT INTO baton.api_key ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING
"""  # noqa: S608
_REVOKE: Final = "UPDATE baton.api_key SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL"

# The rows of one database by the keys' ids. A row may have scopes that this release does not know.
Rows = Mapping[UUID, asyncpg.Record]


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A key, and the names of the databases that do not have it, or do not know that it was revoked."""

    key: ApiKey
    state: str  # live, expired or revoked
    row: asyncpg.Record
    missing: tuple[str, ...] = ()
    unrevoked: tuple[str, ...] = ()

    def called(self, id_or_name: str) -> bool:
        """Whether that is its id, with or without hyphens, or its name."""
        return id_or_name in {str(self.key.id), self.key.id.hex, self.key.name}


async def read(connection: Connection) -> Rows:
    """Read all keys of one database."""
    return {row["id"]: row for row in await connection.fetch(_READ)}


def union(found: Mapping[str, Rows]) -> list[SharedKey]:
    """Return the keys that several databases have, the oldest first."""
    ids = {key_id for rows in found.values() for key_id in rows}
    return sorted((_shared(key_id, found) for key_id in ids), key=lambda item: (item.key.created_at, item.key.id))


async def copy(connection: Connection, row: asyncpg.Record, revoked_at: datetime | None) -> None:
    """Copy a key into a database, unless it is there.

    Raises:
        ConfigurationError: another valid key there has its name.
    """
    *values, _ = (row[name] for name in _COLUMNS.split(", "))
    with keys.name_taken(row["name"]):
        await connection.execute(_COPY, *values, revoked_at)


async def revoke(connection: Connection, key_id: UUID, revoked_at: datetime) -> None:
    """Note in a database when a key was revoked."""
    await connection.execute(_REVOKE, key_id, revoked_at)


def _shared(key_id: UUID, found: Mapping[str, Rows]) -> SharedKey:
    rows = {name: each[key_id] for name, each in found.items() if key_id in each}
    revoked = {name: row for name, row in rows.items() if row["revoked_at"] is not None}
    first = min(revoked.values(), key=lambda row: row["revoked_at"]) if revoked else next(iter(rows.values()))
    key = keys.of_row(first)
    return SharedKey(
        key,
        key.state(first["now"]),
        first,
        tuple(name for name in found if name not in rows),
        tuple(name for name in rows if name not in revoked) if revoked else (),
    )
