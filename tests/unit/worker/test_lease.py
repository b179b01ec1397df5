"""The lease of a worker: which heartbeats say something of its row."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.logbook import settings

from baton.db import worker_rows
from baton.worker.heartbeat import Beat
from baton.worker.lease import Lease
from baton.worker.lease_history import Heartbeat


def beat_of(worker_id: UUID | None, connection: int) -> Beat:
    place = None if worker_id is None else (0, 1)
    return Beat(worker_id, place, "1.a", Heartbeat(time.monotonic(), {}), connection)


async def test_a_heartbeat_during_the_registration_does_not_register_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(settings("postgresql://nowhere"), ["test"], on_change=lambda: None)
    number = lease.renew()
    worker_id = uuid4()

    async def register(*_arguments: Any, **_options: Any) -> UUID:
        lease.note(beat_of(None, number))  # from before the row
        return worker_id

    async def place(*_arguments: Any) -> tuple[int, int]:
        return 0, 1

    monkeypatch.setattr(worker_rows, "register", register)
    monkeypatch.setattr(worker_rows, "place", place)
    lease.note(beat_of(None, number))
    first = lease.take()
    assert first is not None
    await lease.register(None, first)  # type: ignore[arg-type]
    assert (lease.worker_id, lease.place, lease.take()) == (worker_id, (0, 1), None)
    lease.note(beat_of(worker_id, number))
    assert lease.take() is not None
