"""`baton doctor`: it finds real problems, and none in a healthy database."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import orjson
import pytest
from rich.console import Console
from tests.faults.servers import postgres_bin
from tests.support.commands import told
from tests.support.data_folder import data_folder
from tests.support.databases import execute, named_database
from tests.support.logbook import answer, connected, until, working
from tests.support.past import old_partition
from tests.support.processes import environment, finished
from tests.support.roles import granted

from baton.chaos.faults import full_notify_queue
from baton.chaos.nats_server import NatsServer
from baton.db import partitions
from baton.demo.embedded import embedded_server
from baton.doctor.examination import Diagnosis, examine
from baton.doctor.finding import Finding, Level, Thresholds, duration, error, ok, warning
from baton.doctor.report import exit_code, show
from baton.schema.grants import Revocation
from baton.schema.migrate import migrate
from baton.settings import Settings

QUICK = {"sample_seconds": 0}
WELL, WARNING, ERROR = Level.OK, Level.WARNING, Level.ERROR


async def diagnose(dsn: str, *, thresholds: dict[str, Any] | None = None, **given: Any) -> Diagnosis:
    return await examine(
        Settings.load(**{"database_url": dsn, "partition_days_ahead": 1} | given), thresholds=limits(thresholds)
    )


def limits(given: dict[str, Any] | None = None) -> Thresholds:
    return Thresholds(**QUICK | (given or {}))


def levels(diagnosis: Diagnosis) -> dict[str, Level]:
    return {finding.code: finding.level for finding in diagnosis.findings}


def finding(diagnosis: Diagnosis, code: str) -> Finding:
    (found,) = [item for item in diagnosis.findings if item.code == code]
    return found


def troubles(diagnosis: Diagnosis) -> dict[str, Level]:
    return {code: level for code, level in levels(diagnosis).items() if level is not WELL}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A migrated database on a durable server of this module's own, with a small notify queue."""
    with data_folder() as folder, embedded_server(folder) as server:
        for change in ("max_notify_queue_pages = 64", "max_prepared_transactions = 2"):
            asyncio.run(execute(server.dsn, f"ALTER SYSTEM SET {change}"))
        server.restart()
        asyncio.run(migrate(server.dsn, days_ahead=1))
        yield server.dsn


HEALTHY = {
    *(
        "waiting_streams",
        "ends",
        "reachable",
        "distribution",
        "version",
        "encoding",
        "writable",
        "disk",
        "schema",
        "role",
        "notify_queue",
        "notifications",
        "timeouts",
    ),
    *(
        "access",
        "external_streams",
        "partitions",
        "indexes",
        "autovacuum",
        "transactions",
        "snapshots",
        "replication_slots",
        "workers",
        "queue",
        "connections",
        "locks",
    ),
    *("connect", "parameters", "durability", "clock", "transaction_ids", "retention"),
}
OF_WORKERS = HEALTHY - {"access", "external_streams"}


async def test_it_finds_no_problem_in_a_healthy_database(server: str) -> None:
    async with granted(server) as roles:
        await execute(server, f"GRANT pg_monitor TO {roles.names.serve}, {roles.names.work}, {roles.names.migrate}")
        await execute(roles.migrate_dsn, A_KEY)
        async with working(roles.work_dsn, answer, lease_seconds=6):
            for dsn in (roles.serve_dsn, roles.work_dsn, roles.migrate_dsn):
                diagnosis = await diagnose(dsn)
                assert diagnosis.complete
                assert troubles(diagnosis) == {}, diagnosis.findings
                assert set(levels(diagnosis)) == (OF_WORKERS if dsn == roles.work_dsn else HEALTHY)
        await execute(server, "DELETE FROM baton.worker")


A_KEY = "INSERT INTO baton.api_key (name, tenant, scopes, secret_hash) VALUES ('web', 'acme', '{read}', '')"


async def test_it_finds_missing_and_anonymous_access(dsn: str) -> None:
    assert levels(await diagnose(dsn))["access_not_configured"] is WARNING
    assert levels(await diagnose(dsn, allow_anonymous=True))["access_anonymous"] is WARNING
    provider: dict[str, Any] = {"jwks_url": "https://idp.test/keys", "jwt_issuer": "idp", "jwt_audience": "baton"}
    assert finding(await diagnose(dsn, **provider), "access").message == "0 valid API keys, and an identity provider."
    await execute(dsn, A_KEY)
    assert finding(await diagnose(dsn), "access").message == "1 valid API key."
    await execute(dsn, "UPDATE baton.api_key SET expires_at = clock_timestamp() - interval '1 s'")
    assert "access_not_configured" in levels(await diagnose(dsn))


WRONG_TABLES = """
CREATE TABLE baton.batch_rest PARTITION OF baton.batch DEFAULT;
ALTER TABLE baton.batch DETACH PARTITION baton.{yesterday};
CREATE UNLOGGED TABLE baton.loose ();
ALTER TABLE baton.stream SET (autovacuum_enabled = false);
INSERT INTO baton.stream (generator, input, on_worker_lost, status, worker_id)
VALUES ('slow', '1', 'fail', 'queued', NULL), ('nobody', '1', 'fail', 'queued', NULL),
       ('slow', '1', 'fail', 'running', gen_random_uuid());
UPDATE baton.stream SET queued_at = clock_timestamp() - interval '1 h';
UPDATE baton.stream SET attempts = 1;
INSERT INTO baton.worker (name, generators, concurrency, heartbeat_at)
VALUES ('dead', '{{nobody}}', 1, clock_timestamp() - interval '1 h'), ('alive', '{{slow}}', 1, clock_timestamp());
SELECT pg_stat_force_next_flush()
"""


async def test_it_finds_problems_of_tables_and_streams(dsn: str) -> None:
    async with connected(dsn) as connection:
        today = await connection.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        yesterday = f"batch_{today - datetime.timedelta(days=1):%Y%m%d}"
        for statement in WRONG_TABLES.format(yesterday=yesterday).split(";\n"):
            await connection.execute(statement)
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON baton.stream (tenant)")
    diagnosis = await diagnose(dsn, thresholds={"dead_rows": 1})
    expected = {
        "partition_default": (ERROR, "DEFAULT"),
        "partitions_left_over": (WARNING, yesterday),
        "unlogged": (ERROR, "loose"),
        "autovacuum_off_tables": (WARNING, "stream"),
        "dead_rows": (WARNING, "stream has"),
        "indexes_invalid": (WARNING, "broken"),
        "workers_dead": (WARNING, "'dead' for 60 min"),
        "streams_orphaned": (WARNING, "1 stream"),
        "queue_unserved": (ERROR, "1 stream queued for 'nobody', the oldest for 60 min"),
        "queue_slow": (WARNING, "1 stream queued for 'slow', the oldest for 60 min"),
    }
    for code, (level, words) in expected.items():
        assert levels(diagnosis).get(code) is level, (code, diagnosis.findings)
        assert words in finding(diagnosis, code).message
        assert finding(diagnosis, code).advice


OPENED_LONG_AGO = """
WITH made AS (
    INSERT INTO baton.stream (generator, input, on_worker_lost, status, created_at)
    VALUES ('external', 'null', 'fail', 'open', clock_timestamp() - interval '3 h') RETURNING id
)
INSERT INTO baton.external_stream (stream_id, tenant, kind, content_type)
SELECT id, '', 'events', 'application/json' FROM made
"""


async def test_it_finds_what_keeps_external_streams_from_working(dsn: str) -> None:
    assert "older_code_running" not in levels(await diagnose(dsn))
    await execute(dsn, "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('old', '{}', 1)")
    await execute(dsn, OPENED_LONG_AGO)
    diagnosis = await diagnose(dsn)
    assert finding(diagnosis, "older_code_running").message == "Still running, of an older release: worker old."
    overdue = finding(diagnosis, "external_overdue")
    assert (overdue.level, overdue.message[:45]) == (WARNING, "1 external stream open for longer than allowe")
    assert "by up to 2 h" in overdue.message
    await execute(dsn, "UPDATE baton.external_stream SET kind = 'json'")
    assert finding(await diagnose(dsn), "external_streams").message == "1 external stream open."


async def test_it_finds_waits_that_no_worker_ends(dsn: str) -> None:
    await execute(
        dsn,
        "INSERT INTO baton.stream (generator, input, on_worker_lost, status, waiting_since, wait_until) "
        "VALUES ('g', 'null', 'fail', 'waiting', clock_timestamp(), clock_timestamp() + interval '1 h')",
    )
    assert finding(await diagnose(dsn), "waiting_streams").message == "1 stream waiting for an input."
    await execute(dsn, "UPDATE baton.stream SET wait_until = clock_timestamp() - interval '2 h'")
    overdue = finding(await diagnose(dsn), "wait_overdue")
    assert (overdue.level, "by up to 2 h" in overdue.message) == (WARNING, True)


async def test_it_finds_that_no_worker_is_alive(dsn: str) -> None:
    assert levels(await diagnose(dsn))["workers_missing"] is WARNING
    await execute(
        dsn,
        "INSERT INTO baton.worker (name, generators, concurrency, heartbeat_at) "
        "VALUES ('dead', '{x}', 1, clock_timestamp() - interval '1 h')",
    )
    assert levels(await diagnose(dsn))["workers_dead"] is ERROR


async def test_producers_need_no_worker(dsn: str) -> None:
    await execute(dsn, OPENED_LONG_AGO)
    found = finding(await diagnose(dsn), "workers")
    assert (found.level, found.message) == (
        WELL,
        "No worker is alive, and none is needed: producers write all recent streams.",
    )
    for status, age in (("queued", "2 days"), ("running", "2 days"), ("completed", "1 h")):
        await execute(
            dsn,
            "DELETE FROM baton.stream WHERE generator = 'x'; "
            "INSERT INTO baton.stream (generator, input, on_worker_lost, status, created_at) "
            f"VALUES ('x', 'null', 'fail', '{status}', clock_timestamp() - interval '{age}')",
        )
        assert levels(await diagnose(dsn))["workers_missing"] is WARNING
    await execute(dsn, "UPDATE baton.stream SET created_at = clock_timestamp() - interval '2 days'")
    assert "workers_missing" not in levels(await diagnose(dsn))


async def test_it_finds_that_there_is_no_partition(dsn: str) -> None:
    async with connected(dsn) as connection:
        for item in await partitions.attached(connection):
            await connection.execute(f"DROP TABLE {item.name}")
    found = finding(await diagnose(dsn), "partitions_run_out")
    assert (found.level, found.message) == (ERROR, "The log has 0 partitions; new streams have no partition.")


async def test_it_compares_partitions_with_the_lock_table_and_the_ceiling(dsn: str) -> None:
    async with connected(dsn) as connection:
        await partitions.create_ahead(connection, 7)
    well = finding(await diagnose(dsn), "locks")
    assert (well.level, well.message[:72]) == (
        WELL,
        "A statement on the whole log (a report, pg_dump, a migration) takes up t",
    )
    assert "27 locks, for 9 partitions; the server has room for" in well.message
    diagnosis = await diagnose(dsn, thresholds={"partitions": 8, "whole_log_statements": 100_000})
    assert "locks" not in levels(diagnosis)
    short, many = finding(diagnosis, "locks_insufficient"), finding(diagnosis, "partitions_many")
    assert (short.level, many.level) == (WARNING, WARNING)
    async with connected(dsn) as connection:
        sessions = await connection.fetchval("SELECT current_setting('max_connections')::integer")
    assert f"Set max_locks_per_transaction to {27 * 100_000 // sessions}" in short.advice
    assert many.message == "The log has 9 partitions; Baton is tested with 400 at most."
    assert "BATON_PARTITION_DAYS" in many.advice


async def test_it_finds_a_table_with_the_name_of_a_future_partition(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = partitions.name_of(await partitions.now(connection) + 2 * partitions.DAY_SECONDS)
        await connection.execute(f"CREATE TABLE {name} ()")
    assert "partitions_name_taken" not in levels(await diagnose(dsn))
    found = finding(await diagnose(dsn, partition_days_ahead=2), "partitions_name_taken")
    assert (found.level, found.message.split()[0]) == (ERROR, name)


@pytest.mark.parametrize("reaches_tomorrow", [True, False])
async def test_it_finds_that_partitions_run_out(dsn: str, *, reaches_tomorrow: bool) -> None:
    async with connected(dsn) as connection:
        if not reaches_tomorrow:
            names = await connection.fetch(
                "SELECT relname FROM pg_class WHERE relname LIKE 'batch\\_________' AND relispartition "
                "ORDER BY 1 DESC LIMIT 2"
            )
            for (name,) in names:
                await connection.execute(f"DROP TABLE baton.{name}")
    diagnosis = await diagnose(dsn, partition_days_ahead=7)
    code, level = ("partitions_low", WARNING) if reaches_tomorrow else ("partitions_run_out", ERROR)
    assert levels(diagnosis)[code] is level
    assert "baton maintain" in finding(diagnosis, code).advice


@pytest.mark.parametrize("age_days", [31, 34])
async def test_it_finds_expired_partitions(dsn: str, age_days: int) -> None:
    async with connected(dsn) as connection:
        name = await old_partition(connection, age_days)
    diagnosis = await examine(Settings.load(database_url=dsn), thresholds=limits())
    if age_days == 31:  # `baton maintain` has a day or two to run
        assert levels(diagnosis)["retention"] is WELL
    else:
        assert f"from {name} on" in finding(diagnosis, "retention_overdue").message


DATABASE_SETTINGS = {
    "idle_session_timeout = '5min'": ("idle_session_timeout", ERROR, "after 5 min"),
    "statement_timeout = '300ms'": ("statement_timeout", WARNING, "300 ms"),
    "log_statement = 'all'": ("parameters_logged", WARNING, "this role's statements, including inputs and texts"),
    "idle_in_transaction_session_timeout = 0": ("idle_in_transaction", WARNING, "in a transaction forever"),
    "synchronous_commit = off": ("synchronous_commit_off", ERROR, "synchronous_commit is off"),
    "default_transaction_read_only = on": ("read_only", ERROR, "read-only"),
}


async def test_it_finds_harmful_settings(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = await connection.fetchval("SELECT current_database()")
        for setting in DATABASE_SETTINGS:
            await connection.execute(f"ALTER DATABASE {name} SET {setting}")
    diagnosis = await diagnose(dsn)
    for code, level, words in DATABASE_SETTINGS.values():
        assert levels(diagnosis)[code] is level
        assert words in finding(diagnosis, code).message


async def test_it_finds_that_parameters_of_failing_statements_are_logged(dsn: str) -> None:
    async with connected(dsn) as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET log_parameter_max_length_on_error = 100")
    assert "failing statements" in finding(await diagnose(dsn), "parameters_logged").message


async def test_it_finds_other_roles_that_can_connect(dsn: str) -> None:
    async with granted(dsn) as roles, granted(dsn) as others:
        await execute(dsn, f"REVOKE ALL ON SCHEMA baton FROM {others.names.work}")
        found = finding(await diagnose(roles.serve_dsn), "connect_public")
        assert others.names.work in found.message
        assert roles.names.work not in found.message
        assert "can receive the text of streams" in found.message
        assert "--revoke-connect" in found.advice
        silent = finding(await diagnose(roles.serve_dsn, notify_payloads=False), "connect_public")
        assert "can receive the ids of streams" in silent.message
        await roles.grant(Revocation(lock_out_others=True))
        assert finding(await diagnose(roles.serve_dsn), "connect").level is WELL


@contextlib.asynccontextmanager
async def receiving(server: str) -> AsyncIterator[None]:
    """A program that receives the server's WAL as a standby does."""
    with data_folder() as folder:
        program = str(postgres_bin("pg_receivewal"))
        process = await asyncio.create_subprocess_exec(program, "-D", folder, "--synchronous", "-d", server)
        try:

            async def streaming() -> bool:
                async with connected(server) as connection:
                    return bool(await connection.fetchval("SELECT state = 'streaming' FROM pg_stat_replication"))

            await until(streaming)
            yield
        finally:
            process.terminate()
            await process.wait()


async def synchronize(server: str, names: str) -> None:
    """Name the server's synchronous standbys, and wait until new sessions see it."""
    await execute(server, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    await execute(server, "SELECT pg_reload_conf()")

    async def changed() -> bool:
        async with connected(server) as connection:
            return bool(await connection.fetchval("SHOW synchronous_standby_names") == names)

    await until(changed)


async def test_it_finds_what_a_failover_would_lose(server: str) -> None:
    async with granted(server) as roles, receiving(server):
        assert levels(await diagnose(roles.serve_dsn))["standbys_hidden"] is WARNING
        await execute(server, f"GRANT pg_monitor TO {roles.names.serve}")
        found = finding(await diagnose(roles.serve_dsn), "standbys_asynchronous")
        assert (found.level, "asynchronous: pg_receivewal." in found.message) == (WARNING, True)
        try:
            await synchronize(server, "pg_receivewal")

            async def synchronous() -> bool:
                return "durability" in levels(await diagnose(roles.serve_dsn))

            await until(synchronous)
            await execute(server, f"ALTER ROLE {roles.names.serve} SET synchronous_commit = local")
            assert levels(await diagnose(roles.serve_dsn))["synchronous_commit_local"] is WARNING
            await execute(server, f"ALTER ROLE {roles.names.serve} RESET synchronous_commit")
            await synchronize(server, "nosuch")

            async def missing() -> bool:
                diagnosis = await diagnose(roles.serve_dsn, thresholds={"answer_seconds": 0.5})
                return levels(diagnosis).get("standbys_missing") is ERROR

            await until(missing)
        finally:
            await synchronize(server, "")


async def test_it_finds_harmful_settings_of_other_roles(dsn: str) -> None:
    async with granted(dsn) as roles:
        await execute(dsn, f"ALTER ROLE {roles.names.work} SET synchronous_commit = off")
        diagnosis = await diagnose(roles.serve_dsn)
        assert roles.names.work in finding(diagnosis, "synchronous_commit_off_elsewhere").message


async def test_it_finds_harmful_settings_of_the_server(server: str) -> None:
    names = ("fsync", "full_page_writes", "autovacuum")
    try:
        for name in names:
            await change(server, name, "off")
        diagnosis = await diagnose(server, database_pool_size=120)
    finally:
        for name in names:
            await change(server, name, None)
    assert (
        levels(diagnosis).items()
        >= {
            "fsync_off": ERROR,
            "full_page_writes_off": ERROR,
            "autovacuum_off": ERROR,
            "connections_insufficient": ERROR,
            "role_superuser": WARNING,
        }.items()
    )


async def test_it_counts_the_connections_of_all_processes_of_a_command(dsn: str) -> None:
    one = finding(await diagnose(dsn), "connections")
    assert one.message.endswith("a pod uses up to 10 connections, a worker 6.")
    few = await diagnose(dsn, processes=2, database_pool_size=1)
    assert finding(few, "connections").message.endswith("a worker 6, and a command 2 times that (BATON_PROCESSES).")
    assert levels(await diagnose(dsn, processes=200))["connections_insufficient"] is ERROR


async def change(server: str, name: str, value: str | None) -> None:
    """Change a setting of the server, and wait until new sessions use it."""
    await execute(server, f"ALTER SYSTEM {'RESET ' + name if value is None else f'SET {name} = {value}'}")
    await execute(server, "SELECT pg_reload_conf()")

    async def changed() -> bool:
        async with connected(server) as connection:
            return bool(await connection.fetchval(f"SHOW {name}") == (value or "on"))

    await until(changed)


async def test_it_finds_the_transaction_that_holds_vacuum_back(dsn: str) -> None:
    async with connected(dsn) as idle:
        await idle.execute("SET application_name = 'forgotten'; BEGIN; SELECT 1")
        pid = idle.get_server_pid()
        found = finding(await diagnose(dsn, thresholds={"transaction_seconds": 0}), "vacuum_held_back").message
        assert f"pid {pid} " in found
        assert "forgotten" in found
        assert "idle in transaction" in found


async def test_every_role_finds_the_owner_of_an_old_snapshot(dsn: str) -> None:
    async with granted(dsn) as roles, connected(dsn) as old, connected(dsn) as connection:
        await old.execute("SET application_name = 'nightly dump'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await connection.execute("SELECT pg_current_xact_id()")
        await connection.execute("SELECT pg_current_xact_id()")
        diagnosis = await diagnose(roles.serve_dsn, thresholds={"snapshot_transactions": 0})
        assert levels(diagnosis)["snapshot_old"] is WARNING
        found = finding(diagnosis, "snapshot_old").message
        assert f"pid {old.get_server_pid()} (" in found
        assert "nightly dump" in found


async def test_it_finds_prepared_transactions_and_replication_slots(server: str) -> None:
    async with connected(server) as connection:
        await connection.execute("BEGIN; CREATE TABLE public.other (); PREPARE TRANSACTION 'forgotten'")
        await connection.execute("SELECT pg_create_physical_replication_slot('forgotten', true)")
        try:
            diagnosis = await diagnose(server, thresholds={"transaction_seconds": 0, "retained_wal_bytes": -1})
        finally:
            await connection.execute("ROLLBACK PREPARED 'forgotten'")
            await connection.execute("SELECT pg_drop_replication_slot('forgotten')")
    for code in ("prepared_transactions", "replication_slots"):
        assert levels(diagnosis)[code] is WARNING
        assert "'forgotten'" in finding(diagnosis, code).message


async def test_it_finds_a_full_notify_queue_and_its_holder(server: str) -> None:
    async with full_notify_queue(server), connected(server) as connection:
        pid = await connection.fetchval("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'")
        diagnosis = await diagnose(server)
    assert levels(diagnosis)["notifications_refused"] is ERROR
    assert levels(diagnosis)["notify_queue"] is ERROR
    assert f"pid {pid} (" in finding(diagnosis, "notify_queue").message


async def test_it_finds_that_the_clocks_differ(dsn: str) -> None:
    ahead = await examine(Settings.load(database_url=dsn), thresholds=limits(), clock=lambda: time.time() - 100)
    assert "ahead of" in finding(ahead, "clock_skew").message
    behind = await examine(Settings.load(database_url=dsn), thresholds=limits(), clock=lambda: time.time() + 100)
    assert "behind" in finding(behind, "clock_skew").message


async def test_it_counts_transaction_ids(dsn: str) -> None:
    assert levels(await diagnose(dsn, thresholds={"transaction_ids_a_day": 0}))["transaction_ids_fast"] is WARNING


async def test_it_finds_another_encoding_and_missing_tables(postgres: str) -> None:
    await execute(postgres, "CREATE DATABASE baton_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        diagnosis = await diagnose(named_database(postgres, "baton_ascii"))
    finally:
        await execute(postgres, "DROP DATABASE baton_ascii WITH (FORCE)")
    assert levels(diagnosis)["encoding"] is ERROR
    assert finding(diagnosis, "schema").advice == "Run `baton migrate` first."
    assert "check_failed" not in levels(diagnosis)


async def test_it_finds_an_older_schema(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0001")
    assert finding(await diagnose(empty_dsn), "schema").level is ERROR


async def test_it_finds_missing_and_excess_privileges(dsn: str) -> None:
    async with granted(dsn) as roles:
        assert finding(await diagnose(roles.serve_dsn), "role").message.endswith(
            "may serve, and has no other privileges."
        )
        assert finding(await diagnose(roles.work_dsn), "role").message.endswith(
            "may work, and has no other privileges."
        )
        assert "may migrate" in finding(await diagnose(roles.migrate_dsn), "role").message
        await execute(dsn, f"GRANT UPDATE (input) ON baton.stream TO {roles.names.work}")
        await execute(dsn, f"REVOKE DELETE ON baton.stream FROM {roles.names.serve}")
        excess = finding(await diagnose(roles.work_dsn), "role_excess_privileges")
        assert "privileges that it does not need for that: UPDATE on stream (input)." in excess.message
        lacking = finding(await diagnose(roles.serve_dsn), "role_missing_privileges")
        assert "To serve, it needs DELETE on stream." in lacking.message
        await execute(dsn, f"ALTER TABLE baton.worker OWNER TO {roles.names.serve}")
        assert roles.names.serve in finding(await diagnose(dsn), "owners_differ").message


async def test_it_reports_checks_that_the_role_may_not_run(dsn: str) -> None:
    async with granted(dsn) as roles, connected(dsn):
        assert levels(await diagnose(roles.serve_dsn))["sessions_hidden"] is WARNING
        await execute(dsn, f"REVOKE USAGE ON SCHEMA baton FROM {roles.names.serve}")
        diagnosis = await diagnose(roles.serve_dsn)
        assert (
            levels(diagnosis).items()
            >= {"schema": ERROR, "role_missing_privileges": ERROR, "not_permitted": WARNING}.items()
        )
        assert "workers" in finding(diagnosis, "not_permitted").message
        assert levels(diagnosis)["transaction_ids"] is WELL


async def test_a_check_without_an_answer_does_not_stop_others(dsn: str) -> None:
    async with connected(dsn) as locking, locking.transaction():
        await locking.execute("LOCK baton.worker IN ACCESS EXCLUSIVE MODE")
        diagnosis = await diagnose(dsn, thresholds={"answer_seconds": 0.5})
    failed = [item.message for item in diagnosis.findings if item.code == "check_failed"]
    assert len(failed) == 4
    assert failed[0].startswith("The check of workers failed: no answer within 0.5 s")
    assert "transaction_ids" in levels(diagnosis)
    assert diagnosis.complete


async def test_it_reports_an_unreachable_listen_dsn(dsn: str) -> None:
    diagnosis = await diagnose(dsn, listen_database_url="postgresql://u@127.0.0.1:1/x")
    assert levels(diagnosis)["listen_unreachable"] is ERROR
    assert diagnosis.complete


async def test_it_sends_a_message_over_nats(dsn: str) -> None:
    async with NatsServer.running() as server:
        found = finding(await diagnose(dsn, hints_url=server.url), "notifications")
        assert found.message.startswith("A message over NATS arrived after ")
        assert found.level is WELL
    found = finding(await diagnose(dsn, hints_url=server.url), "nats_unreachable")
    assert found.level is ERROR
    assert "BATON_HINTS_URL" in found.advice
    async with NatsServer.running("--user", "baton", "--pass", "right") as server:
        found = finding(await diagnose(dsn, hints_url=server.url), "nats_unreachable")
        assert "Authorization Violation" in found.message


async def test_it_says_that_polling_needs_no_notifications(dsn: str) -> None:
    found = finding(await diagnose(dsn, hints_url="poll"), "notifications")
    assert found.message == "There are none: pods and workers look for what is new every 0.2 s."


async def test_a_refused_connection_is_reported_in_full(dsn: str) -> None:
    diagnosis = await diagnose(urlunsplit(urlsplit(dsn)._replace(netloc="nobody@")))
    assert finding(diagnosis, "unreachable").message.endswith('role "nobody" does not exist')
    assert finding(diagnosis, "unreachable").advice == "Correct BATON_DATABASE_URL."


def test_exit_codes() -> None:
    fine, doubtful, bad = ok("a", "a"), warning("b", "b", "b"), error("c", "c", "c")
    assert [exit_code(Diagnosis([fine]), strict=strict) for strict in (False, True)] == [0, 0]
    assert [exit_code(Diagnosis([fine, doubtful]), strict=strict) for strict in (False, True)] == [0, 1]
    assert [exit_code(Diagnosis([bad]), strict=strict) for strict in (False, True)] == [1, 1]
    assert [exit_code(Diagnosis([bad], complete=False), strict=strict) for strict in (False, True)] == [2, 2]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_table_and_a_file_one_line_per_finding(width: int) -> None:
    diagnosis = Diagnosis([ok("fine", "All [b]fine[/b]."), warning("long", "word " * 60, "Do this.")])
    shown = io.StringIO()
    show(diagnosis, Console(file=shown, width=width, force_terminal=True, no_color=True))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width + len("\x1b[1m\x1b[0m")
    assert "All [b]fine[/b]." in lines[0]
    assert any("→ Do this." in line for line in lines)
    shown = io.StringIO()
    show(diagnosis, Console(file=shown, width=width))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "ok       fine: All [b]fine[/b]."
    assert lines[-1] == "0 errors, 1 warning."


def test_durations() -> None:
    assert [duration(x) for x in (0.04, 1.5, 30, 600, 8000, 90_000, 200_000)] == [
        *("0.0 s", "1.5 s", "30 s", "10 min", "2 h", "25 h", "2 days"),
    ]


def test_the_command_prints_text_and_json(server: str) -> None:
    env = {"BATON_DATABASE_URL": server, "BATON_PARTITION_DAYS_AHEAD": "1"}
    code, out, err = told("doctor", env=env)
    assert (code, err) == (0, ""), out
    assert "warning  workers_missing: " in out
    code, out, err = told("doctor", "--json", "--strict", env=env)
    assert (code, err) == (1, "")
    document = orjson.loads(out)
    assert document.keys() == {"version", "complete", "errors", "warnings", "findings"}
    assert (document["complete"], document["errors"]) == (True, 0)
    assert document["warnings"] == sum(item["level"] == "warning" for item in document["findings"])
    for item in document["findings"]:
        assert item.keys() == {"level", "code", "message", "advice"}
        assert item["level"] in {"ok", "warning", "error"}
        assert bool(item["advice"]) == (item["level"] != "ok")


async def test_the_command_reports_an_unreachable_database(tmp_path: Path) -> None:
    env = environment(BATON_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    code, out, err = await finished("doctor", "--json", env=env, cwd=tmp_path)
    assert (code, err) == (2, "")
    document = orjson.loads(out)
    assert document["complete"] is False
    assert [item["code"] for item in document["findings"]] == ["unreachable"]
    assert "hunter2" not in out


def test_the_command_reports_a_missing_setting() -> None:
    code, out, err = told("doctor", env={})
    assert (code, out) == (2, "")
    assert err.startswith("baton: No database is configured.")
