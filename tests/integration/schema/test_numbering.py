"""Tests for the numbers of several databases, and for the lists of their weights."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from tests.support.databases import number_databases

from baton.db import database_identity, placements
from baton.db.postgres import Connection, connect
from baton.errors import ConfigurationError
from baton.settings import Settings
from baton.stream_ids import number_of

_CREATE = "INSERT INTO baton.stream (generator, input, on_worker_lost) VALUES ('echo', 'null', 'fail') RETURNING id"


async def connection(entry: dict[str, Any]) -> Connection:
    return await connect(entry["url"], name="test")


async def create(entry: dict[str, Any]) -> Any:
    opened = await asyncpg.connect(entry["url"])
    try:
        return await opened.fetchval(_CREATE)
    finally:
        await opened.close()


async def test_ids_carry_the_number_of_their_database(databases: dict[str, dict[str, Any]]) -> None:
    databases["b"]["number"] = 1234
    with pytest.raises(ConfigurationError, match="'b' leads to the database with the number 1"):
        await number_databases(databases)
    databases["b"]["number"] = 1
    ids = {name: await create(entry) for name, entry in databases.items()}
    assert {name: (number_of(found), found.version) for name, found in ids.items()} == {"a": (0, 7), "b": (1, 8)}
    assert ids["a"] < ids["b"]
    opened = await connection(databases["b"])
    enqueued = await opened.fetchval("SELECT baton.enqueue('echo', 'null')")
    assert number_of(enqueued) == 1
    await opened.close()


async def test_swapped_urls_are_refused(databases: dict[str, dict[str, Any]]) -> None:
    databases["a"]["url"], databases["b"]["url"] = databases["b"]["url"], databases["a"]["url"]
    for entry in Settings.load(databases=databases).all_databases:
        opened = await connection(databases[entry.name])
        with pytest.raises(ConfigurationError, match=rf"the url of '{entry.name}' leads to the database"):
            await database_identity.check_number(opened, entry)
        await opened.close()


async def test_one_of_several_is_refused_as_the_only_one(databases: dict[str, dict[str, Any]]) -> None:
    opened = await connection(databases["b"])
    (only,) = Settings.load(database_url=databases["b"]["url"]).all_databases
    with pytest.raises(ConfigurationError, match="Set BATON_DATABASES instead"):
        await database_identity.check_number(opened, only)
    await opened.close()


async def test_a_database_of_another_installation_is_refused(databases: dict[str, dict[str, Any]]) -> None:
    opened = await connection(databases["b"])
    await opened.execute("UPDATE baton.database_identity SET installation = gen_random_uuid()")
    await opened.close()
    with pytest.raises(ConfigurationError, match="'a' and 'b' belong to different installations"):
        await number_databases(databases)


async def test_all_databases_have_all_lists_of_weights(databases: dict[str, dict[str, Any]]) -> None:
    assert await number_databases(databases) == []  # the fixture has recorded these
    databases["b"]["weight"] = 0
    (line,) = await number_databases(databases)
    assert line == "New streams are shared by these weights, in 30 s on every pod: a 1, b 0."
    lists = []
    for entry in databases.values():
        opened = await connection(entry)
        lists.append(placements.merged([await placements.read(opened)]))
        await opened.close()
    assert lists[0] == lists[1]
    assert [item.weights for item in lists[0]] == [{0: 1, 1: 1}, {0: 1, 1: 0}]


async def test_a_second_database_gets_its_number_beside_one_in_use(
    dsn: str, databases: dict[str, dict[str, Any]]
) -> None:
    first = {"url": dsn, "number": 0, "weight": 1}
    before = await create(first)
    opened = await connection(databases["b"])
    await opened.execute("TRUNCATE baton.placement")
    await opened.execute("UPDATE baton.database_identity SET installation = gen_random_uuid(), number = 0")
    entries = {"first": first, "second": databases["b"] | {"number": 5, "weight": 0}}
    lines = await number_databases(entries)
    assert lines[0] == "The database 'second' has the number 5."
    assert number_of(before) == 0
    assert number_of(await create(entries["second"])) == 5
    assert [item.weights for item in placements.merged([await placements.read(opened)])] == [{0: 1}, {0: 1, 5: 0}]
    await opened.close()
