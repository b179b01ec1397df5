"""The command line: a person's mistake gets one sentence that says what to do."""

from __future__ import annotations

import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.support.commands import told
from tests.support.databases import execute, named_database
from tests.support.logbook import connected, until
from tests.support.processes import SERVES, environment, finished, running
from tests.support.roles import PASSWORD as SECRET
from tests.support.roles import as_role

from baton import __version__

Case = tuple[str, dict[str, str], str]
ANONYMOUS = {"BATON_ALLOW_ANONYMOUS": "true", "BATON_PORT": "0"}


def database(url: str) -> dict[str, str]:
    return {"BATON_DATABASE_URL": url, **ANONYMOUS}


def complaint(arguments: str, env: Mapping[str, str], end: tuple[int, str, str]) -> str:
    """Return the sentence of a command that must have been refused."""
    code, out, err = end
    assert code == 2, (arguments, env, code, out, err)
    # What `migrate` is about to do it says before it is refused.
    assert out == "" or (
        arguments == "migrate" and out.startswith("The database has no Baton tables yet. Revisions to run:")
    )
    assert err.startswith("baton: "), (arguments, env, err)
    assert err.count("\n") == 1, (arguments, env, err)
    assert SECRET not in err
    return err.removeprefix("baton: ").strip()


def check(cases: Mapping[str, Case]) -> None:
    for name, (arguments, env, expected) in cases.items():
        sentence = complaint(arguments, env, told(*arguments.split(), env=env))
        assert re.fullmatch(expected, sentence), f"{name}: {sentence}"


UNREACHABLE = f"postgresql://u:{SECRET}@127.0.0.1:1/x"
IS_IT_RUNNING = r"No Postgres could be reached at {}: .+ Is it running, and is BATON_DATABASE_URL right\?"
ESCAPE = r"BATON_DATABASE_URL: it must look like .+ Percent-encode the password.+ write % .+ as %25 .+"
WRONG_DATABASES: dict[str, Case] = {
    "none": ("serve", {**ANONYMOUS}, r"No database is configured\. Set BATON_DATABASE_URL=postgresql://.+"),
    "none to migrate": ("migrate", {}, r"No database is configured\. .+"),
    "an empty one": ("worker", {"BATON_DATABASE_URL": ""}, r"No database is configured\. .+"),
    "another kind": ("serve", database("mysql://h/x"), r"BATON_DATABASE_URL: it must look like postgresql://.+"),
    "no scheme": ("worker", database(f"u:{SECRET}@h/x"), r"BATON_DATABASE_URL: it must look like postgresql://.+"),
    "a bad option": (
        "worker",
        database("postgresql://h/x?sslmode=odd"),
        r"BATON_DATABASE_URL: sslmode must be one of .+",
    ),
    "nobody there": ("serve", database(UNREACHABLE), IS_IT_RUNNING.format("127.0.0.1:1")),
    "nobody there to migrate": ("migrate", database(UNREACHABLE), IS_IT_RUNNING.format("127.0.0.1:1")),
    "none for a worker": ("worker", {}, r"No database is configured\. .+"),
    "none to maintain": ("maintain", {}, r"No database is configured\. .+"),
    "a broken address": ("serve", database("postgresql://[::1/x"), r"BATON_DATABASE_URL: .+"),
    "a port that is none": ("serve", database(f"postgresql://u:{SECRET}@h:odd/x"), r"BATON_DATABASE_URL.+"),
    "a password with a slash": ("worker", database(f"postgresql://u:{SECRET}/1@h/x"), ESCAPE),
    "a password with a question mark": ("worker", database(f"postgresql://u:{SECRET}?1@h/x"), ESCAPE),
    "a password with a hash": ("serve", database(f"postgresql://u:{SECRET}#1@h/x"), ESCAPE),
    "a password of digits and a slash": (
        "worker",
        database("postgresql://127.0.0.1:1/1@h/x"),
        ESCAPE,
    ),
    "a port out of range": (
        "worker",
        database(f"postgresql://u:{SECRET}@127.0.0.1:99999/x"),
        ESCAPE,
    ),
    "nobody there for a worker": ("worker", database(UNREACHABLE), IS_IT_RUNNING.format("127.0.0.1:1")),
    "nobody there to maintain": ("maintain", database(UNREACHABLE), IS_IT_RUNNING.format("127.0.0.1:1")),
    "no such host": ("worker", database("postgresql://nosuch.invalid/x"), IS_IT_RUNNING.format("nosuch.invalid:5432")),
}


@pytest.mark.slow
def test_a_wrong_database_is_reported() -> None:
    check(WRONG_DATABASES)


@pytest.mark.parametrize("name", ["none", "another kind", "nobody there for a worker", "nobody there to migrate"])
async def test_a_process_prints_its_error_and_exits(name: str, tmp_path: Path) -> None:
    arguments, env, expected = WRONG_DATABASES[name]
    end = await finished(arguments, env=environment(**env), cwd=tmp_path)
    assert re.fullmatch(expected, complaint(arguments, env, end))


def test_a_missing_or_unmigrated_database_is_reported(empty_dsn: str) -> None:
    missing = r"There is no database 'nosuch' on .+\. Create it, or correct BATON_DATABASE_URL\."
    unmigrated = r"The database has no Baton tables yet\. Run `baton migrate` first\."
    cases: dict[str, Case] = {
        "no such database": ("serve", database(named_database(empty_dsn, "nosuch")), missing),
        "nor for a worker": ("worker", database(named_database(empty_dsn, "nosuch")), missing),
        "nor to migrate": ("migrate", database(named_database(empty_dsn, "nosuch")), missing),
        "not migrated": ("serve", database(empty_dsn), unmigrated),
        "nor for a worker either": ("worker", database(empty_dsn), unmigrated),
    }
    check(cases)


@pytest.fixture
async def nobody(dsn: str) -> AsyncIterator[str]:
    """A role without rights."""
    role = f"nobody_{secrets.token_hex(4)}"
    await execute(dsn, f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
    yield role
    await execute(dsn, f"DROP ROLE {role}")


def test_a_role_without_privileges_is_reported(dsn: str, empty_dsn: str, nobody: str) -> None:
    may_not = r"The role of BATON_DATABASE_URL may not use Baton's tables: permission denied for schema baton\. .+"
    cases: dict[str, Case] = {
        "to serve": ("serve", database(as_role(dsn, nobody)), may_not),
        "to work": ("worker", database(as_role(dsn, nobody)), may_not),
        "to migrate": (
            "migrate",
            database(as_role(empty_dsn, nobody)),
            r"The migration failed: permission denied for database \w+\. Run `baton migrate` as a role .+",
        ),
        "to migrate what is another's": (
            "migrate",
            database(as_role(dsn, nobody)),
            r"The migration failed: permission denied for .+\. Run `baton migrate` as a role .+",
        ),
    }
    check(cases)


FILES = {
    "broken.py": "raise RuntimeError('out of\\norder')\n",
    "syntax.py": "def (\n",
    "needs.py": "import nosuch_dependency\n",
    "plain.py": "async def answer(request):\n    return 'text'\n",
}


def own(target: str) -> dict[str, str]:
    return {"BATON_GENERATORS": f"mine={target}"}


def test_a_generator_that_cannot_be_loaded_is_reported(dsn: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    prefix = r"The generator 'mine' cannot be loaded: "
    no_generator = r"The generator 'mine', .+, is not a generator function: .+"
    cases: dict[str, Case] = {
        "no module": ("worker", own("nosuch:f"), prefix + r"there is no module 'nosuch', .+"),
        "a module that fails": ("worker", own("broken:f"), prefix + r".+ fails with RuntimeError: out of order"),
        "a module that is no Python": ("worker", own("syntax:f"), prefix + r".+ fails with SyntaxError: .+"),
        "a module that needs another": ("worker", own("needs:f"), prefix + r".+ fails with ModuleNotFoundError: .+"),
        "no attribute": ("worker", own("plain:nosuch"), prefix + r"the module 'plain' has no 'nosuch'\."),
        "a coroutine": ("worker", own("plain:answer"), no_generator),
        "no target": ("worker", {"BATON_GENERATORS": "mine"}, r"BATON_GENERATORS: item 1 must look like .+"),
    }
    check(on(dsn, cases))


def on(dsn: str, cases: Mapping[str, Case]) -> dict[str, Case]:
    return {name: (arguments, database(dsn) | env, expected) for name, (arguments, env, expected) in cases.items()}


def test_an_invalid_setting_is_reported(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        cases: dict[str, Case] = {
            "out of range": ("serve --port 70000", {}, r"BATON_PORT: .+ 65535 \(it is 70000\)\."),
            "out of range in the environment": (
                "serve",
                {"BATON_SSE_KEEP_ALIVE_SECONDS": "0"},
                r"BATON_SSE_KEEP_ALIVE_SECONDS: .+ greater than 0 \(it is 0\)\.",
            ),
            "no number": ("worker", {"BATON_WORKER_CONCURRENCY": "x"}, r"BATON_WORKER_CONCURRENCY: .+ integer.+"),
            "two at once": (
                "worker",
                {"BATON_LEASE_SECONDS": "-1", "BATON_QUEUE_POLL_SECONDS": "x"},
                r"BATON_LEASE_SECONDS: .+ BATON_QUEUE_POLL_SECONDS: .+",
            ),
            "nobody offers the default": (
                "serve",
                {"BATON_DEFAULT_GENERATOR": "nosuch"},
                r"BATON_DEFAULT_GENERATOR: There is no generator called 'nosuch'\. Known are: replay\. .+",
            ),
            "the default has no key": (
                "serve",
                {"BATON_DEFAULT_GENERATOR": "openai"},
                r"BATON_DEFAULT_GENERATOR: The generator 'openai' cannot be used yet: set OPENAI_API_KEY, or .+\.",
            ),
            "the default is not offered": (
                "serve",
                {"BATON_DEFAULT_GENERATOR": "openai", "OPENAI_API_KEY": "k", "BATON_ENABLED_GENERATORS": "replay"},
                r"BATON_DEFAULT_GENERATOR: The generator 'openai' is left out of BATON_ENABLED_GENERATORS\.",
            ),
            "a port in use": ("serve", {"BATON_PORT": port}, rf"Cannot listen on 127\.0\.0\.1:{port}: .+ in use\."),
            "no such address": ("serve --host nosuch.invalid", {}, r"Cannot listen on nosuch\.invalid:0: .+\."),
            "no access control": (
                "serve",
                {"BATON_ALLOW_ANONYMOUS": "false"},
                r"No client could get in: there is no API key and no identity provider\. Run `baton keys create .+",
            ),
        }
        check(on(dsn, cases))


async def test_version(tmp_path: Path) -> None:
    assert await finished("--version", env=environment(), cwd=tmp_path) == (0, f"baton {__version__}\n", "")


def test_help() -> None:
    code, out, err = told("--help", env={})
    assert (code, err) == (0, "")
    assert {"serve", "worker", "migrate"} <= set(out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        "nosuch",
        "serve --port x",
        "serve --nosuch",
        "maintain --every 9 --dry-run",
        "migrate --sql --dry-run",
        "migrate --from 0001",
    ],
)
def test_a_wrong_argument_is_reported(arguments: str) -> None:
    code, _, err = told(*arguments.split(), env={})
    assert code == 2
    assert "Traceback" not in err
    assert err.startswith("Usage: ")


def test_migrating_reports_its_changes_and_can_be_repeated(empty_dsn: str) -> None:
    env = {"BATON_DATABASE_URL": empty_dsn, "BATON_PARTITION_DAYS_AHEAD": "2"}
    code, out, err = told("migrate", env=env)
    assert (code, err) == (0, "")
    assert len(re.findall(r"^Created partition \S+\.$", out, re.MULTILINE)) == 4
    assert told("migrate", env=env) == (0, "The database is up to date.\n", "")


def test_maintaining_reports_its_changes_and_its_plan(dsn: str) -> None:
    env = {"BATON_DATABASE_URL": dsn, "BATON_PARTITION_DAYS_AHEAD": "2", "BATON_RETENTION_DAYS": "1"}
    code, out, err = told("maintain", "--dry-run", env=env)
    assert (code, err) == (0, "")
    assert re.match(r"Would create partition \S+\.\nWould delete 0 streams created before \S+ \(UTC\)", out)
    code, out, err = told("maintain", env=env)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Created partition \S+\.\nStreams created before \S+ \(UTC\) have expired\.\n", out)


async def test_the_maintenance_loop_stops_on_a_signal(dsn: str, tmp_path: Path) -> None:
    env = environment(BATON_DATABASE_URL=dsn, BATON_PARTITION_DAYS_AHEAD="2")
    async with running("maintain", "--every", "3600", env=env, cwd=tmp_path) as loop, connected(dsn) as connection:

        async def has_run() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM baton.retention"))

        await until(has_run)
        loop.signal(signal.SIGTERM)
        assert await loop.ends() == 0
        assert loop.lines == []


async def test_settings_can_be_read_from_a_file(dsn: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"BATON_DATABASE_URL={dsn}\nBATON_ALLOW_ANONYMOUS=true\nBATON_PORT=0\nBATON_POD_NAME=filed\n"
    )
    async with running("serve", env=environment(), cwd=tmp_path) as pod:
        assert (await pod.said(SERVES))[1] == "filed"
