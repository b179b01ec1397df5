"""Connect, serve, back off: each failure leads to a new connection, and the old one is terminated."""

from __future__ import annotations

from typing import cast

import asyncpg
import pytest

from baton.backoff import Backoff
from baton.db.postgres import Connection
from baton.db.reconnecting import keep_connected
from baton.errors import ConfigurationError, DatabaseUnreachable


class Opened:
    """Stands for a connection, and knows whether it was terminated."""

    def __init__(self) -> None:
        self.terminated = False

    def terminate(self) -> None:
        self.terminated = True


class Service:
    """Connects and serves as its script says: an error to raise, or None to succeed."""

    def __init__(self, *, connecting: list[Exception | None], serving: list[Exception | None]) -> None:
        self._connecting, self._serving = connecting, serving
        self.opened: list[Opened] = []
        self.failures: list[Exception] = []

    async def connect(self) -> Connection:
        if error := self._connecting.pop(0):
            raise error
        self.opened.append(Opened())
        return cast(Connection, self.opened[-1])

    async def serve(self, _connection: Connection, backoff: Backoff) -> None:
        backoff.reset()
        if error := self._serving.pop(0):
            raise error


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no test wait; return the pauses that there were."""
    found: list[float] = []

    async def sleep(backoff: Backoff) -> None:
        found.append(backoff.next_seconds())

    monkeypatch.setattr(Backoff, "sleep", sleep)
    return found


async def test_work_continues_over_a_new_connection_after_each_failure(pauses: list[float]) -> None:
    refused, lost = DatabaseUnreachable("Nothing there."), asyncpg.InterfaceError("closed")
    service = Service(connecting=[refused, None, None], serving=[lost, None])
    await keep_connected(service.connect, service.serve, on_failure=service.failures.append)
    assert service.failures == [refused, lost]
    assert len(pauses) == 2
    assert [opened.terminated for opened in service.opened] == [True, True]


async def test_no_connection_is_opened_once_the_work_is_done() -> None:
    service = Service(connecting=[ConfigurationError("No such database.")], serving=[])
    await keep_connected(
        service.connect, service.serve, on_failure=service.failures.append, until=lambda: bool(service.failures)
    )
    assert len(service.failures) == 1
    assert service.opened == []


async def test_a_fault_of_the_code_is_raised_and_the_connection_terminated() -> None:
    service = Service(connecting=[None], serving=[ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        await keep_connected(service.connect, service.serve, on_failure=service.failures.append)
    assert service.opened[0].terminated
