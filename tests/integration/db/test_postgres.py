"""Connections: the error if none can be opened, and how long a query may take."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.support.cluster import Cluster

from baton.db.postgres import connect
from baton.errors import DatabaseUnreachable


def one_of_two(dsn: str, wanted: str, *, away: bool) -> str:
    """Return a DSN of two hosts, as for a primary with a standby; the first one may be down."""
    parts = urlsplit(dsn)
    folder = parse_qs(parts.query).get("host")
    second = (folder[0] if folder else parts.hostname, parts.port or 5432)
    hosts = [("/nowhere", 5432) if away else second, second]
    names, ports = ",".join(str(host) for host, _ in hosts), ",".join(str(port) for _, port in hosts)
    login = f"user={parts.username or 'postgres'}" + (f"&password={parts.password}" if parts.password else "")
    return f"postgresql:///{parts.path.lstrip('/')}?host={names}&port={ports}&target_session_attrs={wanted}&{login}"


async def test_of_two_hosts_the_primary_is_used(dsn: str) -> None:
    connection = await connect(one_of_two(dsn, "primary", away=True))
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_missing_primary_is_reported(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable, match="None of the hosts match"):
        await connect(one_of_two(dsn, "standby", away=False))


@pytest.mark.parametrize("seconds", [0.75, 59.5])
async def test_the_setting_bounds_how_long_a_request_waits(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    pod = await cluster.pod(database_timeout_seconds=seconds)
    bounds, timeout = list[Any](), asyncio.timeout

    def noted(delay: float | None) -> asyncio.Timeout:
        bounds.append(delay)
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", noted)
    for method, path in (("GET", "/v1/streams"), ("POST", "/v1/streams")):
        bounds.clear()
        answer = await cluster.client.request(
            method, f"{pod.url}{path}", json={"input": 1} if method == "POST" else None
        )
        assert answer.is_success
        assert seconds in bounds
        # The bound of other pools, which the setting does not change.
        assert 10 not in bounds
