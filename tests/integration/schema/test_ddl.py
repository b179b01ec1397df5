"""Changes of live tables while others write: indexes on the partitioned log, and checks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
from tests.integration.schema.test_migrations import dumped, psql
from tests.support.databases import execute
from tests.support.logbook import claimed, connected, until
from tests.support.revisions import history_with, locks_taken, mode_in_sql

from baton.db import event_log, partitions
from baton.db.event_log import Append
from baton.db.schema_revision import REVISION
from baton.errors import ConfigurationError
from baton.events import encode_text
from baton.schema import ddl, migration_sql
from baton.schema.lock_timeouts import LockTimeouts
from baton.schema.migrate import migrate, revision_of
from baton.schema.revisions import RevisionHistory

CREATE = """ddl.create_log_index("ix_batch_epoch", "(epoch) WHERE epoch > 0 AND events <> '%'")"""
DROP = 'ddl.drop_log_index("ix_batch_epoch")'
ADD_CHECK = 'ddl.add_check("batch", "ck_batch_epoch", "epoch >= 0")'
VALIDATE = 'ddl.validate("batch", "ck_batch_epoch")'

# For each partition: its index, whether that is valid, and whether it is attached to the parent's index.
INDEXES = """
SELECT part.inhrelid::regclass::text AS partition, i.indexrelid::regclass::text AS index, i.indisvalid AS valid,
       EXISTS (SELECT FROM pg_inherits WHERE inhrelid = i.indexrelid
               AND inhparent = to_regclass('baton.ix_batch_epoch')) AS attached
FROM pg_inherits AS part
LEFT JOIN pg_index AS i ON i.indrelid = part.inhrelid AND pg_get_indexdef(i.indexrelid) LIKE '% (epoch) WHERE %'
WHERE part.inhparent = 'baton.batch'::regclass
"""
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('baton.ix_batch_epoch')"
BUILDING = (
    "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%' AND datname = current_database()"
)
LOCKS = """
FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) JOIN pg_class AS c ON c.oid = l.relation
WHERE a.application_name = 'baton migrate' AND a.datname = current_database() AND c.relname ~ 'batch'
"""

Postgres: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def written(dsn: str) -> str:
    """A database with rows in its log."""
    async with connected(dsn) as connection:
        items = [Append(stream_id, 1, 1, 1, encode_text("x")) for stream_id in await claimed(connection, 20)]
        await event_log.append(connection, items)
    return dsn


@contextlib.asynccontextmanager
async def old_transaction(dsn: str) -> AsyncIterator[Postgres]:
    """A transaction that a concurrent build waits for, because its snapshot is older than the index."""
    async with connected(dsn) as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM baton.worker")
        yield connection


async def assert_built(connection: Postgres) -> None:
    rows = await connection.fetch(INDEXES)
    assert rows
    assert [row for row in rows if not (row["valid"] and row["attached"])] == []
    assert len({row["partition"] for row in rows}) == len(rows)
    assert await connection.fetchval(VALID) is True


async def test_a_log_index_is_built_while_others_write_and_create_partitions(written: str, tmp_path: Path) -> None:
    history = history_with(tmp_path, CREATE, DROP, locks=[ddl.LOG_INDEX_LOCKS, {"batch": "ACCESS EXCLUSIVE"}])
    said: list[str] = []
    async with connected(written) as writing, old_transaction(written) as old:
        timeouts = LockTimeouts(lock_timeout_milliseconds=100)
        task = asyncio.create_task(
            migrate(written, days_ahead=5, to="9001", timeouts=timeouts, history=history, say=said.append)
        )
        await until(lambda: is_building(writing))
        await writing.execute("SET lock_timeout = '5s'")
        assert len(await partitions.create_ahead(writing, 4)) == 3
        (stream_id,) = await claimed(writing)
        assert await event_log.append(writing, [Append(stream_id, 1, 1, 1, encode_text("x"))]) == {stream_id}
        # It waits for longer than a statement that blocks others may.
        await until(lambda: has_waited(writing, 0.2))
        assert await is_building(writing)
        await old.execute("COMMIT")
        await task
        assert [line for line in said if "waited" in line] == []
        await assert_built(writing)
        await partitions.create_ahead(writing, 6)
        await assert_built(writing)
        drop = history.revisions[-1]
        assert await locks_taken(written, history, drop) == drop.locks
        assert {row["index"] for row in await writing.fetch(INDEXES)} == {None}


async def test_an_index_on_another_table_is_built_while_others_write(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0005")
    async with connected(empty_dsn) as writing, old_transaction(empty_dsn) as old:
        timeouts = LockTimeouts(lock_timeout_milliseconds=100)
        task = asyncio.create_task(migrate(empty_dsn, days_ahead=0, to="0006", timeouts=timeouts))
        await until(lambda: is_building(writing))
        held = await writing.fetch(
            "SELECT mode FROM pg_locks WHERE relation = 'baton.idempotency_key'::regclass AND granted"
        )
        assert RevisionHistory().revisions[5].locks == {"idempotency_key": mode_in_sql(held[0]["mode"])}
        await writing.execute("SET lock_timeout = '5s'")
        await writing.execute("INSERT INTO baton.idempotency_key VALUES ('', 'key', '', gen_random_uuid(), now())")
        await old.execute("COMMIT")
        await task
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'baton.ix_idempotency_key_stream_id'::regclass"
        assert await writing.fetchval(valid)


async def has_waited(connection: Postgres, seconds: float) -> bool:
    """Whether a session of this database waits for a transaction to end, and has done so for this time."""
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted "
        "AND locktype = 'virtualxid' AND datname = current_database() "
        "AND clock_timestamp() - waitstart > make_interval(secs => $1))",
        seconds,
    )
    return bool(found)


async def is_building(connection: Postgres) -> bool:
    return bool(await connection.fetchval(BUILDING))


async def test_an_interrupted_build_is_repeated(written: str, tmp_path: Path) -> None:
    history = history_with(tmp_path, CREATE)
    async with connected(written) as looking:
        await interrupt_build(written, tmp_path / "interrupted")
        await migrate(written, days_ahead=1, history=history)
        await assert_built(looking)


async def interrupt_build(dsn: str, folder: Path) -> None:
    """Leave what a build leaves that gave up."""
    async with old_transaction(dsn) as old:
        timeouts, history = LockTimeouts(give_up_seconds=0.2), history_with(folder, CREATE)
        with pytest.raises(ConfigurationError, match=f"Blocked by: process {old.get_server_pid()} "):
            await migrate(dsn, days_ahead=1, timeouts=timeouts, history=history)
    assert await revision_of(dsn) == REVISION
    async with connected(dsn) as looking:
        left = "SELECT count(*) FROM pg_index WHERE NOT indisvalid AND indrelid <> 'baton.batch'::regclass"
        assert await looking.fetchval(left) == 1


async def test_a_partition_whose_detachment_is_pending_is_left_alone(written: str, tmp_path: Path) -> None:
    async with connected(written) as connection, connected(written) as reading:
        bounds = f"FROM ('{UUID(int=0)}') TO ('{UUID(int=1)}')"
        await connection.execute(f"CREATE TABLE baton.batch_1 PARTITION OF baton.batch FOR VALUES {bounds}")
        await reading.execute("BEGIN; SELECT FROM baton.batch")
        detached = (await partitions.attached(connection))[0]
        await connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await partitions.detach(connection, detached)
        await reading.execute("COMMIT")
        await migrate(written, days_ahead=1, history=history_with(tmp_path, CREATE))
        assert await connection.fetchval(VALID) is True
        rows = {row["partition"]: row for row in await connection.fetch(INDEXES)}
        assert rows.pop("baton.batch_1")["index"] is None
        assert rows
        assert all(row["valid"] and row["attached"] for row in rows.values())


async def test_partitions_of_any_name_in_any_schema_are_indexed(written: str, tmp_path: Path) -> None:
    async with connected(written) as connection:
        await connection.execute('CREATE SCHEMA "Else"')
        names = ['baton."Odd one"', '"Else"."Odd one"', '"Else".my_batch_1', '"Else".batch_1']
        for number, name in enumerate(names):
            await connection.execute(
                f"CREATE TABLE {name} PARTITION OF baton.batch FOR VALUES FROM ('{UUID(int=number)}') "
                f"TO ('{UUID(int=number + 1)}')"
            )
        # An invalid index, as an interrupted build leaves it, with another definition than the revision's.
        oid = await connection.fetchval("SELECT to_regclass($1)::oid", names[1])
        await connection.execute(f"CREATE INDEX ix_batch_epoch_{oid} ON {names[1]} (last_seq)")
        await connection.execute(
            f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"Else\".ix_batch_epoch_{oid}'::regclass"
        )
        await migrate(written, days_ahead=1, history=history_with(tmp_path, CREATE))
        await assert_built(connection)


@pytest.mark.slow
async def test_psql_builds_the_same_index(written: str, empty_dsn: str, tmp_path: Path) -> None:
    history = history_with(tmp_path, CREATE)
    await migrate(empty_dsn, days_ahead=1, history=history)
    await interrupt_build(written, tmp_path / "interrupted")
    sql = migration_sql.script(start=REVISION, to=None, days_ahead=3, history=history)
    for _ in range(2):
        code, _, err = await psql(written, sql, tmp_path)
        assert (code, err) == (0, "")
    assert await revision_of(written) == "9001"
    assert await dumped(written) == await dumped(empty_dsn)
    async with connected(written) as looking:
        await assert_built(looking)


async def test_an_index_takes_the_locks_that_it_declares(written: str, tmp_path: Path) -> None:
    timeouts, history = LockTimeouts(lock_timeout_milliseconds=20_000), history_with(tmp_path, CREATE)
    async with connected(written) as writing, connected(written) as looking, old_transaction(written) as old:
        await writing.execute("BEGIN; LOCK TABLE ONLY baton.batch IN ROW EXCLUSIVE MODE")
        task = asyncio.create_task(migrate(written, days_ahead=1, timeouts=timeouts, history=history))
        await until(lambda: waits(looking))
        assert await locks_on_log(looking) == {("batch", "SHARE")}
        await writing.execute("COMMIT")
        await until(lambda: is_building(looking))
        ((partition, mode),) = await locks_on_log(looking)
        assert (partition[:6], mode) == ("batch_", "SHARE UPDATE EXCLUSIVE")
        # A session that reads a partition locks its indexes, including this one.
        await writing.execute("BEGIN; SELECT FROM baton.batch")
        await old.execute("COMMIT")
        await until(lambda: waits(looking))
        modes = dict(await locks_on_log(looking))
        assert modes.pop(f"ix_batch_epoch_{partition[6:]}") == ddl.LOG_INDEX_LOCKS["batch"]
        assert modes == {"ix_batch_epoch": "SHARE UPDATE EXCLUSIVE"}
        await writing.execute("COMMIT")
        await task


async def waits(connection: Postgres) -> bool:
    """Whether the migration waits for a lock on a table or an index."""
    return bool(await connection.fetchval(f"SELECT count(*) {LOCKS} AND NOT granted"))


async def locks_on_log(connection: Postgres) -> set[tuple[str, str]]:
    """The locks that the migration holds or waits for, without those for reading."""
    held = await connection.fetch(f"SELECT c.relname, l.mode {LOCKS}")
    return {(name, mode_in_sql(mode)) for name, mode in held if mode != "AccessShareLock"}


async def test_a_check_applies_to_new_rows_first_and_then_to_all(written: str, tmp_path: Path) -> None:
    stated = [{"batch": "ACCESS EXCLUSIVE"}, {"batch": "SHARE UPDATE EXCLUSIVE"}]
    history = history_with(tmp_path, ADD_CHECK, VALIDATE, locks=stated)
    add, validate = history.revisions[-2:]
    await execute(written, "UPDATE baton.batch SET epoch = -1 WHERE stream_id = (SELECT id FROM baton.stream LIMIT 1)")
    assert await locks_taken(written, history, add) == add.locks
    async with connected(written) as writing:
        with pytest.raises(asyncpg.CheckViolationError):
            await writing.execute("INSERT INTO baton.batch SELECT id, 2, 2, -1, false, '' FROM baton.stream")
        with pytest.raises(ConfigurationError, match=r"ck_batch_epoch.+ is violated by some row"):
            await migrate(written, days_ahead=1, history=history)
        await writing.execute("UPDATE baton.batch SET epoch = 1 WHERE epoch = -1")
        assert await locks_taken(written, history, validate) == validate.locks
        assert len(await partitions.create_ahead(writing, 3)) == 2
        assert await writing.fetchval(
            "SELECT bool_and(convalidated) FROM pg_constraint WHERE conname = 'ck_batch_epoch'"
        )


async def test_a_contraction_refuses_older_code(dsn: str, tmp_path: Path) -> None:
    await migrate(dsn, days_ahead=1, history=history_with(tmp_path, 'ddl.require_code("9001")'))
    async with connected(dsn) as connection:
        assert await connection.fetchval("SELECT oldest_code FROM baton.compatibility") == "9001"
