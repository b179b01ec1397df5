"""The roles of `baton grants`: the services work under them, and each has no more privileges than it needs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import astuple
from typing import get_args
from uuid import UUID

import asyncpg
import pytest
from tests.support.cluster import Cluster, Tap, echo
from tests.support.databases import execute, named_database
from tests.support.follower import following
from tests.support.logbook import ANSWER, answer, connected, ended, events, text, until, working
from tests.support.roles import PASSWORD, Roles, as_role, drop, granted, unique_names

from baton.db import stream_creation, stream_ending, streams
from baton.db.postgres import Connection, pool
from baton.db.schema_revision import check_schema
from baton.db.stream_creation import Limits, NewStream
from baton.generators import GenerationRequest, Generator
from baton.generators.protocol import Yielded
from baton.schema.grants import SETTINGS, Revocation, RoleNames, Service
from baton.schema.grants_sql import script
from baton.schema.migrate import migrate


@pytest.fixture
async def roles(dsn: str) -> AsyncIterator[Roles]:
    """Roles on a database that another role has migrated. They take over the ownership."""
    async with granted(dsn) as roles:
        yield roles


async def test_the_migrating_role_needs_only_its_schema(empty_dsn: str) -> None:
    async with granted(empty_dsn) as roles:
        await migrate(roles.migrate_dsn, days_ahead=1)
        await roles.grant()
        await migrate(roles.migrate_dsn, days_ahead=2)
        for name in (roles.work_dsn, roles.serve_dsn):
            async with connected(name) as connection:
                await check_schema(connection)
        async with connected(roles.migrate_dsn) as connection:
            for statement in ("CREATE SCHEMA other", "CREATE TABLE public.other ()", "CREATE ROLE other"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)


async def test_streams_run_and_end_under_these_roles(
    roles: Roles, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await cluster.pod(database_url=roles.serve_dsn, generators={"none": "no:such"})
    tap = Tap()
    named: dict[str, Generator] = {"replay": echo, "tap": tap}
    async with working(roles.work_dsn, named, partition_days_ahead=3), connected(cluster.dsn) as connection:
        created = await create_twice_with_one_key(cluster, pod.url)
        assert (await ended(connection, created)).status == "completed"
        await follows_to_its_end(cluster, pod.url, created)
        await is_found_and_erased(cluster, pod.url, created)

        cancelled = UUID(await cluster.create(pod, generator="tap"))
        await tap.started.wait()
        await cancel(cluster, pod.url, cancelled)
        assert (await ended(connection, cancelled)).status == "cancelled"

        await external_streams_are_written(cluster, pod.url)

        queued = UUID(await cluster.create(pod, generator="none"))
        await cancel(cluster, pod.url, queued)
        assert (await ended(connection, queued)).status == "cancelled"

        async def partitions_are_ahead() -> bool:
            parts = "SELECT count(*) = 5 FROM pg_inherits WHERE inhparent = 'baton.batch'::regclass"
            return bool(await connection.fetchval(parts))

        await until(partitions_are_ahead)
    assert not refusals(caplog)


async def create_twice_with_one_key(cluster: Cluster, url: str) -> UUID:
    body = {"input": ["who", " goes"], "metadata": {"chat": 42}}
    answers = [
        await cluster.client.post(f"{url}/v1/streams", json=body, headers={"idempotency-key": "one"}) for _ in range(2)
    ]
    assert answers[0].is_success, answers[0].text
    assert answers[0].json()["id"] == answers[1].json()["id"]
    return UUID(answers[0].json()["id"])


async def follows_to_its_end(cluster: Cluster, url: str, stream_id: UUID) -> None:
    async with following(cluster.client, url, stream_id) as follower:
        assert (await follower.next_event())["delta"] == "who"
        await follower.rest()


async def is_found_and_erased(cluster: Cluster, url: str, stream_id: UUID) -> None:
    listed = (await cluster.client.get(f"{url}/v1/streams?metadata.chat=42")).json()
    assert [item["id"] for item in listed["data"]] == [str(stream_id)]
    assert (await cluster.client.get(f"{url}/v1/streams/{stream_id}")).json()["text"] == "who goes"
    assert (await cluster.client.delete(f"{url}/v1/streams/{stream_id}")).status_code == 204
    assert (await cluster.client.get(f"{url}/v1/streams/{stream_id}")).status_code == 404


async def external_streams_are_written(cluster: Cluster, url: str) -> None:
    """Create them natively and at a path, append, ask for the end, cancel, read, and delete."""
    created = (await cluster.client.post(f"{url}/v1/streams", json={"generator": "external"})).json()
    stream, written = f"{url}/v1/streams/{created['id']}", url + created["producer"]["url"]
    events = {"content-type": 'application/json; profile="urn:baton:events"'}
    claim = {"producer-id": "p", "producer-epoch": "0"}
    plain = {"content-type": "text/plain", "stream-ttl": "3600"}
    for method, address, headers, content, status in (
        ("POST", written, {**events, **claim, "producer-seq": "0"}, b'[{"type":"text","delta":"x"}]', 200),
        ("POST", written, {**events, **claim, "producer-seq": "1"}, b'[{"type":"text","delta":"y"}]', 200),
        ("GET", f"{stream}/end", {}, b"", 204),
        ("POST", f"{stream}/cancel", {}, b"", 200),
        ("DELETE", stream, {}, b"", 204),
        ("PUT", f"{url}/v1/stream/notes", plain, b"x", 201),
        ("POST", f"{url}/v1/stream/notes", plain | {"stream-closed": "true"}, b"y", 204),
        ("GET", f"{url}/v1/stream/notes", {}, b"", 200),
        ("DELETE", f"{url}/v1/stream/notes", {}, b"", 204),
    ):
        answer = await cluster.client.request(method, address, headers=headers, content=content)
        assert answer.status_code == status, (method, address, answer.text)
    assert (await cluster.client.get(f"{url}/console/streams")).is_success


async def cancel(cluster: Cluster, url: str, stream_id: UUID) -> None:
    cancelled = await cluster.client.post(f"{url}/v1/streams/{stream_id}/cancel")
    assert cancelled.is_success, cancelled.text


async def test_workers_take_over_streams_under_their_role(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    tap = Tap()
    results: list[int] = []

    async def stepping(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        results.append(await request.step("tool", lambda: len(results)))
        async for item in tap(request) if len(results) == 1 else answer(request):
            yield item

    async with pool(roles.serve_dsn, size=1, timeout_seconds=10) as creating, connected(roles.admin_dsn) as connection:

        async def create(generator: str, **limits: float) -> UUID:
            new = NewStream(generator, None, {}, "retry", limits=Limits(**limits))
            return (await stream_creation.create(creating, new))[0].id

        taken_over = await create("test")
        async with working(roles.work_dsn, stepping):
            tap.let("half")
            await tap.started.wait()
        overdue = await create("none", queue_timeout=0.01)
        unwatched = await create("none", unwatched_timeout=0.01)
        await streams.note_watched(creating, [unwatched])
        watching = {"watch_interval_seconds": 0.05, "database_timeout_seconds": 0.3}
        async with working(roles.work_dsn, stepping, **watching):
            assert (await ended(connection, taken_over)).status == "completed"
            assert text(await events(connection, taken_over)).endswith(ANSWER)
            assert (await ended(connection, overdue)).error_code == "queue_timeout"
            assert (await ended(connection, unwatched)).finish_reason == "unwatched"
        assert results == [0, 0]
        assert await stream_ending.erase(creating, taken_over)
        assert await connection.fetchval("SELECT count(*) FROM baton.step") == 0
    assert not refusals(caplog)


async def test_workers_stop_providers_under_their_role(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    provider = Stoppable()
    async with pool(roles.serve_dsn, size=1, timeout_seconds=10) as creating, connected(roles.admin_dsn) as connection:
        new = NewStream("test", None, {}, "retry", may_continue=True)
        stream_id = (await stream_creation.create(creating, new))[0].id
        async with working(roles.work_dsn, provider):
            await provider.saved.wait()
            await stream_ending.request_cancel(creating, stream_id)
            await until(lambda: provider.stopped == ["failed", "made"])
            await until(lambda: is_empty(connection, "stop_call"))
    assert not refusals(caplog)


class Stoppable:
    """A generator that saves a state and waits. The first call of its `stop` fails."""

    continues = True

    def __init__(self) -> None:
        self.saved = asyncio.Event()
        self.stopped: list[str] = []

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        yield {"type": "state", "state": 1}
        self.saved.set()
        await asyncio.Event().wait()

    async def stop(self, _state: object) -> None:
        self.stopped.append("made" if self.stopped else "failed")
        if len(self.stopped) == 1:
            raise ConnectionError


async def is_empty(connection: Connection, table: str) -> bool:
    return not await connection.fetchval(f"SELECT count(*) FROM baton.{table}")


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "permission denied" in record.getMessage()]


NOBODY: tuple[str, ...] = (
    "CREATE TABLE baton.other ()",
    "CREATE INDEX ON baton.stream (status)",
    "ALTER TABLE baton.stream ADD COLUMN other integer",
    "DROP TABLE baton.worker",
    "DROP VIEW baton.event",
    "CREATE SCHEMA other",
    "INSERT INTO baton.alembic_version VALUES ('9999')",
    "UPDATE baton.alembic_version SET version_num = '9999'",
    "DELETE FROM baton.alembic_version",
    "TRUNCATE baton.batch",
    "TRUNCATE baton.stream",
    "TRUNCATE baton.worker",
    "UPDATE baton.partitioning SET days = 2",
    "UPDATE baton.batch SET events = ''",
    "UPDATE baton.batch SET terminal = false",
    "SELECT events FROM baton.{partition}",
    "INSERT INTO baton.{partition} SELECT * FROM baton.batch",
    "DELETE FROM baton.{partition}",
    "DROP TABLE baton.{partition}",
    "ALTER TABLE baton.batch DETACH PARTITION baton.{partition}",
    "UPDATE baton.stream SET id = id",
    "UPDATE baton.stream SET tenant = 'other'",
    "UPDATE baton.stream SET generator = 'other'",
    "UPDATE baton.stream SET input = ''",
    "UPDATE baton.stream SET metadata = '{{}}'",
    "UPDATE baton.stream SET on_worker_lost = 'fail'",
    "UPDATE baton.stream SET created_at = now()",
    "UPDATE baton.stream SET max_duration = NULL",
    "INSERT INTO baton.api_key (name, tenant, scopes, secret_hash) VALUES ('x', 'x', '{{}}', '')",
    "UPDATE baton.api_key SET revoked_at = NULL",
    "DELETE FROM baton.api_key",
    "UPDATE baton.step SET result = ''",
    "SELECT * FROM other.secret",
)
FORBIDDEN: dict[Service, tuple[str, ...]] = {
    "serve": (
        *NOBODY,
        "INSERT INTO baton.stream (generator, input, on_worker_lost, epoch) VALUES ('x', '', 'fail', 1)",
        "INSERT INTO baton.stream (generator, input, on_worker_lost, worker_id) VALUES ('x', '', 'fail', NULL)",
        "INSERT INTO baton.stream (id, generator, input, on_worker_lost) VALUES (gen_random_uuid(), 'x', '', 'fail')",
        "UPDATE baton.stream SET attempts = 0",
        "INSERT INTO baton.step VALUES (gen_random_uuid(), 'x', '', 0, '')",
        "INSERT INTO baton.input VALUES (gen_random_uuid(), 1, '')",
        "UPDATE baton.stream SET queue_position = now()",
        "INSERT INTO baton.webhook_call VALUES (gen_random_uuid(), 'x')",
        "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('x', '{{}}', 1)",
        "UPDATE baton.worker SET heartbeat = 0",
        "DELETE FROM baton.worker",
        "SELECT FROM baton.worker FOR KEY SHARE",
        "UPDATE baton.idempotency_key SET tenant = 'other'",
        "UPDATE baton.bucket SET caller = 'other'",
        "DELETE FROM baton.bucket",
        "UPDATE baton.token_bucket SET caller = 'other'",
        "UPDATE baton.external_stream SET tenant = 'other'",
        "UPDATE baton.external_stream SET path = 'other'",
        "UPDATE baton.external_stream SET kind = 'bytes'",
        "UPDATE baton.external_stream SET stream_id = gen_random_uuid()",
        "UPDATE baton.producer SET stream_id = gen_random_uuid()",
        "UPDATE baton.compatibility SET oldest_code = '9999'",
        "DELETE FROM baton.token_bucket",
        "SELECT baton.create_partitions(1)",
    ),
    "work": (
        *NOBODY,
        "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('x', '', 'fail')",
        "DELETE FROM baton.stream",
        "DELETE FROM baton.batch",
        "LOCK baton.stream IN ACCESS EXCLUSIVE MODE",
        "UPDATE baton.stream SET cancel_requested_at = now()",
        "UPDATE baton.stream SET watched_at = now()",
        "UPDATE baton.worker SET name = 'other'",
        "UPDATE baton.worker SET generators = '{{}}'",
        "SELECT * FROM baton.idempotency_key",
        "SELECT FROM baton.api_key",
        "INSERT INTO baton.idempotency_key VALUES ('', 'x', '', gen_random_uuid(), now())",
        "UPDATE baton.idempotency_key SET expires_at = now()",
        "DELETE FROM baton.idempotency_key",
        "SELECT * FROM baton.bucket",
        "INSERT INTO baton.bucket VALUES ('', 'x', now())",
        "SELECT * FROM baton.external_stream",
        "UPDATE baton.external_stream SET closed = true",
        "DELETE FROM baton.external_stream",
        "SELECT * FROM baton.producer",
        "DELETE FROM baton.producer",
        "SELECT * FROM baton.add_input(gen_random_uuid(), '', NULL, 1)",
        "SELECT * FROM baton.token_bucket",
        "INSERT INTO baton.token_bucket VALUES ('', 'x', 1, now())",
    ),
}


async def test_no_service_may_do_more_than_it_needs(roles: Roles) -> None:
    await execute(roles.admin_dsn, "CREATE SCHEMA other; CREATE TABLE other.secret ()")
    allowed = await allowed_though_forbidden(roles)
    assert allowed == []


async def test_running_it_again_revokes_excess_privileges(roles: Roles) -> None:
    for role in ("PUBLIC", roles.names.work, roles.names.serve):
        await execute(roles.admin_dsn, f"GRANT ALL ON ALL TABLES IN SCHEMA baton TO {role}")
        await execute(roles.admin_dsn, f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA baton TO {role}")
        await execute(roles.admin_dsn, f"GRANT ALL ON SCHEMA baton TO {role}")
        await execute(roles.admin_dsn, f"GRANT UPDATE (input) ON baton.stream TO {role}")
    await execute(roles.admin_dsn, "CREATE SCHEMA other; CREATE TABLE other.secret ()")
    assert len(await allowed_though_forbidden(roles)) > 40
    await roles.grant()
    assert await allowed_though_forbidden(roles) == []


async def test_forbidden_statements_succeed_for_a_superuser(roles: Roles) -> None:
    """Otherwise a mistake in a statement could pass for a refusal."""
    await execute(roles.admin_dsn, "CREATE SCHEMA existing; CREATE SCHEMA other; CREATE TABLE other.secret ()")
    async with connected(roles.admin_dsn) as connection:
        partition = await a_partition(connection)
        for statement in {item for items in FORBIDDEN.values() for item in items}:
            changed = statement.replace("CREATE SCHEMA other", "CREATE SCHEMA another")
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(changed.format(partition=partition))
            await transaction.rollback()


async def allowed_though_forbidden(roles: Roles) -> list[str]:
    """Return the forbidden statements that a service can run."""
    allowed = []
    for service in get_args(Service):
        async with connected(roles.admin_dsn) as connection:
            partition = await a_partition(connection)
        async with connected(roles.serve_dsn if service == "serve" else roles.work_dsn) as connection:
            for statement in FORBIDDEN[service]:
                transaction = connection.transaction()
                await transaction.start()
                try:
                    await connection.execute(statement.format(partition=partition))
                    allowed.append(f"{service}: {statement}")
                except asyncpg.InsufficientPrivilegeError:
                    pass
                await transaction.rollback()
    return allowed


async def a_partition(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    name = await connection.fetchval("SELECT min(relname) FROM pg_class WHERE relname LIKE 'batch\\_________'")
    assert isinstance(name, str)
    return name


@pytest.mark.slow
async def test_an_administrator_without_superuser_rights_can_run_it(postgres: str) -> None:
    suffix = secrets.token_hex(4)
    admin, database, names = f"admin_{suffix}", f"baton_managed_{suffix}", unique_names()
    await execute(postgres, f"CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    await execute(postgres, f"CREATE DATABASE {database} OWNER {admin}")
    as_superuser = named_database(postgres, database)
    managed = Roles(as_role(as_superuser, admin), names)
    try:
        notices: list[str] = []
        async with connected(managed.admin_dsn) as connection:
            connection.add_log_listener(lambda _, message: notices.append(message.message))
            await connection.execute(script(names))
        # Only superusers may change this setting; everything else was done.
        assert sorted(line for line in notices if "may not run this" in line) == [
            f"{admin} may not run this, so it was skipped: "
            f"ALTER ROLE {name} IN DATABASE {database} SET log_parameter_max_length = '0';"
            for name in sorted(astuple(names))
        ]
        for name in astuple(names):
            await execute(managed.admin_dsn, f"ALTER ROLE {name} PASSWORD '{PASSWORD}'")
        await migrate(managed.migrate_dsn, days_ahead=1)
        await managed.grant()
        await managed.grant()
        await execute(as_superuser, "CREATE SCHEMA other; CREATE TABLE other.secret ()")
        assert await allowed_though_forbidden(Roles(as_superuser, names)) == []
        async with connected(managed.serve_dsn) as connection:
            assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
            assert await connection.fetchval("SHOW log_parameter_max_length_on_error") == "0"
        async with neighbor(as_superuser) as other, connected(as_role(as_superuser, other)):
            with pytest.raises(asyncpg.RaiseError) as locked_out:
                await managed.grant(Revocation(lock_out_others=True))
            assert f'With open sessions: "{other}" (1).' in str(locked_out.value.detail)
        await managed.grant(Revocation(lock_out_others=True))
        async with connected(as_superuser) as connection:
            assert not await connection.fetchval("SELECT has_database_privilege('public', $1, 'CONNECT')", database)
        async with connected(managed.admin_dsn) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):  # it is no longer a member of the role
                await connection.execute(f"SET ROLE {names.migrate}")
    finally:
        await drop(as_superuser, *astuple(names))
        await execute(postgres, f"DROP DATABASE {database} WITH (FORCE)")
        await execute(postgres, f"DROP ROLE {admin}")


ODD = RoleNames("Migrate \"'s $baton$ 100%", "wörk\\er; --", "SELECT")


async def test_names_of_any_kind_are_quoted(dsn: str) -> None:
    async with connected(dsn) as connection:
        odd = RoleNames(*(f"{name}{secrets.token_hex(4)}" for name in astuple(ODD)))
        await connection.execute("SET standard_conforming_strings = off")
        try:
            await connection.execute(script(odd, Revocation(astuple(odd)[:1], lock_out_others=True)))
            made = await connection.fetch("SELECT rolname FROM pg_roles WHERE rolname = ANY ($1)", list(astuple(odd)))
            assert {name for (name,) in made} == set(astuple(odd))
            owner = await connection.fetchval(
                "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'baton.batch'::regclass"
            )
            assert owner == odd.migrate
            for name in (odd.work, odd.serve):
                assert await connection.fetchval("SELECT has_table_privilege($1, 'baton.batch', 'INSERT')", name)
        finally:
            await drop(dsn, *astuple(odd))


async def test_it_runs_on_an_older_schema(empty_dsn: str) -> None:
    await migrate(empty_dsn, days_ahead=0, to="0001")
    async with granted(empty_dsn) as roles, connected(roles.serve_dsn) as connection:
        await connection.fetch("SELECT id, tenant FROM baton.stream")


async def test_it_grants_what_later_migrations_add(roles: Roles) -> None:
    newer = ("compatibility", "retention")
    for name in newer:
        await execute(roles.migrate_dsn, f"CREATE TABLE IF NOT EXISTS baton.{name} ()")
    await roles.grant()
    for dsn in (roles.work_dsn, roles.serve_dsn):
        async with connected(dsn) as connection:
            for name in newer:
                await connection.execute(f"SELECT FROM baton.{name}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"DELETE FROM baton.{name}")


async def test_sessions_of_its_roles_end_idle_transactions_and_log_no_texts(roles: Roles) -> None:
    for dsn in (roles.migrate_dsn, roles.work_dsn, roles.serve_dsn):
        async with connected(dsn) as connection:
            shown = {name: await connection.fetchval(f"SHOW {name}") for name in SETTINGS}
        assert shown == {
            "idle_in_transaction_session_timeout": "1min",
            "log_parameter_max_length": "0",
            "log_parameter_max_length_on_error": "0",
        }


async def test_existing_settings_of_a_role_stay(roles: Roles) -> None:
    work, serve = roles.names.work, roles.names.serve
    async with connected(roles.admin_dsn) as connection:
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER ROLE {work} IN DATABASE {database} RESET ALL")
        await connection.execute(f"ALTER ROLE {work} SET idle_in_transaction_session_timeout = '5s'")
        await connection.execute(f"ALTER ROLE {serve} IN DATABASE {database} SET log_parameter_max_length = 7")
    await roles.grant()
    async with connected(roles.work_dsn) as connection:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
        assert await connection.fetchval("SHOW log_parameter_max_length") == "0"
    async with connected(roles.serve_dsn) as connection:
        assert await connection.fetchval("SHOW log_parameter_max_length") == "7B"


@contextlib.asynccontextmanager
async def neighbor(admin_dsn: str) -> AsyncIterator[str]:
    """A role of another application on the same server, which can connect through PUBLIC."""
    name = f"report's {secrets.token_hex(4)}"
    await execute(admin_dsn, f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{PASSWORD}'")
    try:
        yield name
    finally:
        await drop(admin_dsn, name)


async def may_connect(dsn: str, role: str) -> bool:
    try:
        async with connected(as_role(dsn, role)):
            return True
    except asyncpg.InsufficientPrivilegeError:
        return False


async def test_public_loses_its_access_and_batons_roles_keep_theirs(roles: Roles) -> None:
    async with neighbor(roles.admin_dsn) as other, neighbor(roles.admin_dsn) as kept:
        with pytest.raises(asyncpg.RaiseError, match="would be locked out") as refused:
            await roles.grant(Revocation(keep=(kept,)))
        assert f'"{other}"' in str(refused.value.detail)
        assert f'"{kept}"' not in str(refused.value.detail)
        assert await may_connect(roles.admin_dsn, other)
        await roles.grant(Revocation(keep=(kept,), lock_out_others=True))
        for role in (*astuple(roles.names), kept):
            assert await may_connect(roles.admin_dsn, role), role
        assert not await may_connect(roles.admin_dsn, other)
        await roles.grant()
        assert not await may_connect(roles.admin_dsn, other)
        await roles.grant(Revocation())  # this locks out nobody else


async def test_a_connected_role_is_never_locked_out_by_mistake(roles: Roles) -> None:
    async with neighbor(roles.admin_dsn) as other:
        async with connected(as_role(roles.admin_dsn, other)):
            with pytest.raises(asyncpg.RaiseError) as refused:
                await roles.grant(Revocation(lock_out_others=True))
            assert f'With open sessions: "{other}" (1).' in str(refused.value.detail)
            assert await may_connect(roles.admin_dsn, other)
            await roles.grant(Revocation(keep=(other,), lock_out_others=True))
        assert await may_connect(roles.admin_dsn, other)


async def test_a_role_that_can_connect_as_a_member_does_not_stop_it(roles: Roles) -> None:
    async with neighbor(roles.admin_dsn) as group, neighbor(roles.admin_dsn) as member:
        await execute(roles.admin_dsn, f'GRANT "{group}" TO "{member}"')
        await roles.grant(Revocation(keep=(group,), lock_out_others=True))
        assert await may_connect(roles.admin_dsn, member)


async def test_an_unknown_role_to_keep_stops_it(roles: Roles) -> None:
    with pytest.raises(asyncpg.UndefinedObjectError, match="nosuch"):
        await roles.grant(Revocation(keep=("nosuch",), lock_out_others=True))


async def test_a_role_of_the_schema_cannot_fire_the_trigger_of_webhooks_itself(dsn: str) -> None:
    """It would run as the owner, for any stream and URL, and a worker would send that stream's answer there."""
    names = unique_names()
    role = f"app_{names.serve}"
    await execute(dsn, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    await execute(dsn, f"GRANT USAGE ON SCHEMA baton TO {role}")
    try:
        async with connected(as_role(dsn, role)) as connection:
            await connection.execute("CREATE TEMP TABLE own (id uuid, webhook text)")
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="note_webhook"):
                await connection.execute(
                    "CREATE TRIGGER fire AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION baton.note_webhook()"
                )
    finally:
        await drop(dsn, role)
