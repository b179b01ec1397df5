"""Maintenance: what it deletes and keeps; it blocks nobody, and may be interrupted anywhere."""

from __future__ import annotations

import asyncio
import datetime
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from tests.support.databases import execute
from tests.support.logbook import DEADLINE_SECONDS, claimed, connected, until
from tests.support.past import (
    KEPT_DAYS,
    POLICY,
    Breaking,
    append,
    day,
    exists,
    has_row,
    id_at,
    maintained,
    old_partition,
    old_stream,
    state,
)
from tests.support.roles import PASSWORD, as_role

from baton import stream_ids
from baton.db import event_log, partitions, retention, stream_ending
from baton.db.postgres import CONNECTION_ERRORS, MAINTENANCE_LOCK, MIGRATION_LOCK, Connection
from baton.errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch, StreamExpired, StreamNotFound
from baton.outcome import Outcome
from baton.schema.maintain import keep_maintaining, maintain, preview
from baton.schema.maintenance_run import STATEMENT_SECONDS
from baton.schema.retention_policy import DAY_SECONDS, Policy

GONE_DAYS = KEPT_DAYS + 1
Postgres: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def add_key(connection: Connection, stream_id: UUID, *, lives_seconds: float = 3600) -> None:
    await connection.execute(
        "INSERT INTO baton.idempotency_key (tenant, key, request_hash, stream_id, expires_at) "
        "VALUES ('', gen_random_uuid()::text, '', $1, clock_timestamp() + make_interval(secs => $2))",
        stream_id,
        lives_seconds,
    )


async def keys_of(connection: Connection, stream_id: UUID) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM baton.idempotency_key WHERE stream_id = $1", stream_id)
    return count


@asynccontextmanager
async def using_the_log(dsn: str, *, isolation: str = "READ COMMITTED") -> AsyncIterator[Postgres]:
    """An open transaction that has read all partitions of the log."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "a long report"})
    try:
        await connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        await connection.fetchval("SELECT count(*) FROM baton.batch")
        yield connection
        await connection.execute("COMMIT")
    finally:
        connection.terminate()


async def until_it_waits(connection: Connection, pid: int) -> None:
    async def waits() -> bool:
        kind = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%DETACH PARTITION%'"
        return bool(await connection.fetchval(kind, pid) == "Lock")

    await until(waits)


# Wide partitions


async def test_a_long_retention_makes_new_partitions_wider(dsn: str) -> None:
    policy = Policy(days_ahead=30, retention_days=3 * 365)
    async with connected(dsn) as connection:
        previewed: list[str] = []
        await preview(connection, policy, previewed.append)
        said = await maintained(connection, policy)
        assert previewed[0] == "Would make new partitions hold 3 days each."
        assert said[0] == "New partitions hold 3 days each."
        created = [line for line in said if line.startswith("Created")]
        assert [line.replace("Would create", "Created") for line in previewed if "create" in line.split()] == created
        assert 10 <= len(created) <= 11
        # Workers do not know the retention, but create partitions of the same width.
        assert len(await partitions.create_ahead(connection, 60)) == 10
        assert await maintained(connection, policy) == said[-1:]
        assert (await maintained(connection))[0] == "New partitions hold 1 day each."


async def test_a_wide_partition_is_dropped_when_all_of_its_days_have_expired(dsn: str) -> None:
    async with connected(dsn) as connection:
        first, end = [stream_ids.first_id(await day(connection, days)) for days in (GONE_DAYS + 3, KEPT_DAYS)]
        name = "baton.batch_wide"
        await connection.execute(
            f"CREATE TABLE {name} PARTITION OF baton.batch FOR VALUES FROM ('{first}') TO ('{end}')"
        )
        for days in (GONE_DAYS + 3, GONE_DAYS):
            await connection.execute(
                "INSERT INTO baton.stream (id, generator, input, on_worker_lost, status) "
                "VALUES ($1, 'test', 'null', 'retry', 'completed')",
                id_at(await day(connection, days)),
            )
        said = await maintained(connection, Policy(1, KEPT_DAYS + 1))
        assert said[:-1] == ["Deleted 1 stream and 0 idempotency keys that had expired."]
        assert await state(connection, name) == "attached"
        assert f"Dropped partition {name}." in await maintained(connection)


# What is deleted and what is kept


async def test_whole_days_are_kept_and_older_streams_are_deleted(dsn: str) -> None:
    async with connected(dsn) as connection:
        kept = await old_stream(connection, KEPT_DAYS, at_seconds=0)
        gone = await old_stream(connection, GONE_DAYS, at_seconds=DAY_SECONDS - 0.001)
        for stream_id in (kept, gone):
            await add_key(connection, stream_id)
        said = await maintained(connection)
        assert (await has_row(connection, kept), await has_row(connection, gone)) == (True, False)
        assert (await keys_of(connection, kept), await keys_of(connection, gone)) == (1, 0)
        assert await state(connection, await old_partition(connection, KEPT_DAYS)) == "attached"
        name = partitions.name_of(await day(connection, GONE_DAYS))
        assert not await exists(connection, name)
        assert said[:2] == [
            "Deleted 1 stream and 0 idempotency keys that had expired.",
            f"Dropped partition {name}.",
        ]
        assert len(await event_log.read(connection, kept, 0)) == 2
        assert await maintained(connection) == said[2:]


async def test_only_a_deleted_stream_is_reported_as_expired(dsn: str) -> None:
    async with connected(dsn) as connection:
        gone = await old_stream(connection, GONE_DAYS)
        never = UUID(int=gone.int ^ 1)
        assert type(await retention.absence(connection, never)) is StreamNotFound
        await maintained(connection)
        assert type(await retention.absence(connection, gone)) is StreamExpired
        later = UUID(int=gone.int + (DAY_SECONDS * 1000 << 80))
        assert type(await retention.absence(connection, later)) is StreamNotFound
        no_time = UUID(int=gone.int ^ (7 << 76) | 4 << 76)
        assert no_time.version == 4
        assert type(await retention.absence(connection, no_time)) is StreamNotFound


async def test_the_horizon_never_moves_back_and_a_longer_retention_keeps_the_rest(dsn: str) -> None:
    async with connected(dsn) as connection:
        gone = await old_stream(connection, 4)
        await maintained(connection, Policy(1, retention_days=2))
        assert not await has_row(connection, gone)
        left = await old_stream(connection, 3)
        await maintained(connection, Policy(1, retention_days=30))
        assert await has_row(connection, left)
        assert type(await retention.absence(connection, gone)) is StreamExpired
        assert await connection.fetchval("SELECT count(*) FROM baton.retention") == 1


@pytest.mark.parametrize("status", ["running", "queued", "open"])
async def test_a_live_stream_keeps_its_partition_until_it_has_ended(dsn: str, status: str) -> None:
    async with connected(dsn) as connection:
        stream_id = await old_stream(connection, GONE_DAYS, batches=2, ended=False)
        await connection.execute("UPDATE baton.stream SET status = $1 WHERE id = $2", status, stream_id)
        beside = await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        said = await maintained(connection)
        assert f"Kept partition {name}: it holds stream {stream_id}, which is {status}." in said
        assert await state(connection, name) == "attached"
        assert not await has_row(connection, beside)
        await append(connection, stream_id, 3)
        assert len(await event_log.read(connection, stream_id, 0)) == 3
        await append(connection, stream_id, 4, Outcome.completed("stop"))
        await maintained(connection)
        assert await state(connection, name) == "gone"


async def test_a_partition_that_a_stream_keeps_holds_no_text_of_expired_ones(dsn: str) -> None:
    async with connected(dsn) as connection:
        first, kept, last = [
            await old_stream(connection, GONE_DAYS, batches=3, ended=ended, at_seconds=seconds)
            for seconds, ended in ((60, True), (61, False), (62, True))
        ]
        young = await old_stream(connection, 1, batches=3)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        foreseen: list[str] = []
        await preview(connection, POLICY, foreseen.append)
        assert f"Would delete the rows of expired streams from partition {name}." in foreseen  # their rows are there
        said = await maintained(connection, batch_rows=2)
        assert f"Deleted 8 rows of expired streams from partition {name}." in said
        rows = await connection.fetch("SELECT stream_id, count(*) FROM baton.batch GROUP BY 1")
        assert {row[0]: row[1] for row in rows} == {kept: 3, young: 4}
        assert {first, last}.isdisjoint(row[0] for row in rows)
        assert not any("of expired streams" in line for line in await maintained(connection, batch_rows=2))
        foreseen.clear()
        await preview(connection, POLICY, foreseen.append)
        assert not any("rows of expired streams" in line for line in foreseen)


async def test_what_belongs_to_an_external_stream_is_deleted_with_it(dsn: str) -> None:
    async with connected(dsn) as connection:
        streams = [await old_stream(connection, days_ago) for days_ago in (GONE_DAYS, 1)]
        for stream_id in streams:
            await connection.execute(
                "INSERT INTO baton.external_stream (stream_id, tenant, path, kind, content_type) "
                "VALUES ($1, '', $2, 'text', 'text/plain')",
                *(stream_id, str(stream_id)),
            )
            await connection.execute("INSERT INTO baton.producer VALUES ($1, 'a', 0, 1), ($1, 'b', 0, 1)", stream_id)
        await maintained(connection)
        for table, count in (("external_stream", 1), ("producer", 2)):
            found = await connection.fetch(f"SELECT stream_id FROM baton.{table}")
            assert [row[0] for row in found] == streams[1:] * count


async def test_many_rows_are_deleted_in_small_batches(dsn: str) -> None:
    async with connected(dsn) as connection:
        for _ in range(5):
            await add_key(connection, await old_stream(connection, GONE_DAYS))
        said = await maintained(connection, batch_rows=2)
        assert said[0].startswith("Deleted 5 streams")
        assert await connection.fetchval("SELECT count(*) FROM baton.idempotency_key") == 0


async def test_expired_keys_are_deleted(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for lives_seconds in (-1, -1, -1, 60):
            await add_key(connection, stream_id, lives_seconds=lives_seconds)
        said = await maintained(connection, batch_rows=2)
        assert said[0] == "Deleted 0 streams and 3 idempotency keys that had expired."
        assert await keys_of(connection, stream_id) == 1


async def keep_results(connection: Connection, stream_id: UUID, count: int = 1) -> None:
    """Insert a state of a stream, results of its steps, an input, and a call of `stop`."""
    await connection.execute(
        "INSERT INTO baton.step SELECT $1, 's', '', i, '' FROM generate_series(1, $2) AS i", stream_id, count
    )
    await connection.execute(
        "INSERT INTO baton.stream_state (stream_id, after_seq, state) VALUES ($1, 0, '')", stream_id
    )
    await connection.execute("INSERT INTO baton.input (stream_id, n, content) VALUES ($1, 1, '1')", stream_id)
    await connection.execute(
        "INSERT INTO baton.stop_call (stream_id, generator, state) VALUES ($1, 'test', '')", stream_id
    )


@pytest.mark.parametrize("batch_rows", [1, 2, 500])
async def test_states_and_results_of_streams_that_are_not_live_are_deleted(dsn: str, batch_rows: int) -> None:
    async with connected(dsn) as connection:
        live = await claimed(connection, 5)
        over = await claimed(connection, 5)
        missing = [UUID(int=1), UUID(int=2**128 - 1)]
        gone = await old_stream(connection, GONE_DAYS)
        await connection.execute("UPDATE baton.stream SET status = 'completed' WHERE id = ANY ($1)", over)
        await connection.execute("UPDATE baton.stream SET status = 'queued' WHERE id = $1", live[0])
        for stream_id in (*live, *over, *missing, gone):
            await keep_results(connection, stream_id, 3)
        previewed: list[str] = []
        await preview(connection, POLICY, previewed.append)
        assert "Would delete 40 rows of states, steps and inputs whose streams have ended." in previewed
        said = await maintained(connection, batch_rows=batch_rows)
        assert "Deleted 40 rows of states, steps and inputs whose streams have ended." in said
        for table, each in (("step", 3), ("stream_state", 1), ("input", 1)):
            left = await connection.fetch(f"SELECT stream_id, count(*) FROM baton.{table} GROUP BY 1 ORDER BY 1")
            assert [tuple(row) for row in left] == [(stream_id, each) for stream_id in live]
        # Calls of `stop` are due after the end.
        assert await connection.fetchval("SELECT count(*) FROM baton.stop_call") == 13
        assert len(await maintained(connection, batch_rows=batch_rows)) == 1


async def test_calls_of_stop_are_kept_no_longer_than_streams(dsn: str) -> None:
    async with connected(dsn) as connection:
        begins = await day(connection, KEPT_DAYS)
        for stream_id, second in ((UUID(int=1), -1), (UUID(int=2), 0)):
            await connection.execute(
                "INSERT INTO baton.stop_call (stream_id, generator, state, created_at) "
                "VALUES ($1, 'test', '', to_timestamp($2))",
                stream_id,
                begins + second,
            )
        said = await maintained(connection)
        assert "Deleted 1 call that no worker could make." in said
        assert await connection.fetchval("SELECT stream_id FROM baton.stop_call") == UUID(int=2)


async def test_each_batch_of_keys_begins_where_the_one_before_ended(dsn: str) -> None:
    """While a long transaction runs, index entries of deleted rows stay: none is scanned twice."""
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for lives_seconds in (-40, -30, -20, -10):
            await add_key(connection, stream_id, lives_seconds=lives_seconds)
        expired = [row[0] for row in await connection.fetch("SELECT expires_at FROM baton.idempotency_key ORDER BY 1")]
        asked: list[object] = []

        def note(query: Any) -> None:
            if query.query == retention._DELETE_KEYS:
                asked.append(query.args[0])

        with connection.query_logger(note):
            await maintained(connection, batch_rows=2)
        assert asked[1:] == [expired[1], expired[3]]


async def test_partitions_with_other_bounds_are_dropped_by_their_bounds(dsn: str) -> None:
    async with connected(dsn) as connection:
        edges = [stream_ids.first_id(await day(connection, days)) for days in (20, 12, KEPT_DAYS - 2)]
        for name, first, end in (("old", "MINVALUE", f"'{edges[0]}'"), ("wide", *(f"'{edge}'" for edge in edges[1:]))):
            await connection.execute(
                f'CREATE TABLE public."{name} One" PARTITION OF baton.batch FOR VALUES FROM ({first}) TO ({end})'
            )
        await maintained(connection)
        assert await state(connection, 'public."old One"') == "gone"
        assert await state(connection, 'public."wide One"') == "attached"


async def test_a_partition_detached_by_another_session_is_left_alone(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = await old_partition(connection, GONE_DAYS)
        await connection.execute(f"ALTER TABLE baton.batch DETACH PARTITION {name}")
        left_alone = f"Left {name} alone: it looks like a partition that was detached on purpose, to keep it."
        assert left_alone in await maintained(connection)
        assert await state(connection, name) == "detached"


async def test_a_dry_run_reports_the_changes_and_makes_none(dsn: str) -> None:
    async with connected(dsn) as connection:
        gone, live = await old_stream(connection, GONE_DAYS), await old_stream(connection, GONE_DAYS + 1, ended=False)
        said: list[str] = []
        policy = Policy(days_ahead=2, retention_days=KEPT_DAYS)
        await maintain(dsn, policy, say=said.append, dry_run=True)
        names = {days: partitions.name_of(await day(connection, days)) for days in (-2, GONE_DAYS, GONE_DAYS + 1)}
        assert said == [
            f"Would create partition {names[-2]}.",
            said[1],
            f"Would keep partition {names[GONE_DAYS + 1]}: it holds stream {live}, which is running.",
            f"Would drop partition {names[GONE_DAYS]}.",
        ]
        assert said[1].startswith("Would delete 1 stream created before ")
        assert await has_row(connection, gone)
        assert await state(connection, names[GONE_DAYS]) == "attached"
        assert not await exists(connection, names[-2])
        assert type(await retention.absence(connection, UUID(int=gone.int ^ 1))) is StreamNotFound


async def mark(connection: Connection, name: str) -> None:
    await connection.execute(f"COMMENT ON TABLE {name} IS '{partitions._MARK}'")


async def marked(connection: Connection) -> list[str]:
    return [item.name for item in await partitions.attached(connection) if item.marked]


async def begin_to_detach(dsn: str, connection: Connection, name: str) -> None:
    """Leave the detachment of a partition pending."""
    async with using_the_log(dsn):
        await connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await connection.execute(f"ALTER TABLE baton.batch DETACH PARTITION {name} CONCURRENTLY")


@pytest.mark.parametrize("ours", [True, False])
async def test_a_dry_run_reports_a_pending_partition(dsn: str, ours: bool) -> None:
    async with connected(dsn) as connection:
        await old_stream(connection, GONE_DAYS + 1)
        await old_stream(connection, GONE_DAYS, ended=False)
        other, name = [partitions.name_of(await day(connection, days)) for days in (GONE_DAYS + 1, GONE_DAYS)]
        if ours:
            await mark(connection, name)
        await begin_to_detach(dsn, connection, name)
        said: list[str] = []
        await maintain(dsn, POLICY, say=said.append, dry_run=True)
        await maintained(connection)
        if ours:
            assert said[1:] == [f"Would drop partition {name}.", f"Would drop partition {other}."]
            assert [await state(connection, each) for each in (name, other)] == ["gone", "gone"]
        else:
            assert said[1:] == [f"Would drop no partition: another session is detaching {name}."]
            assert [await state(connection, each) for each in (name, other)] == ["pending", "attached"]


async def test_the_rows_are_found_by_indexes(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(
            "INSERT INTO baton.stream (id, generator, input, on_worker_lost, status) "
            "SELECT overlay(gen_random_uuid()::text placing lpad(to_hex(i), 8, '0') from 1)::uuid, 'x', '1', 'fail', "
            "'completed' FROM generate_series(1, 20000) AS i"
        )
        await connection.execute(
            "INSERT INTO baton.idempotency_key SELECT '', id::text, '', id, clock_timestamp() + interval '1 h' "
            "FROM baton.stream"
        )
        await connection.execute(
            "INSERT INTO baton.external_stream (stream_id, tenant, kind, content_type) "
            "SELECT id, '', 'text', 'text/plain' FROM baton.stream"
        )
        await connection.execute("ANALYZE baton.stream, baton.idempotency_key, baton.external_stream")
        top = UUID(int=2**128 - 1)
        plans = [
            await plan(connection, retention._DELETE_STREAMS, UUID(int=0), top, 500),
            await plan(connection, retention._DELETE_KEYS, *[datetime.datetime.now(datetime.UTC)] * 2, 500),
            await plan(connection, retention._OLDEST, UUID(int=0), top, False),
            await plan(connection, stream_ending._DELETE_KEYS, "", top),
        ]
        for found, index in zip(
            plans, ("pk_stream", "expires_at", "pk_stream", "ix_idempotency_key_stream_id"), strict=True
        ):
            assert "Seq Scan" not in found, found
            assert index in found, found


async def plan(connection: Connection, statement: str, *arguments: object) -> str:
    rows = await connection.fetch(f"EXPLAIN {statement}", *arguments)
    return "\n".join(row[0] for row in rows)


# Other sessions


async def test_only_one_of_two_concurrent_runs_works(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as other:
        gone = await old_stream(connection, GONE_DAYS)
        await other.execute("SELECT pg_advisory_lock($1)", MAINTENANCE_LOCK)
        assert await maintained(connection) == ["Another `baton maintain` is running, so this one does nothing."]
        assert await has_row(connection, gone)
        await other.execute("SELECT pg_advisory_unlock($1)", MAINTENANCE_LOCK)
        await maintained(connection)
        assert not await has_row(connection, gone)
        assert await other.fetchval("SELECT pg_try_advisory_lock($1)", MAINTENANCE_LOCK)


async def test_partitions_are_left_alone_while_a_migration_runs(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as other:
        gone = await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        await other.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        assert "A migration is running. The next run drops expired partitions." in await maintained(connection)
        assert (await has_row(connection, gone), await state(connection, name)) == (False, "attached")


async def test_streams_are_deleted_even_if_no_partition_can_be_created(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as reader, connected(dsn) as analyzing:
        gone = await old_stream(connection, GONE_DAYS)
        await reader.execute("BEGIN; SELECT count(*) FROM baton.batch")
        await analyzing.execute("BEGIN; ANALYZE baton.batch")
        said = await maintained(connection, Policy(days_ahead=2, retention_days=KEPT_DAYS), lock_seconds=0.05)
        assert said[0].startswith(
            f"No partition was created: baton.batch is in use by session {analyzing.get_server_pid()} ("
        )
        assert not await has_row(connection, gone)
        await analyzing.execute("COMMIT")
        await reader.execute("COMMIT")
        name = partitions.name_of(await day(connection, -2))
        await maintained(connection, Policy(days_ahead=2, retention_days=KEPT_DAYS))
        assert await state(connection, name) == "attached"


async def test_no_session_waits_while_a_detachment_waits_for_a_long_transaction(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as client:
        await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        (stream_id,) = await claimed(client)
        kept = await old_stream(client, KEPT_DAYS)
        async with using_the_log(dsn):
            run = asyncio.create_task(maintained(connection, lock_seconds=30))
            await until_it_waits(client, connection.get_server_pid())
            await client.execute("SET lock_timeout = '1s'")
            await append(client, stream_id, 1)
            await append(client, stream_id, 2, Outcome.completed("stop"))
            assert len(await event_log.read(client, stream_id, 0)) == 2
            assert len(await event_log.read(client, kept, 0)) == 2
            assert len(await partitions.create_ahead(client, 2)) == 1
            assert not run.done()
        assert f"Dropped partition {name}." in await run
        assert await state(client, name) == "gone"


async def test_a_detachment_that_timed_out_is_finished_by_a_later_run(dsn: str) -> None:
    async with connected(dsn) as connection:
        for days in (GONE_DAYS, GONE_DAYS + 1):
            await old_stream(connection, days)
        first, second = [partitions.name_of(await day(connection, days)) for days in (GONE_DAYS + 1, GONE_DAYS)]
        async with using_the_log(dsn) as report:
            for _ in range(2):
                (line,) = [each for each in await maintained(connection, lock_seconds=0.05) if "in use" in each]
                assert line.startswith(f"Partition {first} is in use by session {report.get_server_pid()} (")
                assert "application a long report" in line
                assert [await state(connection, name) for name in (first, second)] == ["pending", "attached"]
            (stream_id,) = await claimed(connection)
            await append(connection, stream_id, 1)
        await maintained(connection)
        assert [await state(connection, name) for name in (first, second)] == ["gone", "gone"]


async def test_a_reader_that_still_sees_the_partition_is_not_locked_out(dsn: str) -> None:
    """It is a REPEATABLE READ transaction from before the detachment, which has not read the log yet."""
    async with connected(dsn) as connection, connected(dsn) as reader:
        await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        async with using_the_log(dsn):
            await maintained(connection, lock_seconds=0.05)
            assert await state(connection, name) == "pending"
        (line,) = [each for each in await maintained(connection) if "in use" in each]
        assert f"session {reader.get_server_pid()} " in line
        await reader.execute("SET LOCAL lock_timeout = '1s'")
        assert await reader.fetchval("SELECT count(*) FROM baton.batch") == 2
        await reader.execute("COMMIT")
        assert f"Dropped partition {name}." in await maintained(connection)


async def test_another_sessions_detachment_is_left_alone(dsn: str) -> None:
    async with connected(dsn) as connection:
        await old_stream(connection, GONE_DAYS + 1)
        name = await old_partition(connection, GONE_DAYS)
        await begin_to_detach(dsn, connection, name)
        said = await maintained(connection)
        assert any(line.endswith(f"ALTER TABLE baton.batch DETACH PARTITION {name} FINALIZE.") for line in said)
        assert await state(connection, name) == "pending"


async def test_a_partition_that_could_not_be_detached_is_not_marked(dsn: str) -> None:
    """Otherwise a user who then detaches it, to archive it, would lose it."""
    async with connected(dsn) as connection, connected(dsn) as other:
        name = await old_partition(connection, GONE_DAYS)
        await other.execute("BEGIN; LOCK TABLE ONLY baton.batch IN SHARE UPDATE EXCLUSIVE MODE")
        said = await maintained(connection, lock_seconds=0.05)
        assert said[0].startswith(f"Partition {name} is in use by session {other.get_server_pid()} (")
        assert (await state(connection, name), await marked(connection)) == ("attached", [])


# Interruptions


async def test_the_mark_of_an_interrupted_run_is_removed_from_a_kept_partition(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as analyzing:
        kept = await old_partition(connection, KEPT_DAYS)
        await mark(connection, kept)
        await analyzing.execute(f"BEGIN; ANALYZE {kept}")
        assert f"Partition {kept} is in use by" in (await maintained(connection, lock_seconds=0.05))[0]
        await analyzing.execute("COMMIT")
        await maintained(connection)
        assert (await state(connection, kept), await marked(connection)) == ("attached", [])


async def test_a_detached_partition_of_any_name_is_dropped(dsn: str) -> None:
    async with connected(dsn) as connection:
        for name in ("ours One", "theirs"):
            await connection.execute(f'CREATE TABLE public."{name}" (LIKE baton.batch)')
        await mark(connection, 'public."ours One"')
        said: list[str] = []
        await maintain(dsn, POLICY, say=said.append, dry_run=True)
        assert said[1:] == ['Would drop public."ours One", which is detached.']
        await maintained(connection)
        assert not await exists(connection, 'public."ours One"')
        assert await exists(connection, "public.theirs")


@pytest.mark.slow
async def test_a_run_may_be_interrupted_after_any_statement(dsn: str) -> None:
    async with connected(dsn) as connection:
        for number in range(1, 60):
            ids = [await old_stream(connection, days) for days in (GONE_DAYS, GONE_DAYS, GONE_DAYS + 1)]
            await add_key(connection, ids[0])
            finished = await interrupted(dsn, connection, number)
            for stream_id in ids:
                if await has_row(connection, stream_id):
                    assert len(await event_log.read(connection, stream_id, 0)) == 2
                else:
                    assert type(await retention.absence(connection, stream_id)) is StreamExpired
                    assert await keys_of(connection, stream_id) == 0
            await maintained(connection)
            for days in (GONE_DAYS, GONE_DAYS + 1):
                assert not await exists(connection, partitions.name_of(await day(connection, days))), number
            await connection.execute("DELETE FROM baton.retention")
            if finished:
                assert number > 15
                return
        pytest.fail("it never finished")


async def interrupted(dsn: str, killer: Connection, answers: int) -> bool:
    """Run maintenance on a session that is terminated after some answers; return whether it finished before that."""
    breaking = await asyncpg.connect(dsn, connection_class=Breaking)
    breaking.answers_left, breaking.killer = answers, killer
    try:
        await maintained(breaking, batch_rows=2)
    except CONNECTION_ERRORS:
        return False
    finally:
        breaking.terminate()
    return True


async def test_a_run_may_be_interrupted_while_it_waits(dsn: str) -> None:
    async with connected(dsn) as connection:
        await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        async with using_the_log(dsn):
            async with connected(dsn) as waiting:
                run = asyncio.create_task(maintained(waiting, lock_seconds=30))
                await until_it_waits(connection, waiting.get_server_pid())
                await connection.execute("SELECT pg_terminate_backend($1, 5000)", waiting.get_server_pid())
                with pytest.raises(CONNECTION_ERRORS):
                    await run
            assert await state(connection, name) == "pending"
        assert f"Dropped partition {name}." in await maintained(connection)


# The loop and the command


async def test_the_loop_continues_after_an_outage(postgres: str, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    def say(line: str) -> None:
        nonlocal runs
        runs += line.startswith("Streams created before")

    database = f"ALTER DATABASE {urlsplit(dsn).path[1:]} ALLOW_CONNECTIONS"
    async with connected(dsn) as connection:
        loop = asyncio.create_task(keep_maintaining(dsn, POLICY, every_seconds=0.01, say=say))
        await until(lambda: runs > 1)
        await execute(postgres, f"{database} false")
        await until(lambda: "Retrying." in caplog.text)
        gone = await old_stream(connection, GONE_DAYS)
        await execute(postgres, f"{database} true")
        runs = 0
        await until(lambda: runs > 1)
        assert not await has_row(connection, gone)
        await connection.execute("UPDATE baton.alembic_version SET version_num = '9999'")
        await connection.execute("UPDATE baton.compatibility SET oldest_code = '9999'")
        with pytest.raises(SchemaMismatch):
            await asyncio.wait_for(loop, DEADLINE_SECONDS)


async def test_the_first_run_of_the_loop_does_not_wait_for_the_database(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable):
        await keep_maintaining("postgresql://u@127.0.0.1:1/x", POLICY, every_seconds=1, say=print)


async def test_connecting_has_a_shorter_timeout_than_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}

    async def refused(**options: Any) -> None:
        opened.update(options)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", refused)
    with pytest.raises(DatabaseUnreachable):
        await maintain("postgresql://u@127.0.0.1:1/x", POLICY, say=print)
    assert opened["timeout"] == 10
    assert opened["command_timeout"] > STATEMENT_SECONDS


async def test_a_role_that_does_not_own_the_schema_is_refused_with_advice(dsn: str) -> None:
    role = f"other_{secrets.token_hex(4)}"
    await execute(dsn, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA baton TO {role}")
    await execute(dsn, f"GRANT SELECT ON ALL TABLES IN SCHEMA baton TO {role}")
    try:
        with pytest.raises(ConfigurationError, match="as the role that ran `baton migrate`"):
            await maintain(as_role(dsn, role), POLICY, say=print)
    finally:
        await execute(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_statement_timeout_is_not_reported_as_a_lost_connection(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET statement_timeout = '50ms'")
        await connection.execute("BEGIN; LOCK TABLE baton.stream")
        with pytest.raises(ConfigurationError, match="waited too long") as caught:
            await maintain(dsn, POLICY, say=print, dry_run=True)
    assert not isinstance(caught.value, DatabaseUnreachable)
