"""A real Postgres for the tests, and in it a migrated database for each test, cloned from a template."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from testcontainers.community.postgres import PostgresContainer
from tests.support.cluster import Cluster
from tests.support.data_folder import data_folder
from tests.support.databases import (
    create_template,
    engine_answers,
    execute,
    make_quick,
    memory,
    named_database,
    several_databases,
)
from tests.support.installed import binaries, installed_postgres

from baton.demo.embedded import embedded_postgres

# The speed of examples depends on the load of the machine.
hypothesis.settings.register_profile("all", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("quick", hypothesis.settings.get_profile("all"), max_examples=30)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", type=int, help="run on this version of Postgres, if it is installed")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("quick" if "not slow" in config.getoption("markexpr") else "all")
    wanted = config.getoption("--postgres")
    if wanted is not None and binaries(wanted) is None:
        pytest.exit(f"Postgres {wanted} is not installed here: the tests were not run on it.", returncode=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with real clients. Keep the tests that share a server on one xdist worker."""
    clients = Path(__file__).parent / "clients"
    for item in items:
        if item.path.is_relative_to(clients):
            item.add_marker(pytest.mark.clients)
        if shared := {"breakable", "replicas", "server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(shared.pop()))


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's keys, addresses, proxies and `.env` from the tests."""
    for name in list(os.environ):
        if name.startswith(("BATON_", "OPENAI_", "ANTHROPIC_", "OTEL_", "GOOGLE_CLOUD_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Put the handlers of the signals that stop a server back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[str]:
    """The DSN of a server: the named one, one of the requested version, a container, or the embedded one."""
    named = os.environ.get("BATON_TEST_DATABASE_URL")
    wanted = pytestconfig.getoption("--postgres")
    if named:
        yield named
    elif wanted is not None and (programs := binaries(wanted)):
        with installed_postgres(programs, memory()) as dsn:
            asyncio.run(make_quick(dsn))
            yield dsn
    elif engine_answers():
        with PostgresContainer("postgres:18-alpine", driver=None) as container:
            yield container.get_connection_url()
    else:
        with data_folder(memory()) as folder, embedded_postgres(folder) as dsn:
            asyncio.run(make_quick(dsn))
            yield dsn


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """The name of a migrated database without connections."""
    name = f"baton_template_{secrets.token_hex(4)}"
    asyncio.run(create_template(postgres, name))
    yield name
    asyncio.run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def dsn(postgres: str, template: str) -> AsyncIterator[str]:
    """A migrated database for one test."""
    name = f"baton_test_{secrets.token_hex(4)}"
    await execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield named_database(postgres, name)
    await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_dsn(postgres: str) -> AsyncIterator[str]:
    """A database without anything in it, for one test."""
    name = f"baton_empty_{secrets.token_hex(4)}"
    await execute(postgres, f"CREATE DATABASE {name}")
    yield named_database(postgres, name)
    await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def cluster(dsn: str) -> AsyncIterator[Cluster]:
    """No pods and no workers yet, on a database of the test's own."""
    async with Cluster(dsn) as cluster:
        yield cluster


@pytest.fixture
async def databases(postgres: str, template: str) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """The entries of `BATON_DATABASES` for two databases of one test, migrated and numbered."""
    async with several_databases(postgres, template, 2) as entries:
        yield entries


@pytest.fixture
async def many(databases: dict[str, dict[str, Any]]) -> AsyncIterator[Cluster]:
    """No pods and no workers yet, on two databases of the test's own; its `pool` is of the first."""
    async with Cluster(databases["a"]["url"], databases) as cluster:
        yield cluster
