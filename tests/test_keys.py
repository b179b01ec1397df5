"""`baton keys`."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.processes import environment, finished
from tests.roles import Roles, granted

from baton.auth import keys
from baton.settings import Settings


@pytest.fixture
async def roles(dsn: str) -> AsyncIterator[Roles]:
    async with granted(dsn) as roles:
        yield roles


async def test_keys_are_made_listed_and_revoked_by_the_role_that_migrates(roles: Roles, tmp_path: Path) -> None:
    env = environment(BATON_DATABASE_URL=roles.migrate_dsn)
    scopes = ("--scope", "read", "--scope", "create")
    code, out, err = await finished("keys", "make", "web", "--tenant", "acme", *scopes, env=env, cwd=tmp_path)
    assert (code, "will not be shown again" in err) == (0, True)
    assert keys.parse(out.strip()) is not None
    code, listed, _ = await finished("keys", "list", "--json", env=env, cwd=tmp_path)
    (key,) = json.loads(listed)
    assert (code, key["name"], key["tenant"], key["scopes"]) == (0, "web", "acme", ["create", "read"])
    assert (key["state"], key["expires_at"]) == ("live", None)
    assert out.strip().rpartition("_")[2] not in listed
    code, shown, _ = await finished("keys", "list", env=env | {"COLUMNS": "200"}, cwd=tmp_path)
    assert (code, re.search(r"web +acme +create read +live .+ never +\S+", shown) is not None) == (0, True)
    code, out, _ = await finished("keys", "revoke", "web", env=env, cwd=tmp_path)
    assert (code, out.startswith("Revoked 'web'")) == (0, True)
    code, _, err = await finished("keys", "revoke", "web", env=env, cwd=tmp_path)
    assert (code, err) == (
        2,
        "baton: There is no key 'web' that could be revoked. `baton keys list` shows those there are.\n",
    )


async def test_other_roles_may_not_make_keys(roles: Roles, tmp_path: Path) -> None:
    for dsn in (roles.serve_dsn, roles.work_dsn):
        env = environment(BATON_DATABASE_URL=dsn)
        arguments = ("keys", "make", "web", "--tenant", "acme", "--scope", "read")
        code, out, err = await finished(*arguments, env=env, cwd=tmp_path)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"baton: The role of BATON_DATABASE_URL may not do this: .+ `baton migrate`\.\n", err)


async def test_a_secret_for_tokens_is_made(tmp_path: Path) -> None:
    code, out, _ = await finished("keys", "token-secret", env=environment(), cwd=tmp_path)
    assert code == 0
    assert len(Settings.load(token_keys=out.strip()).token_keys) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("make a --tenant t --scope all", "A key has one or more of the scopes admin, cancel, create, read"),
        ("make a --scope read", "Missing option '--tenant'"),
        ("make a --tenant t", "Missing option '--scope'"),
        ("make a --tenant t --scope read --expires-days 0", "--expires-days"),
    ],
)
async def test_a_mistake_is_told(dsn: str, tmp_path: Path, arguments: str, sentence: str) -> None:
    env = environment(BATON_DATABASE_URL=dsn)
    code, out, err = await finished("keys", *arguments.split(), env=env, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err
