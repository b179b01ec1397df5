"""Inputs that are sent to a running stream through two pods while its workers die and leave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.faults.viewers import Viewer
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import connected, events, text, until

import baton

SENDERS = 4


class Scene:
    """One stream, and programs that send it the numbers from 0 on: each its own, as far as `allowed`."""

    def __init__(self, cluster: Cluster, pods: Sequence[RunningPod], count: int, received: Path) -> None:
        self.cluster = cluster
        self._pods = pods
        self._count = count
        self._received = received
        self._clients = [baton.Client(pod.url, http=cluster.client) for pod in pods]
        self.allowed = 0
        self.sent: dict[int, int] = {}  # the data, by the number of its input

    async def begin(self) -> None:
        self._received.touch()
        given = {"count": self._count, "received": str(self._received), "pause": 0.01}
        self.id = UUID(await self.cluster.create(self._pods[0], generator="steered", input=given))
        self.viewer = Viewer(self.cluster.client, self._pods[1].url, self.id)

    async def send(self, part: int) -> None:
        """Send a part of the numbers. Each third input is repeated through the other pod, as after a lost response."""
        for data in range(part, self._count, SENDERS):
            await until(lambda data=data: self.allowed > data)  # type: ignore[misc]
            clients = [self._clients[data % 2], self._clients[1 - data % 2]][: 1 if data % 3 else 2]
            sending = (client.send_input(self.id, data, idempotency_key=f"key-{data}") for client in clients)
            (number,) = {await each for each in sending}
            self.sent[number] = data

    @property
    def received(self) -> list[tuple[int, int, int]]:
        """The run, the inputs that its state covered, and the data, of each input that a run has received."""
        return [tuple(json.loads(line)) for line in self._received.read_text().splitlines()]

    async def covered(self) -> int:
        """How many inputs the saved state covers."""
        return int(await self.cluster.pool.fetchval("SELECT coalesce(max(inputs), 0) FROM baton.stream_state"))


@pytest.mark.parametrize(
    ("count", "signals"),
    [
        (20, [signal.SIGKILL]),
        pytest.param(100, [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM], marks=pytest.mark.slow),
    ],
)
async def test_inputs_are_received_once_for_each_saved_state_though_workers_are_killed(
    cluster: Cluster, tmp_path: Path, count: int, signals: list[signal.Signals]
) -> None:
    pods = [await cluster.pod(generators={"steered": "no:where"}) for _ in range(2)]
    scene = Scene(cluster, pods, count, tmp_path / "received")
    share = count // (len(signals) + 1)
    covered = [0]
    async with contextlib.AsyncExitStack() as workers, asyncio.TaskGroup() as senders:

        async def another() -> Any:
            starting = worker_process(cluster.dsn, generators="steered=agents:steered", **QUICK)
            return await workers.enter_async_context(starting)

        worker = await another()
        await scene.begin()
        for part in range(SENDERS):
            senders.create_task(scene.send(part))
        for number, name in enumerate(signals):
            scene.allowed += share
            await until(lambda least=number * share + share // 3: len(scene.received) > least)  # type: ignore[misc]
            worker.signal(name)
            await worker.ends()
            # The stream has no worker while these are sent.
            scene.allowed += share // 2
            await until(lambda: len(scene.sent) == scene.allowed)
            scene.allowed -= share // 2
            covered.append(await scene.covered())
            worker = await another()
        scene.allowed = count
        assert (await scene.viewer.end())["status"] == "completed"
    check(scene, count, covered)
    async with connected(cluster.dsn) as connection:
        found = await events(connection, scene.id)
        assert scene.viewer.events == found
        assert "reset" not in {event["type"] for event in found}
        assert list(map(int, text(found).split())) == [scene.sent[number + 1] for number in range(count)]
        assert await connection.fetchval("SELECT count(*) FROM baton.input") == 0


def check(scene: Scene, count: int, covered: list[int]) -> None:
    """Each run began after what the last saved state covered, and received the next inputs in their order."""
    assert sorted(scene.sent) == list(range(1, count + 1))
    in_order = [scene.sent[number] for number in sorted(scene.sent)]
    runs = [list(run) for _, run in itertools.groupby(scene.received, key=lambda item: item[0])]
    assert [run[0][1] for run in runs] == covered
    for run in runs:
        begun = run[0][1]
        assert [data for _, _, data in run] == in_order[begun : begun + len(run)]
    assert runs[-1][0][1] + len(runs[-1]) == count
    # Nothing was received again but what no saved state covered.
    again = len(scene.received) - count
    assert again == sum(before[0][1] + len(before) - after[0][1] for before, after in itertools.pairwise(runs))
