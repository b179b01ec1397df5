"""Steps of workers that are killed, suspended, or killed just before their result is kept: processes of their own."""

from __future__ import annotations

import signal
from pathlib import Path
from uuid import UUID

from tests.faults.viewers import Viewer
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.cluster import Cluster
from tests.support.logbook import until

ANSWER = "asking question-answer"


class Scene:
    """A stream whose tool counts its calls in a file."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.calls, self.go, self.end = (folder / name for name in ("calls", "go", "end"))

    async def begin(self) -> None:
        pod = await self.cluster.pod(generators={"stepping": "no:where"})
        given = {"calls": str(self.calls), "go": str(self.go), "end": str(self.end)}
        self.stream_id = UUID(await self.cluster.create(pod, generator="stepping", input=given))
        self.viewer = Viewer(self.cluster.client, pod.url, self.stream_id)

    @property
    def keys(self) -> list[str]:
        """The idempotency key of each call of the tool, by any worker."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    async def results(self) -> int:
        count: int = await self.cluster.pool.fetchval("SELECT count(*) FROM baton.step")
        return count

    async def until_kept(self) -> None:
        async def is_kept() -> bool:
            return await self.results() == 1

        await until(is_kept)

    async def until_waiting_to_keep(self) -> int:
        """Wait until a worker's insert of a result waits for a lock; return its pid."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'baton worker records' "
            "AND datname = current_database() AND wait_event_type = 'Lock'"
        )
        found: list[int] = []

        async def waits() -> bool:
            found[:] = [row[0] for row in await self.cluster.pool.fetch(query)]
            return bool(found)

        await until(waits)
        return found[0]


async def test_a_tool_runs_once_though_its_worker_dies_right_after_it(cluster: Cluster, tmp_path: Path) -> None:
    scene = Scene(cluster, tmp_path)
    scene.go.touch()
    async with worker_process(cluster.dsn, "stepping", **QUICK) as first:
        await scene.begin()
        await scene.until_kept()
        first.signal(signal.SIGKILL)
        await first.ends()
    scene.end.touch()
    async with worker_process(cluster.dsn, "stepping", **QUICK):
        assert (await scene.viewer.end())["status"] == "completed"
    assert scene.viewer.text == ANSWER
    assert len(scene.keys) == 1


async def test_a_tool_whose_result_was_not_kept_runs_again_with_its_key(cluster: Cluster, tmp_path: Path) -> None:
    scene = Scene(cluster, tmp_path)
    scene.end.touch()
    async with worker_process(cluster.dsn, "stepping", **QUICK) as first:
        await scene.begin()
        await until(lambda: len(scene.keys) == 1)
        async with cluster.pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM baton.stream WHERE id = $1 FOR UPDATE", scene.stream_id)
            scene.go.touch()
            pid = await scene.until_waiting_to_keep()
            first.signal(signal.SIGKILL)
            await first.ends()
            assert await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    assert await scene.results() == 0
    async with worker_process(cluster.dsn, "stepping", **QUICK):
        assert (await scene.viewer.end())["status"] == "completed"
    assert scene.viewer.text == ANSWER
    assert len(scene.keys) == 2
    assert len(set(scene.keys)) == 1


async def test_a_suspended_workers_result_is_refused_after_the_take_over(cluster: Cluster, tmp_path: Path) -> None:
    scene = Scene(cluster, tmp_path)
    async with worker_process(cluster.dsn, "stepping", **QUICK) as zombie:
        await scene.begin()
        await until(lambda: len(scene.keys) == 1)
        zombie.signal(signal.SIGSTOP)
        async with worker_process(cluster.dsn, "stepping", **QUICK):
            await until(lambda: len(scene.keys) == 2)
            # Its tool returns at the moment at which it continues.
            scene.go.touch()
            await scene.until_kept()
            zombie.signal(signal.SIGCONT)
            await zombie.said("declared dead|is lost to this worker")
            scene.end.touch()
            assert (await scene.viewer.end())["status"] == "completed"
        assert zombie.process.returncode is None
    assert scene.viewer.text == ANSWER
    assert len(set(scene.keys)) == 1
    assert await scene.results() <= 1  # none once the end deletes them
