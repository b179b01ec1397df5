"""Streams that an application creates in its own transactions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.support.cluster import Cluster, echo
from tests.support.databases import execute
from tests.support.logbook import connected, ended, events, text, working
from tests.support.roles import as_role, granted

from baton import enqueue
from baton.db import stream_creation
from baton.db.postgres import Connection
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.schema import enqueue as enqueue_function
from baton.schema import grants_sql
from baton.schema.tables import NEW_STREAM_ID


@pytest.fixture
async def own(dsn: str) -> AsyncIterator[Connection]:
    """An application's connection."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def count(dsn: str) -> int:
    async with connected(dsn) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM baton.stream"))


async def test_a_commit_creates_the_stream_and_a_rollback_does_not(dsn: str, own: Connection) -> None:
    async with connected(dsn) as connection, working(dsn, echo):
        transaction = own.transaction()
        await transaction.start()
        await enqueue(own, generator="test", input=["never"])
        await transaction.rollback()
        async with own.transaction():
            kept = await enqueue(own, generator="test", input=["an ", "answer"])
            assert await count(dsn) == 0
        assert (await ended(connection, kept)).status == "completed"
        assert text(await events(connection, kept)) == "an answer"
    assert await count(dsn) == 1


async def test_a_commit_wakes_workers_and_pods_see_the_stream(cluster: Cluster, own: Connection) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo}, queue_poll_seconds=60)
    async with own.transaction():
        stream_id = await enqueue(own, generator="replay", input=["x"], metadata={"chat": 42})
        # Workers look for it when it is committed, and not before.
        assert (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}")).status_code == 404
    found = (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")).json()
    assert (found["status"], found["text"], found["metadata"]) == ("completed", "x", {"chat": 42})


async def test_it_writes_what_a_create_over_http_writes(cluster: Cluster, own: Connection) -> None:
    pod = await cluster.pod()
    for policy in (None, "continue", "retry", "fail"):
        fields: dict[str, Any] = {
            "generator": "replay",
            "input": {"text": 'a\x00 "b" \\u0000 \N{RUNNER}', "n": [1, 0.5, None, True]},
            "metadata": {"chat": 42, "user": "u", "on": True, "share": 0.5},
            "max_duration_seconds": 10,
            "idle_timeout_seconds": 20.5,
            "queue_timeout_seconds": 30,
            "cancel_when_unwatched_seconds": 40,
        } | ({} if policy is None else {"on_worker_lost": policy})
        created = await cluster.create(pod, **fields)
        mine = await enqueue(own, **fields)
        rows = [await own.fetchrow("SELECT * FROM baton.stream WHERE id = $1", id_) for id_ in (UUID(created), mine)]
        http, sql = ({k: v for k, v in dict(row or ()).items() if k not in OF_EACH} for row in rows)
        assert http == sql


# The id and the times of a stream, its trace, and where it stands in the queue.
OF_EACH = {"id", "created_at", "queued_at", "traceparent", "queue_position", "held_until"}


def test_both_ways_to_create_a_stream_name_the_same_columns() -> None:
    over_http = re.search(r"INSERT INTO baton\.stream \(([^)]+)\)", stream_creation._INSERT)
    by_function = re.search(r"INSERT INTO baton\.stream \(([^)]+)\)", enqueue_function.definition(NEW_STREAM_ID))
    assert over_http is not None
    assert by_function is not None
    columns, own_columns = ({name.strip() for name in found[1].split(",")} for found in (over_http, by_function))
    # Only pods create streams that are open, or continue something.
    assert columns - own_columns == {"status", "started_at", "continuation"}
    assert own_columns - columns <= {"id", "queue_position", "held_until", "start_after", "priority", "webhook"}


async def test_it_is_held_until_it_is_due(own: Connection) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    due = await enqueue(own, generator="g", input=1)
    held = await enqueue(own, generator="g", input=1, start_after=later, priority="high", webhook="https://x.test/a")
    row = "SELECT queue_position, held_until <= clock_timestamp(), status, priority, webhook FROM baton.stream"
    assert tuple(await own.fetchrow(f"{row} WHERE id = $1", due) or ()) == (None, True, "queued", 0, None)
    found = await own.fetchrow(f"{row} WHERE id = $1 AND start_after = held_until AND start_after = $2", held, later)
    assert tuple(found or ()) == (None, False, "queued", 1, "https://x.test/a")
    await own.execute("INSERT INTO baton.worker (name, generators, concurrency, code) VALUES ('old', '{}', 1, '0023')")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="Workers of an older release"):
        await enqueue(own, generator="g", input=1, start_after=later)
    await enqueue(own, generator="g", input=1)


async def test_a_key_creates_one_stream(dsn: str, own: Connection) -> None:
    async def make(connection: Connection, **given: Any) -> UUID:
        fields: dict[str, Any] = {"generator": "g", "input": 1, "idempotency_key": "one"} | given
        return await enqueue(connection, **fields)

    async with connected(dsn) as other:
        async with own.transaction():
            first = await make(own)
            second = asyncio.create_task(make(other))
        assert await second == first
    assert await make(own) == first
    assert await make(own, tenant="other") != first
    for changed in ({"input": 2}, {"metadata": {"a": 1}}, {"priority": "low"}):
        with pytest.raises(asyncpg.UniqueViolationError, match="has created another stream"):
            await make(own, **changed)
    assert await count(dsn) == 2


async def test_a_key_means_the_same_in_any_time_zone(own: Connection) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    made = set()
    for zone in ("UTC", "Asia/Tokyo"):
        await own.execute(f"SET TimeZone = '{zone}'")
        made.add(await enqueue(own, generator="g", input=1, idempotency_key="one", start_after=due))
    assert len(made) == 1


REFUSED = [
    ("generator => '', input => '1'", "generator"),
    ("generator => 'external', input => '1'", "external"),
    ("generator => NULL, input => '1'", "generator"),
    (f"generator => 'g', input => '{'[' * 300}{']' * 300}'", "240 levels"),
    ("generator => 'g', input => '[1e400]'", "range of a double"),
    (f"generator => 'g', input => '{'1' * 400}'", "range of a double"),
    ("generator => 'g', input => '1', metadata => '{\"a\": 1e309}'", "range of a double"),
    ("generator => 'g', input => '\"\\ud800\"'", "Unicode"),
    ("generator => 'g', input => '1', metadata => '[]'", "metadata: an object"),
    ("generator => 'g', input => '1', metadata => '{\"a\": [1]}'", "metadata"),
    ("generator => 'g', input => '1', metadata => '{\"\": 1}'", "metadata"),
    ("generator => 'g', input => '1', tenant => E'a\\nb'", "tenant"),
    ("generator => 'g', input => '1', on_worker_lost => 'no'", "on_worker_lost"),
    ("generator => 'g', input => '1', priority => '1'", "priority"),
    ("generator => 'g', input => '1', max_duration_seconds => 0", "a limit"),
    ("generator => 'g', input => '1', idle_timeout_seconds => 'nan'", "a limit"),
    ("generator => 'g', input => '1', queue_timeout_seconds => 'infinity'", "a limit"),
    ("generator => 'g', input => '1', cancel_when_unwatched_seconds => 1", "at least 10"),
    ("generator => 'g', input => '1', start_after => 'infinity'", "7 days ahead"),
    ("generator => 'g', input => '1', start_after => '-infinity'", "7 days ahead"),
    ("generator => 'g', input => '1', start_after => now() + interval '8 days'", "7 days ahead"),
    ("generator => 'g', input => '1', start_after => '0044-03-15 BC'", "1000 years ago"),
    ("generator => 'g', input => '1', webhook => 'file:///etc/passwd'", "webhook"),
    ("generator => 'g', input => '1', idempotency_key => ''", "idempotency_key"),
    ("generator => 'g', input => '1', traceparent => 'x'", "traceparent"),
]


async def test_what_no_worker_could_read_is_refused(own: Connection) -> None:
    for sql, match in REFUSED:
        with pytest.raises(asyncpg.DataError, match=match):
            await own.execute(f"SELECT baton.enqueue({sql})")
    assert await own.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_any_json_that_is_accepted_is_read_back_by_a_worker(dsn: str) -> None:
    given = '{"a": "\\u0000 \\\\u0000 \\ud83c\\udfc3", "b": [1e308, 1E-400, -0, 12345678901234567890123], "a": 2}'
    seen: list[Any] = []

    async def note(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        seen.append(request.input)
        yield "."

    async with working(dsn, note), connected(dsn) as connection:
        for content in (given, "null", f"{'[' * 240}{']' * 240}"):
            stream_id = await connection.fetchval("SELECT baton.enqueue('test', $1::text::json)", content)
            assert (await ended(connection, stream_id)).status == "completed"
    assert seen[0] == json.loads(given) | {"b": [1e308, 0.0, 0, 12345678901234567890123.0]}
    assert seen[1] is None


async def test_sqlalchemy_connections_and_sessions_work(dsn: str) -> None:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    given: dict[str, Any] = {"generator": "g", "input": ["a"], "metadata": {"b": 1}, "idle_timeout_seconds": 5}
    async with engine.begin() as connection:
        first = await enqueue(connection, **given)
    async with AsyncSession(engine) as session:
        second = await enqueue(session, **given)
        await session.commit()
        await enqueue(session, **given)
        await session.rollback()
    await engine.dispose()
    async with connected(dsn) as found:
        rows = await found.fetch("SELECT id, input, metadata, idle_timeout FROM baton.stream ORDER BY id")
    assert [tuple(row) for row in rows] == [(id_, b'["a"]', '{"b": 1}', 5.0) for id_ in (first, second)]


async def test_a_codec_for_json_of_the_application_changes_nothing(own: Connection) -> None:
    for kind in ("json", "jsonb"):
        await own.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    stream_id = await enqueue(own, generator="g", input="x", metadata={"a": 1})
    row = await own.fetchrow("SELECT input, metadata FROM baton.stream WHERE id = $1", stream_id)
    assert tuple(row or ()) == (b'"x"', {"a": 1})


async def test_another_connection_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"and not builtins\.str\. Over any other connection"):
        await enqueue("postgresql://", generator="g", input=1)


async def test_the_role_of_an_application_may_enqueue_and_nothing_else(dsn: str) -> None:
    async with granted(dsn) as roles:
        app = f"app_{roles.names.serve}"
        await execute(dsn, f"CREATE ROLE {app} LOGIN PASSWORD 'hunter2'")
        try:
            async with connected(as_role(dsn, app)) as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await enqueue(connection, generator="g", input=1)
            await execute(dsn, grants_sql.script(roles.names, apps=(app,)))
            async with connected(as_role(dsn, app)) as connection:
                stream_id = await enqueue(connection, generator="g", input=1)
                added = await connection.fetchval("SELECT result FROM baton.add_input($1, '1', NULL, 10)", stream_id)
                assert added == "added"
                for statement in (
                    "SELECT FROM baton.stream",
                    "SELECT FROM baton.api_key",
                    "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('x', '', 'fail')",
                    "SELECT baton.create_partitions(1)",
                ):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(statement)
            # Roles of services get no more by it.
            async with connected(roles.work_dsn) as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await enqueue(connection, generator="g", input=1)
        finally:
            await execute(dsn, f"DROP OWNED BY {app}; DROP ROLE {app}")
