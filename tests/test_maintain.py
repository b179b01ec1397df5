"""Maintenance: what it deletes and keeps, that it blocks no session, and that it may be interrupted anywhere."""

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
from tests.conftest import execute
from tests.logbook import DEADLINE_SECONDS, claimed, connected, until
from tests.past import (
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
from tests.roles import PASSWORD, as_role

from baton import stream_ids
from baton.db import event_log, partitions, retention, stream_ending
from baton.db.postgres import CONNECTION_ERRORS, MAINTENANCE_LOCK, MIGRATION_LOCK, Connection
from baton.errors import ConfigurationError, DatabaseUnreachable, SchemaMismatch, StreamExpired, StreamNotFound
from baton.outcome import Outcome
from baton.schema.maintain import DAY_SECONDS, STATEMENT_SECONDS, Policy, foresee, keep_maintaining, maintain

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
    """A transaction that has read the log, all partitions, and stays open."""
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


async def test_where_streams_are_kept_for_long_new_partitions_are_wider(dsn: str) -> None:
    policy = Policy(days_ahead=30, retention_days=3 * 365)
    async with connected(dsn) as connection:
        foreseen: list[str] = []
        await foresee(connection, policy, foreseen.append)
        said = await maintained(connection, policy)
        assert foreseen[0] == "Would make new partitions for 3 days each."
        assert said[0] == "New partitions are made for 3 days each."
        created = [line for line in said if line.startswith("Created")]
        assert [line.replace("Would create", "Created") for line in foreseen if "create" in line.split()] == created
        assert 10 <= len(created) <= 11
        # Workers do not know how long streams are kept, and create partitions of the same width.
        assert len(await partitions.create_ahead(connection, 60)) == 10
        assert await maintained(connection, policy) == said[-1:]
        assert (await maintained(connection))[0] == "New partitions are made for 1 day each."


async def test_a_wide_partition_goes_when_all_of_its_days_have_expired(dsn: str) -> None:
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
        assert said[:-1] == ["Deleted 1 stream, and 0 idempotency keys whose time was over."]
        assert await state(connection, name) == "attached"
        assert f"Dropped partition {name}." in await maintained(connection)


# What goes and what stays


async def test_whole_days_are_kept_and_what_is_older_goes(dsn: str) -> None:
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
            "Deleted 1 stream, and 0 idempotency keys whose time was over.",
            f"Dropped partition {name}.",
        ]
        assert len(await event_log.read(connection, kept, 0)) == 2
        assert await maintained(connection) == said[2:]


async def test_who_asks_for_what_is_gone_is_told_so_and_only_then(dsn: str) -> None:
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


async def test_the_horizon_never_goes_back_and_a_longer_retention_keeps_what_is_left(dsn: str) -> None:
    async with connected(dsn) as connection:
        gone = await old_stream(connection, 4)
        await maintained(connection, Policy(1, retention_days=2))
        assert not await has_row(connection, gone)
        left = await old_stream(connection, 3)
        await maintained(connection, Policy(1, retention_days=30))
        assert await has_row(connection, left)
        assert type(await retention.absence(connection, gone)) is StreamExpired
        assert await connection.fetchval("SELECT count(*) FROM baton.retention") == 1


@pytest.mark.parametrize("status", ["running", "queued"])
async def test_a_live_stream_keeps_its_partition_until_it_has_ended(dsn: str, status: str) -> None:
    async with connected(dsn) as connection:
        stream_id = await old_stream(connection, GONE_DAYS, batches=2, ended=False)
        await connection.execute("UPDATE baton.stream SET status = $1 WHERE id = $2", status, stream_id)
        beside = await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        said = await maintained(connection)
        assert f"Partition {name} is kept: stream {stream_id} in it is {status}." in said
        assert await state(connection, name) == "attached"
        assert not await has_row(connection, beside)
        await append(connection, stream_id, 3)
        assert len(await event_log.read(connection, stream_id, 0)) == 3
        await append(connection, stream_id, 4, Outcome.completed("stop"))
        await maintained(connection)
        assert await state(connection, name) == "gone"


async def test_many_rows_go_in_small_batches(dsn: str) -> None:
    async with connected(dsn) as connection:
        for _ in range(5):
            await add_key(connection, await old_stream(connection, GONE_DAYS))
        said = await maintained(connection, batch_rows=2)
        assert said[0].startswith("Deleted 5 streams")
        assert await connection.fetchval("SELECT count(*) FROM baton.idempotency_key") == 0


async def test_keys_go_when_their_time_is_over(dsn: str) -> None:
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for lives_seconds in (-1, -1, -1, 60):
            await add_key(connection, stream_id, lives_seconds=lives_seconds)
        said = await maintained(connection, batch_rows=2)
        assert said[0] == "Deleted 0 streams, and 3 idempotency keys whose time was over."
        assert await keys_of(connection, stream_id) == 1


async def test_each_batch_of_keys_begins_where_the_one_before_ended(dsn: str) -> None:
    """While a long transaction runs, the index entries of deleted rows stay. None may be read twice."""
    async with connected(dsn) as connection:
        (stream_id,) = await claimed(connection)
        for lives_seconds in (-40, -30, -20, -10):
            await add_key(connection, stream_id, lives_seconds=lives_seconds)
        over = [row[0] for row in await connection.fetch("SELECT expires_at FROM baton.idempotency_key ORDER BY 1")]
        asked: list[object] = []

        def note(query: Any) -> None:
            if query.query == retention._DELETE_KEYS:
                asked.append(query.args[0])

        with connection.query_logger(note):
            await maintained(connection, batch_rows=2)
        assert asked[1:] == [over[1], over[3]]


async def test_partitions_of_other_bounds_go_by_their_bounds(dsn: str) -> None:
    async with connected(dsn) as connection:
        edges = [stream_ids.first_id(await day(connection, days)) for days in (20, 12, KEPT_DAYS - 2)]
        for name, first, end in (("old", "MINVALUE", f"'{edges[0]}'"), ("wide", *(f"'{edge}'" for edge in edges[1:]))):
            await connection.execute(
                f'CREATE TABLE public."{name} One" PARTITION OF baton.batch FOR VALUES FROM ({first}) TO ({end})'
            )
        await maintained(connection)
        assert await state(connection, 'public."old One"') == "gone"
        assert await state(connection, 'public."wide One"') == "attached"


async def test_what_somebody_detached_to_keep_stays(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = await old_partition(connection, GONE_DAYS)
        await connection.execute(f"ALTER TABLE baton.batch DETACH PARTITION {name}")
        assert f"{name} looks like a partition that somebody has detached, and is left alone." in await maintained(
            connection
        )
        assert await state(connection, name) == "detached"


async def test_a_dry_run_says_the_same_and_does_nothing(dsn: str) -> None:
    async with connected(dsn) as connection:
        gone, live = await old_stream(connection, GONE_DAYS), await old_stream(connection, GONE_DAYS + 1, ended=False)
        said: list[str] = []
        policy = Policy(days_ahead=2, retention_days=KEPT_DAYS)
        await maintain(dsn, policy, say=said.append, dry_run=True)
        names = {days: partitions.name_of(await day(connection, days)) for days in (-2, GONE_DAYS, GONE_DAYS + 1)}
        assert said == [
            f"Would create partition {names[-2]}.",
            said[1],
            f"Would keep partition {names[GONE_DAYS + 1]}: stream {live} in it is running.",
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
async def test_a_dry_run_says_what_becomes_of_a_pending_partition(dsn: str, ours: bool) -> None:
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
            assert said[1:] == [f"Would drop no partition, since somebody else is detaching {name}."]
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
        await connection.execute("ANALYZE baton.stream, baton.idempotency_key")
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


# Others at work


async def test_of_two_at_once_one_works(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as other:
        gone = await old_stream(connection, GONE_DAYS)
        await other.execute("SELECT pg_advisory_lock($1)", MAINTENANCE_LOCK)
        assert await maintained(connection) == ["Another `baton maintain` is at work, and this one leaves it to that."]
        assert await has_row(connection, gone)
        await other.execute("SELECT pg_advisory_unlock($1)", MAINTENANCE_LOCK)
        await maintained(connection)
        assert not await has_row(connection, gone)
        assert await other.fetchval("SELECT pg_try_advisory_lock($1)", MAINTENANCE_LOCK)


async def test_partitions_are_left_alone_while_a_migration_is_at_work(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as other:
        gone = await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        await other.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        assert "A migration is at work, and partitions are left to the next run." in await maintained(connection)
        assert (await has_row(connection, gone), await state(connection, name)) == (False, "attached")


async def test_what_has_expired_goes_even_if_no_partition_can_be_created(dsn: str) -> None:
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


async def test_nobody_waits_while_a_detachment_waits_for_a_long_transaction(dsn: str) -> None:
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


async def test_a_detachment_that_had_to_give_up_is_finished_by_a_later_run(dsn: str) -> None:
    async with connected(dsn) as connection:
        for days in (GONE_DAYS, GONE_DAYS + 1):
            await old_stream(connection, days)
        first, second = [partitions.name_of(await day(connection, days)) for days in (GONE_DAYS + 1, GONE_DAYS)]
        async with using_the_log(dsn) as report:
            for _ in range(2):
                (told,) = [line for line in await maintained(connection, lock_seconds=0.05) if "in use" in line]
                assert told.startswith(f"Partition {first} is in use by session {report.get_server_pid()} (")
                assert "application a long report" in told
                assert [await state(connection, name) for name in (first, second)] == ["pending", "attached"]
            (stream_id,) = await claimed(connection)
            await append(connection, stream_id, 1)
        await maintained(connection)
        assert [await state(connection, name) for name in (first, second)] == ["gone", "gone"]


async def test_who_still_sees_the_partition_attached_is_not_locked_out_of_it(dsn: str) -> None:
    """A repeatable read from before the detachment began, which has not touched the log yet."""
    async with connected(dsn) as connection, connected(dsn) as reader:
        await old_stream(connection, GONE_DAYS)
        name = partitions.name_of(await day(connection, GONE_DAYS))
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        async with using_the_log(dsn):
            await maintained(connection, lock_seconds=0.05)
            assert await state(connection, name) == "pending"
        (told,) = [line for line in await maintained(connection) if "in use" in line]
        assert f"session {reader.get_server_pid()} " in told
        await reader.execute("SET LOCAL lock_timeout = '1s'")
        assert await reader.fetchval("SELECT count(*) FROM baton.batch") == 2
        await reader.execute("COMMIT")
        assert f"Dropped partition {name}." in await maintained(connection)


async def test_the_detachment_of_somebody_else_is_left_to_them(dsn: str) -> None:
    async with connected(dsn) as connection:
        await old_stream(connection, GONE_DAYS + 1)
        name = await old_partition(connection, GONE_DAYS)
        await begin_to_detach(dsn, connection, name)
        said = await maintained(connection)
        assert any(line.endswith(f"ALTER TABLE baton.batch DETACH PARTITION {name} FINALIZE.") for line in said)
        assert await state(connection, name) == "pending"


async def test_a_partition_that_could_not_be_detached_is_not_marked(dsn: str) -> None:
    """An operator who detaches it later, to archive it, would otherwise lose it."""
    async with connected(dsn) as connection, connected(dsn) as other:
        name = await old_partition(connection, GONE_DAYS)
        await other.execute("BEGIN; LOCK TABLE ONLY baton.batch IN SHARE UPDATE EXCLUSIVE MODE")
        said = await maintained(connection, lock_seconds=0.05)
        assert said[0].startswith(f"Partition {name} is in use by session {other.get_server_pid()} (")
        assert (await state(connection, name), await marked(connection)) == ("attached", [])


# Cut off


async def test_the_mark_of_a_run_that_was_cut_off_goes_where_the_partition_stays(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as analyzing:
        kept = await old_partition(connection, KEPT_DAYS)
        await mark(connection, kept)
        await analyzing.execute(f"BEGIN; ANALYZE {kept}")
        assert f"Partition {kept} is in use by" in (await maintained(connection, lock_seconds=0.05))[0]
        await analyzing.execute("COMMIT")
        await maintained(connection)
        assert (await state(connection, kept), await marked(connection)) == ("attached", [])


async def test_a_partition_of_another_name_that_was_detached_is_dropped(dsn: str) -> None:
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


async def test_it_may_be_cut_off_after_any_statement(dsn: str) -> None:
    async with connected(dsn) as connection:
        for number in range(1, 60):
            ids = [await old_stream(connection, days) for days in (GONE_DAYS, GONE_DAYS, GONE_DAYS + 1)]
            await add_key(connection, ids[0])
            finished = await broken_off(dsn, connection, number)
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
        pytest.fail("it never got through")


async def broken_off(dsn: str, killer: Connection, answers: int) -> bool:
    """Maintain over a session that is terminated after a number of replies; return whether it finished before."""
    breaking = await asyncpg.connect(dsn, connection_class=Breaking)
    breaking.answers_left, breaking.killer = answers, killer
    try:
        await maintained(breaking, batch_rows=2)
    except CONNECTION_ERRORS:
        return False
    finally:
        breaking.terminate()
    return True


async def test_it_may_be_cut_off_while_it_waits(dsn: str) -> None:
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


# As a command


async def test_the_loop_goes_on_after_an_outage(postgres: str, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    def say(line: str) -> None:
        nonlocal runs
        runs += line.startswith("Streams created before")

    database = f"ALTER DATABASE {urlsplit(dsn).path[1:]} ALLOW_CONNECTIONS"
    async with connected(dsn) as connection:
        loop = asyncio.create_task(keep_maintaining(dsn, POLICY, every_seconds=0.01, say=say))
        await until(lambda: runs > 1)
        await execute(postgres, f"{database} false")
        await until(lambda: "It is tried again." in caplog.text)
        gone = await old_stream(connection, GONE_DAYS)
        await execute(postgres, f"{database} true")
        runs = 0
        await until(lambda: runs > 1)
        assert not await has_row(connection, gone)
        await connection.execute("UPDATE baton.alembic_version SET version_num = '9999'")
        await connection.execute("UPDATE baton.compatibility SET oldest_code = '9999'")
        with pytest.raises(SchemaMismatch):
            await asyncio.wait_for(loop, DEADLINE_SECONDS)


async def test_at_its_start_the_loop_does_not_wait(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable):
        await keep_maintaining("postgresql://u@127.0.0.1:1/x", POLICY, every_seconds=1, say=print)


async def test_connecting_may_take_less_than_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}

    async def refused(**options: Any) -> None:
        opened.update(options)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", refused)
    with pytest.raises(DatabaseUnreachable):
        await maintain("postgresql://u@127.0.0.1:1/x", POLICY, say=print)
    assert opened["timeout"] == 10
    assert opened["command_timeout"] > STATEMENT_SECONDS


async def test_a_role_that_does_not_own_the_schema_is_told(dsn: str) -> None:
    role = f"other_{secrets.token_hex(4)}"
    await execute(dsn, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA baton TO {role}")
    await execute(dsn, f"GRANT SELECT ON ALL TABLES IN SCHEMA baton TO {role}")
    try:
        with pytest.raises(ConfigurationError, match="needs the role that ran `baton migrate`"):
            await maintain(as_role(dsn, role), POLICY, say=print)
    finally:
        await execute(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_statement_that_takes_too_long_is_not_called_a_lost_connection(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET statement_timeout = '50ms'")
        await connection.execute("BEGIN; LOCK TABLE baton.stream")
        with pytest.raises(ConfigurationError, match="was held up for too long") as caught:
            await maintain(dsn, POLICY, say=print, dry_run=True)
    assert not isinstance(caught.value, DatabaseUnreachable)
