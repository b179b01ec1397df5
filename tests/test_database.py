"""Connections: what is said when there is none to be had."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from baton.database import connect
from baton.errors import DatabaseUnreachable


def one_of_two(dsn: str, wanted: str, *, away: bool) -> str:
    """A DSN of two hosts, as one gives for a primary with a standby: the first may be away."""
    parts = urlsplit(dsn)
    folder = parse_qs(parts.query).get("host")
    second = (folder[0] if folder else parts.hostname, parts.port or 5432)
    hosts = [("/nowhere", 5432) if away else second, second]
    names, ports = ",".join(str(host) for host, _ in hosts), ",".join(str(port) for _, port in hosts)
    login = f"user={parts.username or 'postgres'}" + (f"&password={parts.password}" if parts.password else "")
    return f"postgresql:///{parts.path.lstrip('/')}?host={names}&port={ports}&target_session_attrs={wanted}&{login}"


async def test_with_two_hosts_the_one_that_is_the_primary_is_used(dsn: str) -> None:
    connection = await connect(one_of_two(dsn, "primary", away=True))
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_that_there_is_no_primary_just_now_is_told(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable, match="None of the hosts match"):
        await connect(one_of_two(dsn, "standby", away=False))
