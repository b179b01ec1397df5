"""Fixtures for fault tests: a Postgres that tests may break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.faults.servers import BreakablePostgres
from tests.support.cluster import Cluster
from tests.support.databases import create_template, execute, named_database


@pytest.fixture(scope="session")
def breakable() -> Iterator[BreakablePostgres]:
    """A server beside the one that all use, which tests may restart, fill and slow down."""
    with BreakablePostgres.running() as server:
        asyncio.run(create_template(server.dsn, "baton_template"))
        yield server


@pytest.fixture
async def breakable_cluster(breakable: BreakablePostgres) -> AsyncIterator[Cluster]:
    """A cluster on a database of its own there."""
    await execute(breakable.dsn, "CREATE DATABASE baton_test TEMPLATE baton_template")
    async with Cluster(named_database(breakable.dsn, "baton_test")) as cluster:
        yield cluster
    await execute(breakable.dsn, "DROP DATABASE baton_test WITH (FORCE)")
