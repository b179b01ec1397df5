"""API keys: the table that holds them, and the form in which a client shows one.

A key looks like `baton_<id>_<secret>`, both in hexadecimal. Its secret is 256 random bits, and the table has the
SHA-256 of it. A slow hash, as for passwords, would not help: 256 random bits cannot be guessed, however fast a guess
is, and every request would pay for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from ..db.postgres import Connection, Pool
from ..errors import ConfigurationError
from ..principal import SCOPES, AuthScope, is_name

_KEY: Final = re.compile(r"baton_([0-9a-f]{32})_([0-9a-f]{64})")
_NAME: Final = re.compile(r"[^\W_][\w .:@/-]{0,99}")

_COLUMNS: Final = "id, name, tenant, scopes, created_at, expires_at, revoked_at"
_INSERT: Final = f"""
INSERT INTO baton.api_key (name, tenant, scopes, secret_hash, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(days => $5))
RETURNING {_COLUMNS}
"""  # noqa: S608
_LIVE: Final = f"""
SELECT {_COLUMNS}, secret_hash FROM baton.api_key
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""  # noqa: S608
_REVOKED: Final = "SELECT id FROM baton.api_key WHERE revoked_at IS NOT NULL AND id = ANY ($1)"
_REVOKE: Final = f"""
UPDATE baton.api_key SET revoked_at = clock_timestamp()
WHERE revoked_at IS NULL AND (id::text = $1 OR replace(id::text, '-', '') = $1 OR name = $1)
RETURNING {_COLUMNS}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row."""

    id: UUID
    name: str
    tenant: str
    scopes: frozenset[AuthScope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    secret_hash: bytes = field(default=b"", repr=False)

    def has_secret(self, secret: str) -> bool:
        """Whether this is its secret, compared in constant time."""
        return hmac.compare_digest(hashed(secret), self.secret_hash)

    def expired(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now

    def state(self, now: datetime) -> str:
        """Return live, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expired(now) else "live"


def hashed(secret: str) -> bytes:
    """Return the hash of a secret that the table stores."""
    return hashlib.sha256(secret.encode()).digest()


def parse(text: str) -> tuple[UUID, str] | None:
    """Return the id and the secret of a key; None if the text does not look like a key."""
    match = _KEY.fullmatch(text)
    return None if match is None else (UUID(match[1]), match[2])


async def make(
    connection: Connection, name: str, tenant: str, scopes: Collection[str], expires_days: int | None = None
) -> tuple[ApiKey, str]:
    """Make a key; return its row, and the key itself, which is not stored.

    Raises:
        ConfigurationError: the name is taken, or it or the tenant cannot be used.
    """
    _check(name, tenant, scopes)
    secret = secrets.token_hex(32)
    with name_taken(name):
        row = await connection.fetchrow(_INSERT, name, tenant, sorted(set(scopes)), hashed(secret), expires_days)
    assert row is not None
    key = of_row(row)
    return key, f"baton_{key.id.hex}_{secret}"


@contextlib.contextmanager
def name_taken(name: str) -> Iterator[None]:
    """Say so if a valid key has the name already.

    Raises:
        ConfigurationError: one has it.
    """
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise ConfigurationError(
            f"A key called {name!r} exists already. Choose another name, or revoke that key: `baton keys list` shows "
            "all. To replace a key without a gap, make the new one first."
        ) from None


async def revoke(connection: Connection, id_or_name: str) -> ApiKey:
    """Revoke a key.

    Raises:
        ConfigurationError: no key has that id or name, or it was revoked before.
    """
    row = await connection.fetchrow(_REVOKE, id_or_name)
    if row is None:
        raise ConfigurationError(
            f"There is no key {id_or_name!r:.120} that could be revoked. `baton keys list` shows all keys."
        )
    return of_row(row)


async def live(executor: Connection | Pool) -> dict[UUID, ApiKey]:
    """Read the keys that are neither revoked nor expired."""
    return {row["id"]: of_row(row) for row in await executor.fetch(_LIVE)}


async def revoked(executor: Connection | Pool, ids: Collection[UUID]) -> set[UUID]:
    """Return which of these keys were revoked, as this database knows."""
    return {row["id"] for row in await executor.fetch(_REVOKED, list(ids))}


def _check(name: str, tenant: str, scopes: Collection[str]) -> None:
    # A name that looks like an id would be ambiguous when a key is revoked.
    if not _NAME.fullmatch(name) or re.fullmatch("[0-9a-f-]{32,36}", name):
        raise ConfigurationError(
            f"{name!r:.120} cannot be the name of a key. A name has 1 to 100 letters, digits, spaces and . _ : @ / -, "
            "and begins with a letter or a digit."
        )
    if not is_name(tenant):
        raise ConfigurationError("A tenant has 1 to 200 printable characters.")
    if not scopes or not set(scopes) <= SCOPES:
        raise ConfigurationError(f"A key needs one or more of the scopes {', '.join(sorted(SCOPES))}.")


def of_row(row: asyncpg.Record) -> ApiKey:
    """Return the key that a row describes."""
    return ApiKey(
        row["id"],
        row["name"],
        row["tenant"],
        # A later release may have added scopes that this one does not know.
        SCOPES.intersection(row["scopes"]),
        row["created_at"],
        row["expires_at"],
        row["revoked_at"],
        row.get("secret_hash") or b"",
    )
