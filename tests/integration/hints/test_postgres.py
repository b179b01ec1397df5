"""The LISTEN connection against a real server that cuts it, refuses it, and accepts it again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from tests.support.cluster import ended
from tests.support.logbook import until

from baton.hints.postgres import PostgresTransport
from baton.hints.transport import HintState, Owner


class Ear:
    """Runs a listener, and keeps its states and notifications."""

    def __init__(self, dsn: str, *, probe_seconds: float = 5) -> None:
        self.heard: list[tuple[str, str]] = []
        self.states: list[HintState] = []
        self.gaps = 0
        callbacks: dict[str, Callable[[str], None]] = {
            channel: lambda payload, channel=channel: self.heard.append((channel, payload))  # type: ignore[misc]
            for channel in ("one", "two")
        }
        self.transport = PostgresTransport(
            dsn, Owner(callbacks, self.on_state, self.on_gap), probe_seconds=probe_seconds
        )

    def on_state(self, state: HintState) -> None:
        self.states.append(state)

    def on_gap(self) -> None:
        self.gaps += 1

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.transport.run())
        try:
            await until(lambda: self.states[-1:] == [HintState.LISTENING])
            yield
        finally:
            await ended(task)


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(empty_dsn)
    yield connection
    await connection.close()


async def notify(connection: asyncpg.Connection[asyncpg.Record], channel: str, payload: str) -> None:
    await connection.execute("SELECT pg_notify($1, $2)", channel, payload)


async def listeners(connection: asyncpg.Connection[asyncpg.Record]) -> list[int]:
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'baton listen'"
    )
    return [row["pid"] for row in rows]


async def test_a_listener_gets_the_notifications_of_each_channel(
    empty_dsn: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    ear = Ear(empty_dsn)
    assert ear.transport.state is HintState.CONNECTING
    async with ear.listening():
        for channel, payload in (("one", ""), ("other", "x"), ("two", "é\n")):
            await notify(connection, channel, payload)
        await until(lambda: len(ear.heard) == 2)
    assert ear.heard == [("one", ""), ("two", "é\n")]
    await until_gone(connection)


async def until_gone(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    async def gone() -> bool:
        return await listeners(connection) == []

    await until(gone)


async def test_a_lost_connection_is_noticed_reported_and_replaced(
    empty_dsn: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    ear = Ear(empty_dsn, probe_seconds=60)
    async with ear.listening():
        for round_ in range(3):
            (pid,) = await listeners(connection)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            expected = [HintState.LISTENING, *([HintState.DEGRADED, HintState.LISTENING] * (round_ + 1))]
            await until(lambda expected=expected: ear.states == expected)  # type: ignore[misc]
            await notify(connection, "one", str(round_))
            await until(lambda round_=round_: ear.heard[-1:] == [("one", str(round_))])  # type: ignore[misc]


async def test_a_listener_listens_before_it_reports_it(
    empty_dsn: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    sent: list[asyncio.Task[None]] = []

    class Notifying(Ear):
        def on_state(self, state: HintState) -> None:
            super().on_state(state)
            sent.append(asyncio.create_task(notify(connection, "two", state.value)))

    ear = Notifying(empty_dsn)
    async with ear.listening():
        await until(lambda: ear.heard == [("two", "listening")])
    await asyncio.gather(*sent)


async def test_probes_of_a_healthy_connection_change_nothing(
    empty_dsn: str, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    ear = Ear(empty_dsn, probe_seconds=0.02)
    async with ear.listening():

        async def was_probed() -> bool:
            (pid,) = await listeners(connection)
            query = await connection.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid)
            return "pg_listening_channels" in query

        await until(was_probed)
        await notify(connection, "one", "still here")
        await until(lambda: ear.heard == [("one", "still here")])
    assert ear.states == [HintState.LISTENING]


async def test_a_session_that_lost_its_listen_is_abandoned(
    empty_dsn: str, connection: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a transaction pooler does: the LISTEN is accepted, and goes to a session that the next query does not get.
    real = asyncpg.Connection.add_listener
    forgetful = [True]

    async def add_listener(self: asyncpg.Connection[asyncpg.Record], channel: str, callback: object) -> None:
        await real(self, channel, callback)  # type: ignore[arg-type]
        if forgetful and channel == "two":
            forgetful.clear()
            await self.execute("UNLISTEN two")

    monkeypatch.setattr(asyncpg.Connection, "add_listener", add_listener)
    ear = Ear(empty_dsn, probe_seconds=0.02)
    async with ear.listening():
        await until(lambda: ear.states == [HintState.LISTENING, HintState.DEGRADED, HintState.LISTENING])
        await notify(connection, "two", "heard")
        await until(lambda: ear.heard == [("two", "heard")])


async def test_without_a_server_a_listener_degrades_and_keeps_trying() -> None:
    ear = Ear("postgresql://nobody@127.0.0.1:1/none")
    task = asyncio.create_task(ear.transport.run())
    await until(lambda: ear.states == [HintState.DEGRADED] * 3)
    await ended(task)
