"""`baton keys`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.processes import environment, finished
from tests.support.roles import Roles, granted
from typer.testing import CliRunner, Result

from baton.auth import keys
from baton.commands.keys import app
from baton.errors import ConfigurationError
from baton.settings import Settings


@pytest.fixture
async def roles(dsn: str) -> AsyncIterator[Roles]:
    async with granted(dsn) as roles:
        yield roles


async def run(dsn: str, *arguments: str) -> Result:
    """Run the command in this process; a mistake is raised, and told by `baton` itself."""
    env = {"BATON_DATABASE_URL": dsn, "COLUMNS": "200"}
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)
    if isinstance(result.exception, ConfigurationError):
        raise result.exception
    return result


MAKE = ("create", "web", "--tenant", "acme", "--scope", "read", "--scope", "create")


async def test_the_migrating_role_creates_lists_and_revokes_keys(roles: Roles) -> None:
    made = await run(roles.migrate_dsn, *MAKE)
    assert (made.exit_code, "is not shown again" in made.stderr) == (0, True)
    key = made.stdout.removesuffix("\n")
    assert keys.parse(key) is not None
    listed = (await run(roles.migrate_dsn, "list", "--json")).stdout
    (told,) = json.loads(listed)
    assert (told["name"], told["tenant"], told["scopes"]) == ("web", "acme", ["create", "read"])
    assert (told["state"], told["expires_at"]) == ("live", None)
    assert key.rpartition("_")[2] not in listed
    shown = (await run(roles.migrate_dsn, "list")).stdout
    assert re.search(r"web +acme +create read +live .+ never +\S+", shown)
    assert (await run(roles.migrate_dsn, "revoke", "web")).stdout.startswith("Revoked 'web'")
    with pytest.raises(ConfigurationError, match="no key 'web'"):
        await run(roles.migrate_dsn, "revoke", "web")


async def test_other_roles_cannot_create_keys(roles: Roles) -> None:
    for dsn in (roles.serve_dsn, roles.work_dsn):
        with pytest.raises(ConfigurationError, match=r"may not do this: .+ Connect as the role of `baton migrate`\."):
            await run(dsn, *MAKE)


async def test_a_token_secret_is_created() -> None:
    made = await run("", "token-secret")
    assert len(Settings.load(token_keys=made.stdout.strip()).token_keys) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("create a --scope read", "Missing option '--tenant'"),
        ("create a --tenant t", "Missing option '--scope'"),
        ("create a --tenant t --scope read --expires-days 0", "--expires-days"),
    ],
)
async def test_a_wrong_argument_is_reported(arguments: str, sentence: str) -> None:
    result = await run("", *arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


async def test_a_mistake_is_reported_in_a_sentence(dsn: str, tmp_path: Path) -> None:
    arguments = ("keys", "create", "a", "--tenant", "t", "--scope", "all")
    assert await finished(*arguments, env=environment(BATON_DATABASE_URL=dsn), cwd=tmp_path) == (
        2,
        "",
        "baton: A key needs one or more of the scopes admin, cancel, create, input, produce, read.\n",
    )
