"""Which notifications kill a worker of the demo."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.support.logbook import connected

from baton.db import history, notifications, signing_keys
from baton.db.notifications import KILL_CHANNEL, KILL_WORKER_CHANNEL
from baton.worker.kill_switch import KillSwitch

DIES = [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("channel", "name", "seconds", "signed", "expected"),
    [
        (KILL_WORKER_CHANNEL, "worker-a", 60, True, DIES),
        (KILL_WORKER_CHANNEL, "worker-a", 60, False, []),
        (KILL_WORKER_CHANNEL, "worker-a", -60, True, []),
        (KILL_WORKER_CHANNEL, "worker-b", 60, True, []),
        (KILL_CHANNEL, "worker-a", 60, True, []),
    ],
    ids=["genuine", "not signed", "meant for an earlier one", "meant for another", "meant for a pod"],
)
async def test_a_worker_obeys_only_a_signed_kill_that_means_it(
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    channel: str,
    name: str,
    seconds: float,
    signed: bool,
    expected: list[tuple[int, int]],
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *about: killed.append(about))
    async with connected(dsn) as connection:
        keys = signing_keys.NONE
        if signed:
            keys = await signing_keys.read(connection, await history.read(connection))
        switch = KillSwitch("worker-a", on_kill=lambda: None)
        switch.note(notifications.sign(keys, channel, name, notifications.stamp_of(time.time() + seconds)))
        await switch.obey(connection)
        await switch.obey(connection)  # a kill counts once
    assert killed == expected
