"""Roles for a test's database, created by the SQL of `baton grants`. Roles belong to the whole server."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import astuple, dataclass
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from tests.support.databases import execute

from baton.schema.grants import Revocation, RoleNames
from baton.schema.grants_sql import script

PASSWORD = "hunter2"


@dataclass(frozen=True, slots=True)
class Roles:
    """The three roles and the DSN of each."""

    admin_dsn: str
    names: RoleNames

    @property
    def migrate_dsn(self) -> str:
        return as_role(self.admin_dsn, self.names.migrate)

    @property
    def work_dsn(self) -> str:
        return as_role(self.admin_dsn, self.names.work)

    @property
    def serve_dsn(self) -> str:
        return as_role(self.admin_dsn, self.names.serve)

    async def grant(self, revocation: Revocation | None = None) -> None:
        await execute(self.admin_dsn, script(self.names, revocation))


def unique_names(pattern: str = "{}_{}") -> RoleNames:
    suffix = secrets.token_hex(4)
    return RoleNames(*(pattern.format(service, suffix) for service in ("migrate", "work", "serve")))


@contextlib.asynccontextmanager
async def granted(admin_dsn: str, names: RoleNames | None = None) -> AsyncIterator[Roles]:
    """Run the SQL in a database; at the end, reassign what the roles own and drop them."""
    roles = Roles(admin_dsn, names or unique_names())
    try:
        await roles.grant()
        connection = await asyncpg.connect(admin_dsn)
        for name in astuple(roles.names):
            await connection.execute(f"ALTER ROLE {await quoted(connection, name)} PASSWORD '{PASSWORD}'")
        await connection.close()
        yield roles
    finally:
        await drop(admin_dsn, *astuple(roles.names))


async def drop(dsn: str, *names: str) -> None:
    connection = await asyncpg.connect(dsn)
    for name in names:
        if await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", name):
            role = await quoted(connection, name)
            await connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")
            await connection.execute(f"DROP ROLE {role}")
    await connection.close()


async def quoted(connection: asyncpg.Connection[asyncpg.Record], name: str) -> str:
    return str(await connection.fetchval("SELECT quote_ident($1)", name))


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}:{PASSWORD}@{place}"))
