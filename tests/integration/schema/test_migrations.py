"""Migrations: they create the schema without blocking others, report what they do, and refuse what does not fit."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from tests.faults.servers import PGBOUNCER, pgbouncer, postgres_bin
from tests.support.databases import execute
from tests.support.logbook import connected, until, until_after
from tests.support.processes import environment, finished, running
from tests.support.revisions import history_with, locks_taken, revision_at

from baton.db.notification_delivery import session_dsn
from baton.db.postgres import MIGRATION_LOCK
from baton.db.schema_revision import REVISION, check_schema
from baton.errors import ConfigurationError, SchemaMismatch
from baton.schema import migration_sql
from baton.schema.lock_timeouts import LockTimeouts
from baton.schema.lock_waits import poll_seconds
from baton.schema.migrate import announce, engine, migrate, revision_of
from baton.schema.migration_sql import revision_sql
from baton.schema.revisions import RevisionHistory

SQUAWK = Path(sys.executable).parent / "squawk"
PROJECT = Path(__file__).parents[3]
# These revisions have no transaction of their own to look into. `test_ddl.py` checks their locks.
BUILT_CONCURRENTLY = {"0006", "0010", "0018", "0027"}
ADD_COLUMN = 'op.execute("ALTER TABLE baton.stream ADD COLUMN extra integer")'
# Every run of the migrations starts with this.
LIMITS = "SET lock_timeout = '500ms';\nSET statement_timeout = 0;\n"
AWAITED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass('baton.stream')"


def test_there_is_one_head_and_the_code_expects_it() -> None:
    assert ScriptDirectory.from_config(RevisionHistory().config()).get_heads() == [REVISION]


async def test_upgrade_check_downgrade_upgrade(empty_dsn: str) -> None:
    def cycle(connection: Connection) -> None:
        config = RevisionHistory().config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.check(config)
        command.downgrade(config, "base")
        command.upgrade(config, "head")

    async with engine(empty_dsn) as opened, opened.connect() as connection:
        await connection.run_sync(cycle)


async def test_each_revision_takes_the_locks_that_it_declares(empty_dsn: str) -> None:
    history = RevisionHistory()
    for revision in history.revisions:
        taken = await locks_taken(empty_dsn, history, revision)
        if revision.id not in BUILT_CONCURRENTLY:
            assert taken == revision.locks, revision.id
        # A revision that locks the log needs partitions to lock.
        await execute(empty_dsn, "SELECT baton.create_partitions(0)")


async def test_undeclared_locks_are_detected(dsn: str, tmp_path: Path) -> None:
    drop = 'op.execute("DROP VIEW baton.event"); op.execute("DROP TABLE baton.batch")'
    attach = 'op.execute("ALTER TABLE baton.batch ADD CHECK (epoch >= 0) NOT VALID")'
    history = history_with(tmp_path, ADD_COLUMN, attach, drop)
    for revision, table in zip(history.revisions[-3:], ("stream", "batch", "batch"), strict=True):
        assert (await locks_taken(dsn, history, revision))[table] == "ACCESS EXCLUSIVE"


async def test_each_revision_passes_the_linter(tmp_path: Path) -> None:
    history = RevisionHistory()
    for revision in history.revisions:
        code, out, err = await lint(tmp_path / f"{revision.id}.sql", revision_sql(history, revision))
        assert code == 0, out + err


async def test_the_linter_finds_statements_that_block_others(tmp_path: Path) -> None:
    statements = {
        "require-concurrent-index-creation": "CREATE INDEX ix_worker_name ON baton.worker (name);",
        "constraint-missing-not-valid": "ALTER TABLE baton.stream ADD CONSTRAINT x CHECK (epoch >= 0);",
        "adding-required-field": "ALTER TABLE baton.stream ADD COLUMN x integer NOT NULL;",
        "changing-column-type": "ALTER TABLE baton.stream ALTER COLUMN epoch TYPE bigint;",
    }
    code, out, _ = await lint(tmp_path / "bad.sql", "\n".join(statements.values()))
    assert code == 1
    assert set(statements) <= set(re.findall(r"[a-z]+(?:-[a-z]+)+", out))


async def lint(file: Path, sql: str) -> tuple[int, str, str]:
    arguments = ("--config", PROJECT / ".squawk.toml", "--reporter", "gcc", written(file, f"{LIMITS}{sql}\n"))
    return await finished(*arguments, env=environment(), command=SQUAWK)


async def test_a_dry_run_reports_the_revisions_and_changes_nothing(empty_dsn: str) -> None:
    said: list[str] = []
    await announce(empty_dsn, days_ahead=1, say=said.append)
    assert said[0] == "The database has no Baton tables yet. Revisions to run:"
    assert [line.split()[0] for line in said[1:-3]] == RevisionHistory().ids
    assert all(line.startswith("Would create partition baton.batch_20") for line in said[-3:])
    async with connected(empty_dsn) as connection:
        assert await connection.fetchval("SELECT to_regnamespace('baton')") is None


async def test_a_dry_run_reports_locks_on_existing_tables(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0001")
    said: list[str] = []
    await announce(empty_dsn, days_ahead=1, to="0003", say=said.append)
    stated = "       It takes ACCESS EXCLUSIVE on stream (blocks reads and writes while it is held)."
    assert said[0] == "The database is at revision 0001. Revisions to run:"
    assert said[2] == stated
    assert said[4] == "       It takes no lock on existing tables."
    assert [line for line in said[5:] if not line.startswith("Would create partition")] == []
    assert len(said) == 6  # yesterday's and today's are there


@pytest.mark.slow
async def test_it_stops_at_the_given_revision(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0002")
    assert await revision_of(empty_dsn) == "0002"
    with pytest.raises(ConfigurationError, match="Revision '0815' does not exist"):
        await migrate(empty_dsn, days_ahead=0, to="0815")
    with pytest.raises(ConfigurationError, match="does not downgrade"):
        await migrate(empty_dsn, days_ahead=0, to="0001")
    await migrate(empty_dsn, days_ahead=0)
    assert await revision_of(empty_dsn) == REVISION


@pytest.mark.slow
async def test_concurrent_migrations_wait_for_each_other(empty_dsn: str) -> None:
    said: list[str] = []
    await asyncio.gather(*(migrate(empty_dsn, days_ahead=2, say=said.append) for _ in range(3)))
    created = [line for line in said if line.startswith("Created partition")]
    assert len(created) == len(set(created)) == 4
    assert any("waiting" in line for line in said)


async def test_the_holder_of_the_migration_lock_is_named(dsn: str, tmp_path: Path) -> None:
    either = "Another `baton migrate` or `baton maintain`"
    async with connected(dsn) as holding:
        await holding.execute(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
        pid = holding.get_server_pid()
        named = rf"{either} is still running after 0 s: process {pid} \(.+, user \w+, connected since 20.+\)\. Run"
        with pytest.raises(ConfigurationError, match=named):
            await migrate(dsn, days_ahead=1, timeouts=LockTimeouts(give_up_seconds=0))
        _, _, err = await psql(dsn, migration_sql.script(start=REVISION, to=None, days_ahead=1), tmp_path)
        assert f"{either} is running. Run this" in err
    said: list[str] = []
    await announce(dsn, days_ahead=1, say=said.append)
    assert said == ["No revision is missing."]


@contextlib.asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A session that has read `stream` and has not ended its transaction."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "somebody"})
    try:
        await connection.execute("BEGIN; SELECT count(*) FROM baton.stream")
        yield connection
    finally:
        connection.terminate()


async def test_the_blocking_session_is_named_and_others_wait_briefly(dsn: str, tmp_path: Path) -> None:
    said: list[str] = []
    history = history_with(tmp_path, ADD_COLUMN)
    async with reading(dsn) as somebody, connected(dsn) as other:
        timeouts = LockTimeouts(lock_timeout_milliseconds=200)
        task = asyncio.create_task(migrate(dsn, days_ahead=1, timeouts=timeouts, history=history, say=said.append))
        await until(lambda: any("Blocked by" in line for line in said) or task.done())
        (line,) = [line for line in said if "Blocked by" in line]
        pid, user = somebody.get_server_pid(), await other.fetchval("SELECT current_user")
        assert line.startswith("Revision 9001 waited 200 ms for a lock, then gave way. Blocked by: process ")
        assert f"process {pid} (somebody, user {user}, in a transaction since 20" in line
        assert "query: BEGIN; SELECT count(*) FROM baton.stream" in line
        # It waits for the table again, and blocks the sessions behind it until its lock_timeout.
        await until(lambda: awaited(other))
        await other.execute("UPDATE baton.stream SET tenant = tenant")
        assert not task.done()
        await somebody.execute("COMMIT")
        await task
        assert await revision_at(other) == "9001"


def test_long_waits_are_polled_less_often() -> None:
    now = time.monotonic()
    assert poll_seconds(None) == poll_seconds(now) < poll_seconds(now - 3600)


async def awaited(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    return bool(await connection.fetchval(AWAITED))


async def test_giving_up_says_what_to_do_and_the_next_run_continues(dsn: str, tmp_path: Path) -> None:
    history = history_with(tmp_path, "pass", ADD_COLUMN)
    timeouts = LockTimeouts(lock_timeout_milliseconds=100, give_up_seconds=0)
    async with reading(dsn) as somebody:
        with pytest.raises(ConfigurationError) as raised:
            await migrate(dsn, days_ahead=1, timeouts=timeouts, history=history)
        assert "Revision 9002 did not get its lock within 0 s. Blocked by: process" in str(raised.value)
        assert f"`SELECT pg_terminate_backend({somebody.get_server_pid()})`. Then run" in str(raised.value)
    assert await revision_of(dsn) == "9001"
    await migrate(dsn, days_ahead=1, history=history)
    assert await revision_of(dsn) == "9002"


# Waits until both sessions block each other, or the other one has ended.
UNTIL_DEADLOCKED = """
DO $$ BEGIN
    WHILE EXISTS (SELECT FROM pg_locks WHERE granted AND relation = 'baton.worker'::regclass)
          AND NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'baton.stream'::regclass) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$
"""


async def test_a_deadlock_is_retried(dsn: str, tmp_path: Path) -> None:
    said: list[str] = []
    steps = ("LOCK TABLE baton.stream", UNTIL_DEADLOCKED, "LOCK TABLE baton.worker")
    both = "; ".join(f"op.execute({step!r})" for step in steps)
    async with connected(dsn) as other, connected(dsn) as looking:
        await other.execute("BEGIN; LOCK TABLE baton.worker")
        # The session whose deadlock_timeout passes first is cancelled: this must be the migration.
        await other.execute("SET deadlock_timeout = '10min'")
        timeouts, history = LockTimeouts(lock_timeout_milliseconds=20_000), history_with(tmp_path, both)
        task = asyncio.create_task(migrate(dsn, days_ahead=1, timeouts=timeouts, history=history, say=said.append))
        held = "mode = 'AccessExclusiveLock' AND relation = 'baton.stream'::regclass"
        await until(lambda: looking.fetchval(f"SELECT count(*) > 0 FROM pg_locks WHERE {held}"))
        await other.execute("LOCK TABLE baton.stream")
        await other.execute("COMMIT")
        await task
    assert any("Retrying" in line for line in said)


async def test_after_a_lost_connection_the_next_run_continues(dsn: str, tmp_path: Path) -> None:
    history = history_with(tmp_path, "pass", ADD_COLUMN)
    timeouts = LockTimeouts(lock_timeout_milliseconds=60_000)
    async with reading(dsn), connected(dsn) as other:
        task = asyncio.create_task(migrate(dsn, days_ahead=1, timeouts=timeouts, history=history))
        await until(lambda: awaited(other))
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'baton migrate' AND datname = current_database()"
        )
        with pytest.raises(ConfigurationError, match="Run `baton migrate` again"):
            await task
    assert await revision_of(dsn) == "9001"
    await migrate(dsn, days_ahead=1, history=history)
    assert await revision_of(dsn) == "9002"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
async def test_a_signal_rolls_back_the_current_revision(empty_dsn: str, tmp_path: Path, number: signal.Signals) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0003")
    env = environment(BATON_DATABASE_URL=empty_dsn)
    async with connected(empty_dsn) as holding, connected(empty_dsn) as other:
        await holding.execute("BEGIN; LOCK TABLE baton.stream IN SHARE UPDATE EXCLUSIVE MODE")
        async with running("migrate", "--lock-timeout-milliseconds=60000", env=env, cwd=tmp_path) as migrating:
            await until(lambda: awaited(other))
            migrating.signal(number)
            assert await migrating.ends() == 128 + number
        assert "Run `baton migrate` again to continue" in migrating.lines[-1]
        await until(lambda: nobody_migrates(other))
        assert await revision_at(other) == "0003"
    await migrate(empty_dsn, days_ahead=0)
    assert await revision_of(empty_dsn) == REVISION


async def nobody_migrates(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    migrating = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name LIKE 'baton migrate%' AND datname = current_database()"
    )
    return not await connection.fetchval(migrating)


@pytest.mark.slow
async def test_the_default_timeouts_of_a_role_do_not_apply(empty_dsn: str, tmp_path: Path) -> None:
    name = urlsplit(empty_dsn).path.lstrip("/")
    await execute(empty_dsn, f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
    await migrate(empty_dsn, days_ahead=0, history=history_with(tmp_path, 'op.execute("SELECT pg_sleep(0.1)")'))
    assert await revision_of(empty_dsn) == "9001"


@pytest.mark.slow
async def test_the_owner_of_the_schema_can_migrate(empty_dsn: str) -> None:
    role = f"owner_{secrets.token_hex(4)}"
    await execute(empty_dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE SCHEMA baton AUTHORIZATION {role}")
    try:
        parts = urlsplit(empty_dsn)
        as_owner = parts._replace(netloc=f"{role}:x@{parts.netloc.rpartition('@')[2]}")
        await migrate(urlunsplit(as_owner), days_ahead=1)
        assert await revision_of(empty_dsn) == REVISION
    finally:
        await execute(empty_dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def psql(dsn: str, sql: str, folder: Path) -> tuple[int, str, str]:
    file = written(folder / "migrations.sql", sql)
    return await finished("-X", "-q", "-f", file, dsn, env=environment(), command=postgres_bin("psql"))


def written(file: Path, sql: str) -> Path:
    file.write_text(sql)
    return file


async def dumped(dsn: str) -> str:
    arguments = ("--schema-only", "--no-owner", "--exclude-table=baton.batch_*", dsn)
    code, out, err = await finished(*arguments, env=environment(), command=postgres_bin("pg_dump"))
    assert code == 0, err
    # Each dump has a random key there.
    return re.sub(r"^\\(un)?restrict .*$", "", out, flags=re.MULTILINE)


async def test_the_sql_makes_the_same_schema(dsn: str, empty_dsn: str, tmp_path: Path) -> None:
    code, sql, _ = await finished("migrate", "--sql", env=environment(), cwd=tmp_path)
    assert code == 0
    assert "in a session of its own" in sql.splitlines()[0]
    assert sql.splitlines()[3] == r"\set ON_ERROR_STOP on"
    code, _, err = await psql(empty_dsn, sql, tmp_path)
    assert (code, err) == (0, "")
    assert await dumped(empty_dsn) == await dumped(dsn)
    async with connected(empty_dsn) as connection:
        assert await connection.fetchval("SELECT count(*) FROM baton.create_partitions(7)") == 0
        rows = "SELECT version_num, oldest_code FROM baton.alembic_version, baton.compatibility"
        assert tuple(await connection.fetchrow(rows) or ()) == (REVISION, "0002")


@pytest.mark.slow
async def test_the_sql_continues_where_it_stopped(empty_dsn: str, tmp_path: Path) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0002")
    from_here = await finished("migrate", "--sql", env=environment(BATON_DATABASE_URL=empty_dsn), cwd=tmp_path)
    sql = migration_sql.script(start="0002", to=None, days_ahead=7, timeouts=LockTimeouts(lock_timeout_milliseconds=50))
    assert from_here[1] == sql.replace("50ms", "500ms")
    async with connected(empty_dsn) as holding:
        await holding.execute("BEGIN; LOCK TABLE baton.stream IN SHARE UPDATE EXCLUSIVE MODE")
        code, _, err = await psql(empty_dsn, sql, tmp_path)
        assert code == 3
        assert "canceling statement due to lock timeout" in err
        assert await revision_at(holding) == "0003"
    for _ in range(2):
        assert (await psql(empty_dsn, sql, tmp_path))[0] == 0
    assert await revision_of(empty_dsn) == REVISION


async def test_sql_that_starts_at_another_revision_is_refused(empty_dsn: str, tmp_path: Path) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0001")
    code, _, err = await psql(empty_dsn, migration_sql.script(start="0002", to="0003", days_ahead=1), tmp_path)
    assert code == 3
    assert "this script starts at another revision" in err
    assert await revision_of(empty_dsn) == "0001"


async def test_pages_of_streams_leave_room_for_updates(dsn: str) -> None:
    async with connected(dsn) as connection:
        options = await connection.fetchval("SELECT reloptions FROM pg_class WHERE oid = 'baton.stream'::regclass")
    assert {"fillfactor=80", "autovacuum_vacuum_scale_factor=0.02"} <= set(options)


async def test_an_unmigrated_database_is_refused_with_advice(empty_dsn: str) -> None:
    connection = await asyncpg.connect(empty_dsn)
    with pytest.raises(SchemaMismatch, match="Run `baton migrate` first"):
        await check_schema(connection)
    await connection.close()


async def test_an_older_database_is_refused_with_advice(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0002")
    async with connected(empty_dsn) as connection:
        with pytest.raises(SchemaMismatch, match=f"at revision 0002, and this version needs {REVISION}"):
            await check_schema(connection)


async def test_a_newer_database_is_accepted_until_it_requires_newer_code(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("UPDATE baton.alembic_version SET version_num = '9999'")
        await check_schema(connection)
        await connection.execute("UPDATE baton.compatibility SET oldest_code = $1", REVISION)
        await check_schema(connection)
        said: list[str] = []
        newer = f"The schema is at revision 9999, newer than {REVISION} and compatible with it: nothing to migrate."
        for go in (migrate, announce):
            said.clear()
            await go(dsn, days_ahead=1, say=said.append)
            assert said == [newer]
        said.clear()
        await migrate(dsn, days_ahead=1, to=REVISION, say=said.append)
        assert said == [newer]
        with pytest.raises(ConfigurationError, match=f"at revision 9999, newer than .+ up to {REVISION}"):
            migration_sql.script(start=await revision_of(dsn), to=None, days_ahead=1)
        await connection.execute("UPDATE baton.compatibility SET oldest_code = '9998'")
        with pytest.raises(SchemaMismatch, match=r"needs code of revision 9998 or newer.+Run a newer version of Baton"):
            await check_schema(connection)


async def test_tables_without_a_known_revision_are_reported(dsn: str) -> None:
    async with connected(dsn) as connection:
        for change, message in (
            ("UPDATE baton.alembic_version SET version_num = 'f00dcafe'", "unknown revision, 'f00dcafe'"),
            ("DELETE FROM baton.alembic_version", "has Baton's tables, but their revision is missing"),
            ("DROP TABLE baton.alembic_version", "has Baton's tables, but their revision is missing"),
        ):
            await connection.execute(change)
            with pytest.raises(SchemaMismatch, match=message):
                await check_schema(connection)
            with pytest.raises(SchemaMismatch, match=message):
                await migrate(dsn, days_ahead=1)


@pytest.mark.slow
@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed here")
async def test_migrating_and_maintaining_bypass_a_pooler(dsn: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert await session_dsn(dsn, dsn, say=said.append) == dsn
    assert said == []
    async with pgbouncer(dsn) as pooled:
        env = environment(BATON_DATABASE_URL=pooled, BATON_LISTEN_DATABASE_URL=dsn)
        ran = await asyncio.gather(*(finished(name, env=env, cwd=tmp_path) for name in ("migrate", "maintain")))
    around = "BATON_DATABASE_URL leads through a pooler; going around it by BATON_LISTEN_DATABASE_URL."
    assert [(code, out.splitlines()[0], err) for code, out, err in ran] == [(0, around, "")] * 2


@pytest.mark.slow
@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed here")
@pytest.mark.parametrize("arguments", [("migrate",), ("maintain",), ("maintain", "--every", "60")])
async def test_a_pooler_without_a_bypass_is_refused(dsn: str, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    async with pgbouncer(dsn) as pooled:
        code, out, err = await finished(*arguments, env=environment(BATON_DATABASE_URL=pooled), cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "needs a session of its own" in err
    assert "Set BATON_LISTEN_DATABASE_URL" in err


async def test_ids_are_uuid_version_7_in_the_order_of_creation(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    ids = []
    for _ in range(3):
        ids.append(
            await connection.fetchval(
                "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('x', '1', 'retry') RETURNING id"
            )
        )
        await until_after(connection, ids[-1])
    now_ms = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    assert ids == sorted(ids)
    assert {item.version for item in ids} == {7}
    assert {item.variant for item in ids} == {"specified in RFC 4122"}
    assert abs(float(now_ms) - (ids[-1].int >> 80)) < 60_000
    await connection.close()
