"""Databases for tests: where their server runs, and how one is made in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import docker
from docker.errors import DockerException

from baton.db.postgres import connect
from baton.schema import numbering
from baton.schema.migrate import migrate
from baton.schema.numbering import NumberedDatabase
from baton.settings import Settings


def engine_answers() -> bool:
    kind, _, path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    if kind == "unix" and not Path(path).exists():
        return False
    with contextlib.closing(docker.from_env(version="1.40", timeout=2)) as client:
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False


def memory() -> Path | None:
    """A folder in memory with room for a server's data, if there is one.

    Each test makes a database of some 300 files and removes it. On ext4, which does not reuse an inode within seconds
    of its removal, the 200th costs 0.3 s of CPU; in memory each costs 0.01 s.
    """
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > 4 << 30 else None


async def make_quick(server: str) -> None:
    """Turn off durability: each test creates a database, and no test crashes this server.

    Postgres 18 can also have the kernel copy the files of a database: in memory a third of the time.
    """
    await execute(server, "ALTER SYSTEM SET fsync = off")
    # Not in older releases, and not on each system.
    with contextlib.suppress(asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
        await execute(server, "ALTER SYSTEM SET file_copy_method = clone")
    await execute(server, "SELECT pg_reload_conf()")


async def create_template(server: str, name: str) -> None:
    await execute(server, f"CREATE DATABASE {name}")
    await migrate(named_database(server, name), days_ahead=1)


def last_words(dsn: str) -> str:
    """Why a server does not answer, according to its log."""
    log = Path(parse_qs(urlsplit(dsn).query).get("host", [""])[0]) / "log"
    if not log.parent.is_absolute():
        return "The server is not one of these tests' own."
    if not log.exists():
        return f"The data of its server have been removed: there is no {log}."
    return "\n".join(["The server's log ends so:", *log.read_text(errors="replace").splitlines()[-20:]])


def named_database(server: str, name: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


async def execute(dsn: str, statement: str) -> None:
    try:
        connection = await asyncpg.connect(dsn)
    except OSError as error:
        error.add_note(last_words(dsn))
        raise
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def several_databases(server: str, template: str, count: int) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """Make databases that share new streams equally; yield their entries for `BATON_DATABASES`: a, b, c, …"""
    suffix = secrets.token_hex(4)
    names = [f"baton_test_{suffix}_{index}" for index in range(count)]
    try:
        for name in names:
            await execute(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        entries = {
            "abcdefgh"[index]: {"url": named_database(server, name), "number": index, "weight": 1}
            for index, name in enumerate(names)
        }
        await number_databases(entries)
        yield entries
    finally:
        for name in names:
            await execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def number_databases(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Do what `baton migrate` does once all databases have the newest schema; return what it says."""
    async with contextlib.AsyncExitStack() as stack:
        numbered = []
        for entry in Settings.load(databases=dict(entries)).all_databases:
            connection = await connect(entry.url.get_secret_value(), name="test")
            stack.push_async_callback(connection.close)
            numbered.append(NumberedDatabase(entry, connection))
        lines = await numbering.number(numbered)
        shares = await numbering.record_weights(numbered)
        return lines if shares is None else [*lines, shares]
