"""Rows of external streams: creating them at a path."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.external import opened
from tests.support.logbook import connected

from baton.db import external_streams


@pytest.mark.parametrize("lifetime", [{"ttl_seconds": 0}, {"expires_at": datetime(2000, 1, 1, tzinfo=UTC)}])
async def test_a_stream_that_does_not_last_for_a_moment_is_created_each_time(
    dsn: str, lifetime: dict[str, Any]
) -> None:
    async with connected(dsn) as connection:
        stream = await opened(dsn, kind="text", path="a", **lifetime)
        assert await external_streams.find(connection, "", "a") is None
        again = await opened(dsn, kind="text", path="a", **lifetime)
        assert again.stream_id != stream.stream_id
