"""The schema: that the migrations make it, that they say so, and what it refuses."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from baton.database import REVISION, check_schema
from baton.errors import SchemaMismatch
from baton.migrate import alembic_config, engine, migrate


def test_there_is_one_head_and_the_code_works_with_it() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [REVISION]


async def test_up_check_down_up(empty_dsn: str) -> None:
    def cycle(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.check(config)
        command.downgrade(config, "base")
        command.upgrade(config, "head")

    async with engine(empty_dsn) as opened, opened.connect() as connection:
        await connection.run_sync(cycle)


async def test_concurrent_migrations_wait_for_each_other(empty_dsn: str) -> None:
    said: list[str] = []
    await asyncio.gather(*(migrate(empty_dsn, days_ahead=2, say=said.append) for _ in range(3)))
    created = [line for line in said if line.startswith("Created partition")]
    assert len(created) == len(set(created)) == 4
    assert any("waiting" in line for line in said)


async def test_an_unmigrated_database_is_refused_with_what_to_do(empty_dsn: str) -> None:
    connection = await asyncpg.connect(empty_dsn)
    with pytest.raises(SchemaMismatch, match="Run `baton migrate` first"):
        await check_schema(connection)
    await connection.close()


async def test_a_newer_database_is_refused(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("UPDATE baton.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="newer"):
        await check_schema(connection)
    await connection.close()


async def test_ids_are_uuid_version_7_in_the_order_of_creation(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    ids = []
    for _ in range(3):
        ids.append(
            await connection.fetchval(
                "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('x', '1', 'retry') RETURNING id"
            )
        )
        await connection.execute("SELECT pg_sleep(0.002)")
    now_ms = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    assert ids == sorted(ids)
    assert {item.version for item in ids} == {7}
    assert {item.variant for item in ids} == {"specified in RFC 4122"}
    assert abs(float(now_ms) - (ids[-1].int >> 80)) < 60_000
    await connection.close()
