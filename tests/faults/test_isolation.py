"""Generators that block beside six ordinary streams, and a worker that hangs for good."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from tests.faults.viewers import Viewer, counted
from tests.faults.worker_processes import QUICK, worker_process
from tests.support.cluster import Cluster, Tap
from tests.support.logbook import until

OFFERED = ("counting", "blocking", "waiting")
COUNT = 100


class Room:
    """One stream that blocks, and six ordinary ones."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._begin, self._end = folder / "begin", folder / "end"
        self.ids: list[str] = []
        self.neighbors: list[Viewer] = []

    async def enter(self, generator: str) -> None:
        """Start all of them, and let the blocking one block."""
        pod = await self._cluster.pod(generators={name: f"answers:{name}" for name in OFFERED})
        given = {"generator": "counting", "input": {"count": COUNT, "pause": 0.02}}
        for _ in range(6):
            self.ids.append(await self._cluster.create(pod, **given, idle_timeout_seconds=1))
        self.neighbors = [Viewer(self._cluster.client, pod.url, stream_id) for stream_id in self.ids]
        given = {"generator": generator, "input": {"begin": str(self._begin), "end": str(self._end)}}
        self.ids.append(await self._cluster.create(pod, **given))
        self.blocking = Viewer(self._cluster.client, pod.url, self.ids[-1])
        await self.blocking.has(1)
        for viewer in self.neighbors:
            await viewer.has(5)
        self._begin.touch()

    def release(self) -> None:
        self._end.touch()

    async def epochs(self) -> set[int]:
        query = "SELECT epoch FROM baton.stream WHERE id = ANY ($1)"
        return {row[0] for row in await self._cluster.pool.fetch(query, [UUID(found) for found in self.ids])}


async def beats(cluster: Cluster, worker_id: UUID) -> int | None:
    found: int | None = await cluster.pool.fetchval("SELECT heartbeat FROM baton.worker WHERE id = $1", worker_id)
    return found


async def test_a_plain_generator_that_blocks_delays_no_neighbor(cluster: Cluster, tmp_path: Path) -> None:
    room = Room(cluster, tmp_path)
    async with worker_process(cluster.dsn, *OFFERED, **QUICK) as worker:
        await room.enter("waiting")
        for viewer in room.neighbors:
            assert (await viewer.end())["status"] == "completed"
            assert viewer.text == counted(COUNT)
        assert room.blocking.text == "before "
        room.release()
        assert (await room.blocking.end())["status"] == "completed"
        assert room.blocking.text == "before after"
        assert await room.epochs() == {1}
        assert not any("has been blocked" in line for line in worker.lines)


async def test_a_generator_that_blocks_the_loop_for_longer_than_the_lease_costs_no_stream(
    cluster: Cluster, tmp_path: Path
) -> None:
    room = Room(cluster, tmp_path)
    async with worker_process(cluster.dsn, *OFFERED, **QUICK) as worker:
        worker_id = await cluster.pool.fetchval("SELECT id FROM baton.worker")
        # Another worker that would take over, and generates none of it.
        await cluster.worker({"other": Tap()}, **QUICK)
        await room.enter("blocking")
        before = await beats(cluster, worker_id)
        assert before is not None
        goal = before + 3 * QUICK["lease_seconds"] / QUICK["worker_heartbeat_seconds"]

        async def outlived() -> bool:
            found = await beats(cluster, worker_id)
            assert found is not None, "it was declared dead"
            return bool(found >= goal)

        await until(outlived)
        await worker.said(rf"has been blocked for .+ by the generator 'blocking' of stream {room.ids[-1]}")
        await worker.said(r"in wait_for")
        assert all(len(viewer.events) < COUNT for viewer in room.neighbors)
        room.release()
        for viewer in room.neighbors:
            assert (await viewer.end())["status"] == "completed"
            assert viewer.text == counted(COUNT)
        assert (await room.blocking.end())["status"] == "completed"
        await worker.said(r"The event loop runs again\. It was blocked for .+ by the generator 'blocking'")
        assert await room.epochs() == {1}
        assert len([line for line in worker.lines if "has been blocked" in line]) == 1


@pytest.mark.slow
async def test_the_streams_of_a_worker_that_hangs_are_taken_over(cluster: Cluster, tmp_path: Path) -> None:
    room = Room(cluster, tmp_path)
    async with worker_process(cluster.dsn, *OFFERED, **QUICK, worker_hang_seconds=1.5) as hung:
        await room.enter("blocking")
        async with worker_process(cluster.dsn, *OFFERED, **QUICK):
            await hung.said(rf"by the generator 'blocking' of stream {room.ids[-1]}\. This worker gives up its streams")
            for viewer in (*room.neighbors, room.blocking):
                assert (await viewer.end())["status"] == "completed"
                assert {"type": "reset", "reason": "worker_lost"} in viewer.events
            assert {viewer.text for viewer in room.neighbors} == {counted(COUNT)}
            assert room.blocking.text == "before after"
            # If it does run again after all, it knows that it has lost them.
            room.release()
            await hung.said("was declared dead")
            await hung.said(rf"Stream {room.ids[-1]} is lost to this worker: .+ had blocked this worker")
            await until(lambda: sum("is ready for" in line for line in hung.lines) == 2)
