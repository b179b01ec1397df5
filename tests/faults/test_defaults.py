"""Databases and roles whose defaults are not Postgres' own, as operators and hosting services set them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.faults.servers import PGBOUNCER, pgbouncer
from tests.faults.viewers import Viewer
from tests.support.cluster import Cluster, echo
from tests.support.databases import execute
from tests.support.logbook import until

from baton.db.postgres import connect, pool
from baton.schema.maintain import maintain
from baton.schema.migrate import migrate
from baton.schema.retention_policy import Policy

LEVELS = ["repeatable read", "serializable"]
# Each is a default of the database, and none may be noticed.
ODD = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "nowhere",
    "timezone": "Pacific/Kiritimati",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "client_encoding": "latin1",
    "client_min_messages": "debug1",
    "row_security": "off",
    "plan_cache_mode": "force_generic_plan",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "extra_float_digits": "-15",
    "jit": "on",
    "jit_above_cost": "0",
    "lock_timeout": "8s",
    "statement_timeout": "9s",
    "idle_in_transaction_session_timeout": "10s",
}


async def set_defaults(dsn: str, defaults: dict[str, str]) -> None:
    name = urlsplit(dsn).path.lstrip("/")
    for setting, value in defaults.items():
        await execute(dsn, f"ALTER DATABASE {name} SET {setting} = '{value}'".replace("'SQL, DMY'", "SQL, DMY"))


async def creates_all(cluster: Cluster, pod_url: str, count: int) -> list[int]:
    """Create at once, by one caller and with its bucket in use: what all of them update."""
    answers = await asyncio.gather(
        *(
            cluster.client.post(
                f"{pod_url}/v1/streams", json={"input": ["a", "b"]}, headers={"idempotency-key": f"key {number // 2}"}
            )
            for number in range(count)
        )
    )
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("level", LEVELS)
async def test_concurrent_creates_succeed_under_any_default_isolation(cluster: Cluster, level: str) -> None:
    await set_defaults(cluster.dsn, {"default_transaction_isolation": level})
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    for _ in range(4):
        assert set(await creates_all(cluster, pod.url, 40)) <= {200, 201}


@pytest.fixture
async def pooler(cluster: Cluster) -> AsyncIterator[str]:
    await set_defaults(cluster.dsn, {"default_transaction_isolation": "serializable"})
    async with pgbouncer(cluster.dsn, pool_size=8) as dsn:
        yield dsn


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed here")
async def test_concurrent_creates_leave_a_poolers_sessions_unchanged(cluster: Cluster, pooler: str) -> None:
    pod = await cluster.pod(database_url=pooler, listen_database_url=cluster.dsn)
    await cluster.worker({"replay": echo}, database_url=pooler, listen_database_url=cluster.dsn)
    assert set(await creates_all(cluster, pod.url, 40)) <= {200, 201}
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod, input=["one"]))
    assert (await viewer.end())["status"] == "completed"
    async with pool(pooler, size=1, timeout_seconds=10, prepare=False) as opened:
        assert await opened.fetchval("SELECT current_setting('transaction_isolation')") == "read committed"
    plain = await asyncpg.connect(pooler, statement_cache_size=0)
    assert await plain.fetchval("SELECT current_setting('transaction_isolation')") == "serializable"
    await plain.close()


@pytest.mark.parametrize(
    ("level", "prepare"), [(None, True), (None, False), ("repeatable read", True), ("serializable", True)]
)
async def test_a_statement_takes_one_round_trip(dsn: str, level: str | None, prepare: bool) -> None:
    if level is not None:
        await set_defaults(dsn, {"default_transaction_isolation": level})
    connection = await connect(dsn, prepare=prepare)
    try:
        assert await connection.fetchval("SELECT current_setting('transaction_isolation')") == "read committed"
        asked = list[str]()
        connection.add_query_logger(lambda record: asked.append(record.query))
        await connection.fetchval("SELECT 1")
        await connection.execute("SELECT 2")
        async with connection.transaction():
            pass
        # The logger hears of each a moment later.
        wanted = ["SELECT 1", "SELECT 2", "BEGIN ISOLATION LEVEL READ COMMITTED;", "COMMIT;"]
        await until(lambda: len(asked) >= len(wanted))
        assert asked == wanted
    finally:
        await connection.close()


async def test_everything_works_on_a_database_with_unusual_defaults(
    empty_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    await set_defaults(empty_dsn, ODD)
    await migrate(empty_dsn, days_ahead=1)
    text = ["Gr\u00fc\u00dfe \\ ' \" ", "\u4e16\u754c \U0001f600"]
    async with Cluster(empty_dsn) as cluster:
        pod = await cluster.pod()
        await cluster.worker({"replay": echo})
        stream_id = await cluster.create(pod, input=text, metadata={"chat": 'a"\\b'})
        viewer = Viewer(cluster.client, pod.url, stream_id)
        assert (await viewer.end())["status"] == "completed"
        assert viewer.text == "".join(text)
        found = (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}")).json()
        assert found["text"] == "".join(text)
        listed = (await cluster.client.get(f"{pod.url}/v1/streams", params={"metadata.chat": 'a"\\b'})).json()
        assert [item["id"] for item in listed["data"]] == [stream_id]
        await maintain(empty_dsn, Policy(retention_days=30, days_ahead=2), say=lambda _line: None)
        assert (await cluster.client.delete(f"{pod.url}/v1/streams/{stream_id}")).status_code == 204
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
