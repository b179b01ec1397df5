"""Workers that are killed and stopped in turn while their answers continue: nobody notices but by a pause."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import pytest
from tests.faults.answers import lock_now, open_to_append
from tests.faults.dialects import DIALECTS, GENERATOR
from tests.faults.viewers import counted
from tests.faults.worker_processes import worker_process
from tests.support.cluster import Cluster
from tests.support.logbook import events, until
from tests.support.processes import Running

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
BUSIER = """
SELECT worker.name, count(*) FROM baton.stream JOIN baton.worker ON worker.id = worker_id
WHERE status = 'running' GROUP BY worker.name ORDER BY count(*) DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the generator `continuing` is given."""

    folder: str
    count: int
    pause: float = 0.02
    step_every: int = 7
    save_every: int = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How many streams of how many numbers, and how many workers end in the meantime."""

    streams: int
    count: int
    kills: int
    lease_seconds: float


class Workers:
    """Two worker processes. The busier one is ended, and another takes its place."""

    def __init__(self, cluster: Cluster, stack: contextlib.AsyncExitStack, size: Size) -> None:
        self._cluster = cluster
        self._stack = stack
        self._settings = {
            "worker_concurrency": size.streams,
            "lease_seconds": size.lease_seconds,
            "worker_heartbeat_seconds": size.lease_seconds / 8,
        }
        self._living: dict[str, Running] = {}
        self._started = 0
        self.interrupted = Counter[str]()  # streams, by the reason

    async def start(self) -> None:
        self._started += 1
        name = f"worker-{self._started}"
        starting = worker_process(self._cluster.dsn, GENERATOR, worker_name=name, **self._settings)
        self._living[name] = await self._stack.enter_async_context(starting)

    async def end_busier(self, number: signal.Signals) -> None:
        """End the worker that has most of the streams."""
        [(name, count)] = await self._cluster.pool.fetch(BUSIER)
        self.interrupted["worker_lost" if number is signal.SIGKILL else "worker_left"] += count
        worker = self._living.pop(name)
        worker.signal(number)
        assert await worker.ends() == (-number if number is signal.SIGKILL else 0)
        assert "declared dead" not in "".join(worker.lines)


class Scene:
    """The streams, their viewers, and what the generators share with the test: files."""

    def __init__(self, cluster: Cluster, folder: Path, streams: int, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.clients = [dialect() for dialect in islice(cycle(DIALECTS), streams)]
        self._calls, self._allowed = folder / "calls", folder / "allowed"
        self._gate, self._closed = folder / "gate", folder / "closed"
        for path in (self._calls, self._allowed, self._gate):
            path.touch()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.TaskGroup]:
        """Create the streams, one half on each of two pods, and read all answers to their ends."""
        # On a slow machine connections would rotate.
        given = {"generators": {GENERATOR: "no:where"}, "max_connection_age_seconds": 3600}
        pods = [await self.cluster.pod(**given) for _ in range(2)]
        creating = asyncio.Semaphore(4)
        message = json.dumps(dataclasses.asdict(self.plan))
        async with asyncio.TaskGroup() as tasks:
            for client, pod in zip(self.clients, cycle(pods)):
                tasks.create_task(client.run(self.cluster.client, pod.url, message, creating))
            yield tasks

    def allow(self, count: int) -> None:
        """Let all streams yield this many numbers in all."""
        with open_to_append(self._allowed) as allowed:
            os.write(allowed, b"." * (count - self._allowed.stat().st_size))

    async def received(self, count: int) -> None:
        """Wait until all viewers have this many numbers."""
        await until(lambda: all(client.tokens >= count for client in self.clients))

    @contextlib.asynccontextmanager
    async def between_steps(self) -> AsyncIterator[None]:
        """Let no tool begin, and wait until the results of those that ran are kept.

        A tool whose worker is killed before its result is kept runs again: `test_steps` shows that.
        """
        self._closed.touch()
        with self._gate.open() as gate:
            await until(lambda: lock_now(gate, fcntl.LOCK_EX))
            yield
        self._closed.unlink()

    @property
    def calls(self) -> Counter[tuple[str, int]]:
        """How often the tool ran, by stream and number."""
        lines = [line.split() for line in self._calls.read_text().splitlines()]
        return Counter((stream_id, int(number)) for stream_id, number in lines)


@pytest.mark.parametrize(
    "size",
    [Size(20, 50, 4, 0.8), pytest.param(Size(200, 400, 20, 1.6), marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["few", "many"],
)
async def test_answers_continue_while_workers_are_killed_and_stopped(
    cluster: Cluster, tmp_path: Path, size: Size
) -> None:
    scene = Scene(cluster, tmp_path, size.streams, Plan(str(tmp_path), size.count))
    stretch = size.count // (size.kills + 1)
    async with contextlib.AsyncExitStack() as stack:
        workers = Workers(cluster, stack, size)
        await asyncio.gather(workers.start(), workers.start())
        async with scene.watching():
            for kill, number in enumerate(islice(cycle(SIGNALS), size.kills)):
                scene.allow(stretch * (kill + 1))
                # All streams are in the middle of the stretch, and each runs on one of the workers.
                await scene.received(stretch * kill + stretch // 2)
                async with scene.between_steps() if number is signal.SIGKILL else contextlib.nullcontext():
                    await workers.end_busier(number)
                await workers.start()
            scene.allow(size.count)
    assert [client.text for client in scene.clients] == [counted(size.count)] * size.streams
    assert sum(workers.interrupted.values()) >= size.kills * size.streams / 2
    await check_the_database(scene, workers.interrupted)


async def check_the_database(scene: Scene, interrupted: Counter[str]) -> None:
    """Check each log, and that each stream has called its tool once for each of its numbers."""
    plan, reasons = scene.plan, Counter[str]()
    async with scene.cluster.pool.acquire() as connection:
        ids = [row["id"] for row in await connection.fetch("SELECT id FROM baton.stream")]
        assert len(ids) == len(scene.clients)
        for stream_id in ids:
            found = await events(connection, stream_id)
            assert {event["type"] for event in found} == {"text", "resumed", "done"}
            reasons.update(event["reason"] for event in found if event["type"] == "resumed")
        for table in ("step", "stream_state"):
            assert await connection.fetchval(f"SELECT count(*) FROM baton.{table}") == 0
    assert reasons == interrupted
    numbers = range(0, plan.count, plan.step_every)
    assert scene.calls == {(str(stream_id), number): 1 for stream_id in ids for number in numbers}
