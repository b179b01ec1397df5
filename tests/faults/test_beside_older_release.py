"""A roll-out from the release before waiting streams: its pods and workers beside those of today, on today's schema."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.faults.older_releases import BEFORE_WAITS, MAIN, code_of, count, environment_of, older
from tests.support.cluster import Cluster
from tests.support.follower import frames_after, numbers, parse, texts
from tests.support.logbook import until
from tests.support.processes import SERVES, Running, finished
from tests.support.serving import served

import baton
from baton import GenerationRequest, Generator, Yielded
from baton.db.schema_revision import REVISION
from baton.schema.migrate import migrate
from baton.worker.worker import Worker

pytestmark = pytest.mark.slow

# How many streams a worker runs.
SLOTS = 4
# Of each worker. It declares no other one dead, unless it is given a shorter lease.
SETTINGS = {
    "worker_concurrency": SLOTS,
    "worker_drain_seconds": 0,
    "lease_seconds": 600,
    "worker_heartbeat_seconds": 0.1,
}
READY = "is ready for"


@baton.continues
async def ask(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield {"type": "continue", "after": request.so_far.seq}
    if request.run == 1:
        yield "May I? "
        yield {"type": "wait", "for": {"type": "approval"}}
    yield f"You said {await request.receive(timeout=0)}."


@dataclass
class Scene:
    """A database that has just been migrated, and a pod of each release."""

    cluster: Cluster
    code: Path
    folder: Path
    stack: contextlib.AsyncExitStack
    urls: dict[str, str] = field(default_factory=dict)
    following: dict[str, asyncio.Task[list[bytes]]] = field(default_factory=dict)

    async def start_pods(self, **given: Any) -> Running:
        """Start a pod of each release; return the older one."""
        pod = await self.older("serve")
        self.urls["older"] = (await pod.said(SERVES))[2]
        self.urls["newer"] = (await self.cluster.pod(generators={"count": "counting:count"}, **given)).url
        return pod

    async def older(self, command: str, **given: Any) -> Running:
        process = older(self.code, self.cluster.dsn, self.folder, command, **given)
        return await self.stack.enter_async_context(process)

    async def older_worker(self, **given: Any) -> Running:
        """Start a worker of the release before."""
        worker = await self.older(
            "worker",
            **SETTINGS | given,
        )
        await worker.said(READY)
        return worker

    async def newer_worker(self, generators: Mapping[str, Generator] | None = None, **given: Any) -> Worker:
        """Start a worker of today."""
        return await self.cluster.worker(
            generators or {"count": count},
            **SETTINGS | given,
        )

    async def create(self, pod: str, end: str, **body: Any) -> str:
        """Create a stream that counts until a file exists, and follow it through the other release's pod."""
        stream = {"generator": "count", "input": str(self.folder / end), "on_worker_lost": "retry"} | body
        answer = await self.cluster.client.post(f"{self.urls[pod]}/v1/streams", json=stream)
        assert answer.status_code == 201, answer.text
        stream_id: str = answer.json()["id"]
        other = self.urls["older" if pod == "newer" else "newer"]
        self.following[stream_id] = asyncio.create_task(frames_after(self.cluster.client, other, stream_id))
        return stream_id

    async def runs(self, stream_ids: list[str], *, again: bool = False) -> None:
        """Wait until a worker writes each of these streams; `again`: one that is not the first."""
        ids = [UUID(stream_id) for stream_id in stream_ids]
        await until(
            lambda: self.cluster.pool.fetchval(
                "SELECT count(*) = $2 FROM baton.stream AS s WHERE id = ANY ($1) AND status = 'running' "
                "AND epoch > $3 AND EXISTS (SELECT FROM baton.batch WHERE stream_id = s.id AND epoch = s.epoch)",
                ids,
                len(ids),
                1 if again else 0,
            )
        )

    def let(self, end: str) -> None:
        """Let the streams that were created with this name of a file end."""
        (self.folder / end).touch()

    async def all_completed(self) -> None:
        """Read every stream to its end: nothing is missing, repeated or mixed."""
        for frames in await asyncio.gather(*self.following.values()):
            assert parse(frames[-1])["status"] == "completed"
            assert numbers(frames) == list(range(1, len(frames) + 1))
            resets = [number for number, frame in enumerate(frames) if parse(frame)["type"] == "reset"]
            said = texts(frames[resets[-1] + 1 :] if resets else frames)
            assert said == [f"{number} " for number in range(1, len(said) + 1)]
            assert len(said) >= 20


@pytest.fixture
async def scene(empty_dsn: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """The worker of the older release that starts first has registered before the migration."""
    code = code_of(BEFORE_WAITS, tmp_path)
    await migrate(empty_dsn, days_ahead=1, to=BEFORE_WAITS.revision)
    async with contextlib.AsyncExitStack() as stack, Cluster(empty_dsn) as cluster:
        scene = Scene(cluster, code, tmp_path, stack)
        yield scene
        for task in scene.following.values():
            task.cancel()


async def migrated(scene: Scene) -> None:
    await migrate(scene.cluster.dsn, days_ahead=1, to=REVISION)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["leaves", "dies"])
async def test_a_worker_of_today_takes_over_before_its_backlog(scene: Scene, end: signal.Signals) -> None:
    """What an older worker hands over or loses does not wait behind what new pods have queued."""
    older_worker = await scene.older_worker()
    await migrated(scene)
    await scene.start_pods()
    interrupted = [await scene.create("older", "late") for _ in range(SLOTS)]
    await scene.runs(interrupted)
    await scene.newer_worker(lease_seconds=1)
    first = [await scene.create("newer", "early") for _ in range(SLOTS)]
    await scene.runs(first)
    backlog = [await scene.create("newer", "late") for _ in range(SLOTS)]
    older_worker.signal(end)
    await older_worker.ends()
    given_back = "SELECT count(*) = $1 FROM baton.stream WHERE epoch > 1"
    await until(lambda: scene.cluster.pool.fetchval(given_back, SLOTS))
    scene.let("early")
    await scene.runs(interrupted, again=True)
    started = "SELECT count(*) FROM baton.stream WHERE id = ANY ($1) AND started_at IS NOT NULL"
    assert await scene.cluster.pool.fetchval(started, [UUID(stream_id) for stream_id in backlog]) == 0
    scene.let("late")
    await scene.all_completed()


@pytest.mark.parametrize("dies", [False, True], ids=["leaves", "dies"])
async def test_an_older_worker_takes_over_from_one_of_today(scene: Scene, dies: bool) -> None:
    await migrated(scene)
    await scene.start_pods()
    worker = await scene.newer_worker()
    streams = [await scene.create("older", "late") for _ in range(SLOTS)]
    await scene.runs(streams)
    await scene.older_worker(lease_seconds=1)
    if dies:
        await scene.cluster.kill(worker)
    else:
        worker.leave()
    await scene.runs(streams, again=True)
    scene.let("late")
    await scene.all_completed()


async def test_what_an_older_worker_declares_dead_goes_to_one_of_today(scene: Scene) -> None:
    """The older one has no slot free. Only it looks for dead workers."""
    await migrated(scene)
    await scene.start_pods()
    await scene.older_worker(lease_seconds=1)
    full = [await scene.create("newer", "late") for _ in range(SLOTS)]
    await scene.runs(full)
    dying = await scene.newer_worker()
    streams = [await scene.create("newer", "late") for _ in range(SLOTS)]
    await scene.runs(streams)
    await scene.newer_worker()
    await scene.cluster.kill(dying)
    await scene.runs(streams, again=True)
    scene.let("late")
    await scene.all_completed()


async def test_a_worker_of_today_serves_streams_of_older_pods_in_their_order(scene: Scene) -> None:
    await migrated(scene)
    await scene.start_pods()
    await scene.newer_worker(worker_concurrency=1)
    streams = [await scene.create("older", "end") for _ in range(5)]
    scene.let("end")
    await scene.all_completed()
    rows = await scene.cluster.pool.fetch("SELECT id FROM baton.stream ORDER BY started_at")
    assert [str(row["id"]) for row in rows] == streams


async def test_what_only_todays_code_knows(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A wait, a start in the future, inputs and webhooks while older processes run, and once they have left."""
    caplog.set_level(logging.INFO, logger="baton")
    calls: list[bytes] = []

    async def hook(request: Request) -> Response:
        calls.append(await request.body())
        return Response(status_code=204)

    await migrated(scene)
    async with served(Starlette(routes=[Route("/hook", hook, methods=["POST"])])) as address:
        webhooks = {"webhook_url": f"{address}/hook", "webhook_secrets": (f"whsec_{'A' * 43}=",)}
        processes = [await scene.start_pods(**webhooks), await scene.older_worker()]
        worker = await scene.newer_worker({"ask": ask}, **webhooks)
        counting = await scene.create("newer", "end", webhook=f"{address}/hook")
        asking = await scene.cluster.create(scene.cluster.pods[0], generator="ask")
        await scene.runs([counting])
        # The older worker that runs it never reads it.
        assert (await send(scene, counting, "unread")).status_code == 201
        await until(lambda: "keeps its slot" in caplog.text)
        assert list(worker.slots.runs) == [UUID(asking)]
        assert await status(scene, asking) == "running"
        refused = await start_later(scene)
        assert (refused.status_code, refused.json()["code"]) == (503, "older_code_running")
        scene.let("end")
        await scene.all_completed()
        await until(lambda: len(calls) == 1)
        assert await scene.cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 1
        code, _, said = await finished("maintain", env=environment_of(Path(), scene.cluster.dsn), cwd=scene.folder)
        assert code == 0, said
        assert await scene.cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 0
        for process in processes:
            process.signal(signal.SIGTERM)
            await process.ends()
        await until(lambda: not worker.slots.runs)
        assert await status(scene, asking) == "waiting"
        for command in ("serve", "worker", "maintain"):
            code, _, said = await finished(
                *("-c", MAIN, command),
                env=environment_of(scene.code, scene.cluster.dsn),
                command=Path(sys.executable),
                cwd=scene.folder,
            )
            assert code not in {0, None}, command
            assert f"needs code of revision {REVISION} or newer" in said
        assert (await start_later(scene)).status_code == 201
        assert (await send(scene, asking, "yes")).status_code == 201
        frames = await frames_after(scene.cluster.client, scene.urls["newer"], asking)
        assert parse(frames[-1])["status"] == "completed"
        assert texts(frames)[-1] == "You said yes."


async def send(scene: Scene, stream_id: str, data: Any) -> httpx2.Response:
    return await scene.cluster.client.post(f"{scene.urls['newer']}/v1/streams/{stream_id}/inputs", json={"data": data})


async def start_later(scene: Scene) -> httpx2.Response:
    body = {"generator": "count", "input": None, "start_after": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    return await scene.cluster.client.post(f"{scene.urls['newer']}/v1/streams", json=body)


async def status(scene: Scene, stream_id: str) -> str:
    answer = await scene.cluster.client.get(f"{scene.urls['newer']}/v1/streams/{stream_id}")
    found: str = answer.json()["status"]
    return found
