"""Which notifications kill a worker of the demo."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.support.logbook import connected, ended, queue, working

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


@pytest.mark.parametrize("demo", [False, True])
async def test_only_a_worker_of_the_demo_listens_to_kills(
    dsn: str, monkeypatch: pytest.MonkeyPatch, *, demo: bool
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *about: killed.append(about))
    async with connected(dsn) as connection, working(dsn, demo=demo, worker_name="worker-a"):
        keys = await signing_keys.read(connection, await history.read(connection))
        until_later = notifications.stamp_of(time.time() + 60)
        kill = notifications.sign(keys, KILL_WORKER_CHANNEL, "worker-a", until_later)
        await connection.execute("SELECT pg_notify($1, $2)", KILL_WORKER_CHANNEL, kill)
        # The worker hears of this stream after the kill.
        await ended(connection, await queue(dsn))
        assert killed == (DIES if demo else [])
