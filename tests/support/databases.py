"""Databases for tests: where their server runs, and how one is made in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import docker
from docker.errors import DockerException

from baton.schema.migrate import migrate


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
