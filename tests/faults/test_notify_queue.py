"""Postgres refuses every notification while its queue is full: what was asked for takes place all the same."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import httpx2
import pytest

from baton.app import create_app
from baton.chaos.databases import prepare
from baton.chaos.faults import full_notify_queue
from baton.db.notifications import notify
from baton.demo.embedded import embedded_server
from baton.schema.migrate import migrate
from baton.settings import Settings


@pytest.fixture
def server() -> Iterator[str]:
    """The DSN of a server whose queue is small enough to be filled."""
    with embedded_server() as server:
        prepare(server)
        yield server.dsn


async def test_streams_can_be_created_cancelled_and_erased_while_the_queue_is_full(server: str) -> None:
    await migrate(server, days_ahead=1)
    app = create_app(Settings(database_url=server, allow_anonymous=True))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://pod") as http,
        full_notify_queue(server),
    ):
        connection = await asyncpg.connect(server)
        with pytest.raises(asyncpg.ProgramLimitExceededError):
            await notify(connection, "any", [""])
        created = await http.post("/v1/streams", json={"input": "why"})
        assert created.status_code == 201, created.text
        path = f"/v1/streams/{created.json()['id']}"
        cancelled = await http.post(f"{path}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert (await http.delete(path)).status_code == 204
        await connection.close()
