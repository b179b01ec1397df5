"""A database that goes back in time: an asynchronous standby is promoted, or something older is restored.

Everything here reaches Postgres through a proxy, which leads to another server afterwards, as a virtual address does.
What each test loses is known: the standby is parted from its primary at that moment, and not a second before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import httpx2
import pytest
from tests.faults.producers import Producer
from tests.faults.replicas import DATABASE, Replicas
from tests.faults.watchers import DIALECTS, NATIVE, Script, Watcher, asking
from tests.support import end_hook
from tests.support.cluster import Cluster, RunningPod
from tests.support.databases import execute, named_database
from tests.support.doors import DOORS
from tests.support.durable import DurableReader
from tests.support.logbook import until

from baton.chaos.proxy import Proxy
from baton.db import history
from baton.dialects.durable_offsets import offset_after
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.worker.worker import Worker

QUICK_WORKER = {"worker_heartbeat_seconds": 0.1, "lease_seconds": 1, "queue_poll_seconds": 0.2}
# As where a service does not let anybody see the timeline.
NO_TIMELINE = """
CREATE OR REPLACE FUNCTION baton.current_history() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT marker || '/' FROM baton.history $$
"""
REWOUND = "log_rewound"
BEYOND = (409, "cursor_beyond_tail")


@pytest.fixture(scope="session")
def replicas() -> Iterator[Replicas]:
    with Replicas.running() as running:
        yield running


@dataclass
class Scene:
    """Pods and workers that reach the primary of the moment through proxies, and those who watch."""

    replicas: Replicas
    proxy: Proxy
    cluster: Cluster
    script: Script
    pods: list[RunningPod] = field(default_factory=list)
    watching: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, pods: int = 1, **given: object) -> None:
        for _ in range(pods):
            self.pods.append(await self.cluster.pod(**{"log_poll_seconds": 0.2, "reconnect_milliseconds": 50, **given}))

    async def worker(self, **given: object) -> Worker:
        return await self.cluster.worker({"replay": self.script}, **{**QUICK_WORKER, **given})

    async def create(self, name: str, events: int, *, end: bool = False) -> str:
        """Create a stream that may say so many events for now."""
        self.script.let(name, events, end=end)
        return await self.cluster.create(self.pods[0], input=name, on_worker_lost="retry")

    async def open(self, name: str | None = "p") -> Producer:
        """Create an external stream, and return its producer."""
        stream_id = await self.cluster.create(self.pods[0], generator="external")
        return Producer(self.cluster.client, [pod.url for pod in self.pods], stream_id, name)

    def client(self, stream_id: str, dialect: str = NATIVE) -> Watcher:
        return Watcher(self.cluster.client, [pod.url for pod in self.pods], dialect, stream_id)

    def watch(self, stream_id: str, dialect: str = NATIVE) -> Watcher:
        """Follow a stream from now on."""
        watcher = self.client(stream_id, dialect)
        self.watching.append(asyncio.create_task(watcher.watch()))
        return watcher

    async def fail_over(self) -> None:
        """Promote the standby, and lead everybody there."""
        await self.replicas.promote()
        self.lead()

    def lead(self) -> None:
        self.proxy.lead_to(self.replicas.dsn)
        self.proxy.cut()

    async def resumed(self, stream_id: str, cursor: int, dialect: str = NATIVE) -> Watcher:
        """Come back with a cursor, by one connection to the first pod, and read to its end."""
        watcher = self.client(stream_id, dialect)
        # Any frames will do: what counts is what comes after them.
        watcher.frames = [{"type": "had before"}] * cursor
        await watcher.connect(self.pods[0].url)
        return watcher

    async def has_ended(self, stream_id: str) -> None:
        async def ended() -> bool:
            return (await self.status(stream_id)) not in {"queued", "running", "open"}

        await until(ended)

    async def status(self, stream_id: str) -> str | None:
        with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
            found: str | None = await self.cluster.pool.fetchval(
                "SELECT coalesce(error_code, status) FROM baton.stream WHERE id = $1", UUID(stream_id)
            )
            return found
        return "running"

    async def log(self, stream_id: str) -> list[tuple[int, str]]:
        """The numbers and the events of a log, after having seen that it has no gap."""
        rows = await self.cluster.pool.fetch(
            "SELECT seq, data FROM baton.event WHERE stream_id = $1 ORDER BY seq", UUID(stream_id)
        )
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        return [(row["seq"], str(row["data"])) for row in rows]

    async def close(self) -> None:
        for task in self.watching:
            task.cancel()
        results = await asyncio.gather(*self.watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


@pytest.fixture
async def scene(replicas: Replicas) -> AsyncIterator[Scene]:
    async with replicas.database(), Proxy(replicas.dsn) as proxy, Cluster(proxy.dsn) as cluster:
        scene = Scene(replicas, proxy, cluster, Script())
        try:
            yield scene
        finally:
            await scene.close()


async def test_living_workers_complete_every_answer(scene: Scene) -> None:
    """A third ends in the lost part, a third is written there, and the rest is whole. Viewers only have to wait."""
    await scene.start(pods=2)
    for _ in range(2):
        await scene.worker(lease_seconds=20, worker_concurrency=15)
    kinds = {f"{kind} {number}": kind for number in range(10) for kind in ("ended", "written", "whole")}
    streams = {name: await scene.create(name, 3) for name in kinds}
    watchers = {
        (name, dialect): scene.watch(stream, dialect) for name, stream in streams.items() for dialect in DIALECTS
    }
    for watcher in watchers.values():
        await watcher.has(3)
    await scene.replicas.part()
    for name, kind in kinds.items():
        if kind != "whole":
            scene.script.let(name, 7, end=kind == "ended")
    for (name, _), watcher in watchers.items():
        await watcher.has(3 if kinds[name] == "whole" else 7)
    await asyncio.gather(*(scene.has_ended(streams[name]) for name, kind in kinds.items() if kind == "ended"))
    await scene.fail_over()
    # Before it is settled: these had a part of what is lost, and have left their pod.
    late = [(name, await until_answered(scene, streams[name], 5)) for name in kinds if kinds[name] == "ended"]
    for name in kinds:
        scene.script.let(name, 9, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for (name, _), watcher in watchers.items():
        watcher.require_one_answer()
        assert (watcher.code, len(watcher.texts)) == ("completed", 7 if kinds[name] == "ended" else 9)
        assert watcher.connections == 1, "a viewer was cut off"
    for name, watcher in late:
        assert (watcher.code, watcher.frames[5:]) == ("completed", watchers[name, NATIVE].frames[5:])
    for name, kind in kinds.items():
        assert len(await scene.log(streams[name])) == (8 if kind == "ended" else 10)
        reader = await scene.resumed(streams[name], 0)
        assert reader.frames == watchers[name, NATIVE].frames


@pytest.mark.slow
async def test_viewers_wait_for_a_worker_that_comes_back_later_than_they(scene: Scene) -> None:
    await scene.start(pods=2)
    async with Proxy(scene.replicas.dsn) as own:
        await scene.worker(lease_seconds=20, database_url=own.dsn)
        ended, running = await scene.create("ended", 3), await scene.create("running", 3)
        watchers = [scene.watch(stream, dialect) for stream in (ended, running) for dialect in DIALECTS]
        for watcher in watchers:
            await watcher.has(3)
        await scene.replicas.part()
        scene.script.let("ended", 7, end=True)
        scene.script.let("running", 7)
        for watcher in watchers:
            await watcher.has(7)
        await scene.has_ended(ended)
        had = {dialect: len(watcher.frames) - 1 for dialect, watcher in zip(DIALECTS * 2, watchers, strict=True)}
        own.stall()
        own.cut()
        await scene.fail_over()
        await until(lambda: fetched(scene, "SELECT true"))
        # This pod has nothing in memory.
        pod = await scene.cluster.pod()
        for stream in (ended, running):
            await asks_to_wait(scene, pod, stream, had)
        own.lead_to(scene.replicas.dsn)
        own.resume()
        scene.script.let("running", 9, end=True)
        await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
        for watcher in watchers:
            watcher.require_one_answer()
            assert (watcher.code, watcher.connections) == ("completed", 1)
            assert len(watcher.texts) == (7 if watcher.stream_id == ended else 9)


@pytest.mark.slow
async def test_of_two_workers_the_living_one_completes_its_answers(scene: Scene) -> None:
    await scene.start(pods=2)
    workers = [await scene.worker(worker_concurrency=3) for _ in range(2)]
    streams = {name: await scene.create(name, 3) for name in "abcdef"}
    watchers = {(name, dialect): scene.watch(streams[name], dialect) for name in streams for dialect in DIALECTS}
    for watcher in watchers.values():
        await watcher.has(3)
    await scene.replicas.part()
    for name in streams:
        scene.script.let(name, 7)
    for watcher in watchers.values():
        await watcher.has(7)
    gone = {str(stream_id) for stream_id in workers[0].slots.runs}
    assert len(gone) == 3
    await scene.cluster.kill(workers[0])
    await scene.fail_over()
    for name in streams:
        scene.script.let(name, 9, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for (name, _), watcher in watchers.items():
        watcher.require_one_answer()
        if streams[name] in gone:
            assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 7)
            assert await scene.status(streams[name]) == REWOUND
        else:
            assert (watcher.code, len(watcher.texts), watcher.connections) == ("completed", 9, 1)


async def test_a_batch_that_is_no_longer_kept_leaves_no_gap(scene: Scene) -> None:
    """The worker has the last two batches of four that are lost."""
    await scene.start()
    worker = await scene.worker(lease_seconds=20)
    stream = await scene.create("lost", 3)
    watcher = scene.watch(stream)
    await watcher.has(3)
    await scene.replicas.part()
    for count in (4, 5, 6, 7):
        scene.script.let("lost", count)
        await watcher.has(count)
    (run,) = worker.slots.runs.values()
    recent = worker.writer._recent
    kept = recent.of(run.outbox.fence)
    assert kept is not None
    recent.forget(kept.fence)
    recent.note(list(kept.batches)[-2:], kept.history)
    await scene.fail_over()
    scene.script.let("lost", 9, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 7)
    assert (await scene.status(stream), len(await scene.log(stream))) == (REWOUND, 4)


async def test_without_the_lost_batches_every_answer_is_rewound_or_completed(scene: Scene) -> None:
    await scene.start(pods=2)
    await scene.worker(lease_seconds=20, failover_keep_seconds=0)
    lost, whole = await scene.create("lost", 3), await scene.create("whole", 3)
    watchers = {(stream, dialect): scene.watch(stream, dialect) for stream in (lost, whole) for dialect in DIALECTS}
    late = [scene.client(lost, dialect) for dialect in DIALECTS]
    for watcher in watchers.values():
        await watcher.has(3)
    await scene.replicas.part()
    scene.script.let("lost", 7)
    for dialect in DIALECTS:
        await watchers[lost, dialect].has(7)
    await scene.fail_over()
    scene.script.let("whole", 5, end=True)
    scene.script.let("lost", 9, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for (stream, _), watcher in watchers.items():
        watcher.require_one_answer()
        if stream == whole:
            assert (watcher.code, len(watcher.texts)) == ("completed", 5)
        else:
            # They have what is lost, so that no cursor of theirs means anything any more.
            assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 7)
    await scene.has_ended(lost)
    assert await scene.status(lost) == REWOUND
    assert len(await scene.log(lost)) == 4
    for watcher in late:
        await watcher.connect(scene.pods[1].url)
        watcher.require_one_answer()
        assert len(watcher.texts) == 3
        assert watcher.code in {REWOUND, "failed"}


@pytest.mark.parametrize("timeline", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["timeline", "counters"])
async def test_with_a_dead_worker_no_cursor_continues_into_another_history(scene: Scene, timeline: bool) -> None:
    if not timeline:
        await execute(scene.replicas.dsn, NO_TIMELINE)
    await scene.start(pods=2, failover_settle_seconds=1)
    worker = await scene.worker()
    stream = await scene.create("lost", 3)
    seen = {dialect: scene.watch(stream, dialect) for dialect in DIALECTS}
    for watcher in seen.values():
        await watcher.has(3)
    survived = {dialect: len(watcher.frames) for dialect, watcher in seen.items()}
    await scene.replicas.part()
    await counted_on(scene, worker)
    scene.script.let("lost", 7)
    for watcher in seen.values():
        await watcher.has(7)
    had = {dialect: len(watcher.frames) for dialect, watcher in seen.items()}
    await scene.close()
    scene.watching.clear()
    await scene.cluster.kill(worker)
    await scene.fail_over()
    for dialect in DIALECTS:
        # Before anybody has ended it, and after: the answer is the same, once the pods have waited for its worker.
        watcher = await until_answered(scene, stream, had[dialect], dialect)
        assert watcher.refusal == BEYOND
    await scene.worker()
    await scene.has_ended(stream)
    assert await scene.status(stream) == REWOUND
    assert len(await scene.log(stream)) == 4
    for dialect in DIALECTS:
        for cursor in range(survived[dialect] + 1):
            watcher = await scene.resumed(stream, cursor, dialect)
            assert watcher.ended, (dialect, cursor)
        for cursor in range(survived[dialect] + 1, had[dialect] + 1):
            watcher = await scene.resumed(stream, cursor, dialect)
            assert watcher.refusal == BEYOND, (dialect, cursor)
    for dialect in DIALECTS:
        first, second = await scene.resumed(stream, 0, dialect), scene.client(stream, dialect)
        await second.connect(scene.pods[1].url)
        assert first.frames == second.frames
        assert len(first.texts) == 3
        assert first.code == (REWOUND if dialect == NATIVE else "failed")


@pytest.mark.parametrize("alive", [True, False], ids=["worker alive", "worker dead"])
async def test_a_stream_claimed_in_the_lost_part_is_not_generated_again(scene: Scene, alive: bool) -> None:
    await scene.start()
    stream = await scene.create("queued", 5)
    await scene.replicas.part()
    worker = await scene.worker()
    watcher = scene.watch(stream)
    await watcher.has(5)
    if not alive:
        await scene.cluster.kill(worker)
    await scene.fail_over()
    if not alive:
        await scene.worker()
    scene.script.let("queued", 8, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 5)
    watcher.require_one_answer()
    await scene.has_ended(stream)
    assert (await scene.status(stream), len(await scene.log(stream))) == (REWOUND, 1)
    assert (await scene.resumed(stream, 0)).code == REWOUND
    for cursor in (1, 5, 6):
        assert (await scene.resumed(stream, cursor)).refusal == BEYOND


async def test_streams_ended_created_or_erased_in_the_lost_part(scene: Scene) -> None:
    await scene.start()
    await scene.worker(lease_seconds=20)
    ended, erased = await scene.create("ended", 3), await scene.create("erased", 2)
    watcher, other = scene.watch(ended), scene.watch(erased)
    await watcher.has(3)
    await other.has(2)
    await scene.replicas.part()
    scene.script.let("ended", 5, end=True)
    await until(lambda: watcher.ended)
    assert watcher.code == "completed"
    assert (await scene.cluster.client.delete(f"{scene.pods[0].url}/v1/streams/{erased}")).status_code == 204
    created = await scene.create("created", 1, end=True)
    await scene.has_ended(created)
    await scene.fail_over()
    again = await until_answered(scene, ended, 4)
    assert again.frames[4:] == watcher.frames[4:]
    again = await until_answered(scene, ended, 0)
    assert again.frames == watcher.frames
    assert await scene.status(ended) == "completed"
    # What was erased is there again, and its worker keeps nothing of it.
    await scene.has_ended(erased)
    assert await scene.status(erased) == REWOUND
    again = await until_answered(scene, erased, 0)
    assert (again.code, len(again.texts)) == (REWOUND, 2)
    assert (await until_answered(scene, created, 0)).refusal == (404, "stream_not_found")


async def test_two_claims_of_one_epoch_leave_one_log(scene: Scene) -> None:
    await scene.start()
    stream = await scene.create("claimed twice", 3)
    await scene.replicas.part()
    async with Proxy(scene.replicas.dsn) as own:
        first = await scene.worker(database_url=own.dsn)
        watcher = scene.watch(stream)
        await watcher.has(3)
        own.stall()
        own.cut()
        await scene.fail_over()
        # As if the stream was created after it: the second claim then has the epoch and the number of the first.
        await until(lambda: fetched(scene, "SELECT true"))
        await scene.cluster.pool.execute("UPDATE baton.stream SET history = baton.current_history()")
        await scene.worker()
        await until(lambda: fetched(scene, "SELECT count(*) = 3 FROM baton.event"))
        claimed = "SELECT epoch FROM baton.stream"
        assert await scene.cluster.pool.fetchval(claimed) == 1
        own.lead_to(scene.replicas.dsn)
        own.resume()
        (run,) = first.slots.runs.values()
        scene.script.let("claimed twice", 4)
        await until(run.outbox.closed.is_set)
        scene.script.let("claimed twice", 5, end=True)
        await scene.has_ended(stream)
    # By another pod: this one holds what the first claim wrote, of a row that was made to look new.
    another = await scene.cluster.pod()
    reader = Watcher(scene.cluster.client, [another.url], NATIVE, stream)
    await reader.watch()
    reader.require_one_answer()
    assert (reader.code, len(reader.texts)) == ("completed", 5)
    assert len(await scene.log(stream)) == 6


@pytest.mark.slow
async def test_an_absent_worker_does_not_resume_a_stream_taken_over_in_the_lost_part(
    scene: Scene,
) -> None:
    await scene.start()
    async with Proxy(scene.replicas.dsn) as own:
        first = await scene.worker(database_url=own.dsn, lease_seconds=3)
        stream = await scene.create("taken over", 3)
        watcher = scene.watch(stream)
        await watcher.has(3)
        second = await scene.worker(lease_seconds=3)
        own.stall()
        # The others have gone on for more than half of the lease; the rest of it passes in the lost part.
        await beaten(scene, second, 17)
        await scene.replicas.part()
        scene.script.let("taken over", 4)
        await until(lambda: any(frame["type"] == "reset" for frame in watcher.frames))
        await watcher.has(4)
        await scene.fail_over()
        own.lead_to(scene.replicas.dsn)
        own.resume()
        own.cut()
        (run,) = first.slots.runs.values()
        await until(run.outbox.closed.is_set)
        await scene.has_ended(stream)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    watcher.require_one_answer()
    assert watcher.code in {REWOUND, "cursor_beyond_tail"}
    assert await scene.status(stream) == REWOUND
    reader = await scene.resumed(stream, 0)
    reader.require_one_answer()


@pytest.mark.slow
async def test_a_failover_longer_than_the_lease_ends_no_undamaged_answer(scene: Scene) -> None:
    await scene.start()
    for _ in range(2):
        await scene.worker()
    streams = [await scene.create(name, 3) for name in ("one", "two")]
    watchers = [scene.watch(stream) for stream in streams]
    for watcher in watchers:
        await watcher.has(3)
    await scene.replicas.part()
    scene.proxy.refuse()
    scene.proxy.cut()
    await scene.replicas.promote()
    scene.proxy.lead_to(scene.replicas.dsn)
    # Twice the lease. It is the fault, and nothing is awaited by it.
    await asyncio.sleep(2)
    for name in ("one", "two"):
        scene.script.let(name, 5, end=True)
    scene.proxy.resume()
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for watcher in watchers:
        watcher.require_one_answer()
        assert (watcher.code, len(watcher.texts)) == ("completed", 5)


async def test_a_producer_that_lost_nothing_goes_on(scene: Scene) -> None:
    await scene.start(pods=2)
    producer = await scene.open()
    watchers = {dialect: scene.watch(producer.stream_id, dialect) for dialect in DIALECTS}
    durable = durable_reader(scene, producer)
    await producer.say(3)
    for watcher in watchers.values():
        await watcher.has(3)
    await durable.poll(scene.pods[1].url)
    await scene.replicas.part()
    await scene.fail_over()
    await producer.say(5, end=True)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    assert producer.refusal is None
    for watcher in watchers.values():
        watcher.require_one_answer()
        assert (watcher.code, len(watcher.texts), watcher.connections) == ("completed", 5, 1)
    while not durable.closed:
        await durable.poll(scene.pods[1].url)
    assert [message.get("delta") for message in durable.messages[:-1]] == [f"<1.{number}>" for number in range(1, 6)]


@pytest.mark.slow
async def test_a_stream_whose_producer_lost_appends_ends_as_rewound(scene: Scene) -> None:
    await scene.start(pods=2, failover_settle_seconds=1)
    producer = await scene.open()
    watchers = {dialect: scene.watch(producer.stream_id, dialect) for dialect in DIALECTS}
    durable, early = durable_reader(scene, producer), durable_reader(scene, producer)
    await producer.say(3)
    for watcher in watchers.values():
        await watcher.has(3)
    survived = {dialect: len(watcher.frames) for dialect, watcher in watchers.items()}
    await early.poll(scene.pods[0].url)
    await scene.replicas.part()
    await producer.say(7)
    for watcher in watchers.values():
        await watcher.has(7)
    had = {dialect: len(watcher.frames) for dialect, watcher in watchers.items()}
    await durable.poll(scene.pods[0].url)
    await scene.fail_over()
    await producer.say(9, end=True)
    assert producer.refusal == (409, REWOUND, True)
    assert (await scene.status(producer.stream_id), len(await scene.log(producer.stream_id))) == (REWOUND, 4)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for watcher in watchers.values():
        watcher.require_one_answer()
        assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 7)
    await only_what_survived(scene, producer.stream_id, survived, had)
    assert await refused(scene, producer, durable.offset) == {BEYOND}
    while not early.closed:
        await early.poll(scene.pods[1].url)
    assert [message["type"] for message in early.messages] == ["text"] * 3 + ["done"]
    assert early.messages[-1]["error"]["code"] == REWOUND


@pytest.mark.slow
async def test_streams_whose_producers_prove_nothing_end_as_rewound(scene: Scene) -> None:
    """They have no number, a number that is their first, or are silent, and until then nobody takes the log for it."""
    await scene.start(pods=2, failover_settle_seconds=3)
    unnamed, replaced, silent = await scene.open(None), await scene.open(), await scene.open()
    producers = (unnamed, replaced, silent)
    watchers = [(producer, scene.watch(producer.stream_id, dialect)) for producer in producers for dialect in DIALECTS]
    for producer in producers:
        await producer.say(3)
    await scene.replicas.part()
    await asyncio.gather(*(producer.say(5) for producer in producers))
    for _, watcher in watchers:
        await watcher.has(5)
    await scene.fail_over()
    replaced.epoch, replaced.appends = 1, 0
    offset = offset_after(UUID(silent.stream_id), 5)
    await asyncio.gather(unnamed.say(9), replaced.say(9), refused(scene, silent, offset))
    assert (unnamed.refusal, replaced.refusal) == ((409, REWOUND, True), (409, REWOUND, True))
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    for producer, watcher in watchers:
        watcher.require_one_answer()
        assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 5)
        assert (await scene.status(producer.stream_id), len(await scene.log(producer.stream_id))) == (REWOUND, 4)


async def only_what_survived(scene: Scene, stream_id: str, survived: dict[str, int], had: dict[str, int]) -> None:
    """Come back with every cursor of every dialect to a stream that has ended as rewound."""
    for dialect in DIALECTS:
        for cursor in range(survived[dialect] + 1):
            assert (await scene.resumed(stream_id, cursor, dialect)).ended, (dialect, cursor)
        for cursor in range(survived[dialect] + 1, had[dialect] + 1):
            assert (await scene.resumed(stream_id, cursor, dialect)).refusal == BEYOND, (dialect, cursor)
        reader = await scene.resumed(stream_id, 0, dialect)
        assert (reader.code, len(reader.texts)) == (REWOUND if dialect == NATIVE else "failed", 3)


def durable_reader(scene: Scene, producer: Producer) -> DurableReader:
    return DurableReader(scene.cluster.client, producer.stream_id)


async def refused(scene: Scene, producer: Producer, offset: str) -> set[tuple[int, str]]:
    """Read after an offset in each way of the protocol, until it is refused for good; return the answers."""
    found = set()
    for live in ({}, {"live": "long-poll"}, {"live": "sse"}):
        for pod in scene.pods:
            while True:
                answer = await scene.cluster.client.get(
                    f"{pod.url}/v1/stream/{producer.stream_id}", params={"offset": offset, **live}
                )
                if answer.status_code != 503:
                    break
                assert "too fast" not in answer.text
                await asyncio.sleep(0.1)
            found.add((answer.status_code, answer.json()["code"]))
    return found


async def asks_to_wait(scene: Scene, pod: RunningPod, stream_id: str, had: dict[str, int]) -> None:
    """Come back with events that are lost."""
    for dialect in DIALECTS:
        path, params, headers = asking(dialect, stream_id, had[dialect])
        headers |= {"accept": "text/event-stream, application/problem+json"}
        answer = await scene.cluster.client.get(f"{pod.url}{path}", params=params, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text


async def beaten(scene: Scene, worker: Worker, times: int) -> None:
    """Wait until a worker has raised its counter this many more times."""
    counter = "SELECT heartbeat FROM baton.worker WHERE id = $1"
    before = await scene.cluster.pool.fetchval(counter, worker.lease.worker_id)

    async def raised() -> bool:
        return bool(await scene.cluster.pool.fetchval(counter, worker.lease.worker_id) >= before + times)

    await until(raised)


@pytest.mark.parametrize(("lost", "keep_seconds"), [(0, 0), (2, 0), (2, 10)])
async def test_an_append_detects_a_connection_that_survived_a_failover(
    cluster: Cluster, lost: int, keep_seconds: float
) -> None:
    """As behind a pooler: neither the connection nor a heartbeat gives any sign. Time moves for this test alone."""
    script, pod = Script(), await cluster.pod()
    quiet = {"worker_heartbeat_seconds": 60, "lease_seconds": 600}
    await cluster.worker({"replay": script}, **quiet, failover_keep_seconds=keep_seconds)
    await cluster.create(pod, input="one")
    for count in (1, 2, 3):
        # One batch each.
        script.let("one", count)
        await until(lambda: cluster.pool.fetchval("SELECT count(*) = $1 FROM baton.event", count))  # noqa: B023
    async with cluster.pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM baton.batch WHERE last_seq > $1", 3 - lost)
        await history.mark_restored(connection)
    script.let("one", 5, end=True)
    await until(lambda: cluster.pool.fetchval("SELECT status NOT IN ('queued', 'running') FROM baton.stream"))
    status = await cluster.pool.fetchval("SELECT coalesce(error_code, status) FROM baton.stream")
    numbers = [item["seq"] for item in await cluster.pool.fetch("SELECT seq FROM baton.event ORDER BY seq")]
    if lost and not keep_seconds:
        assert (status, numbers) == (REWOUND, [1, 2])
    else:
        assert (status, numbers) == ("completed", [1, 2, 3, 4, 5, 6])


@pytest.mark.slow
async def test_a_loss_that_only_the_row_of_an_ended_stream_shows(cluster: Cluster) -> None:
    """As behind a pooler, and where the timeline cannot be read: only the row shows it, to the worker that ended it."""
    script, pod = Script(), await cluster.pod()
    await cluster.worker({"replay": script}, **QUICK_WORKER)
    await cluster.create(pod, input="one")
    for count in (1, 2, 3):
        script.let("one", count, end=count == 3)
        await until(lambda: cluster.pool.fetchval("SELECT count(*) >= $1 FROM baton.event", count))  # noqa: B023
    await until(lambda: cluster.pool.fetchval("SELECT status = 'completed' FROM baton.stream"))
    async with cluster.pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM baton.batch WHERE last_seq > 1")
        await connection.execute(
            "UPDATE baton.stream SET status = 'running', finished_at = NULL, worker_id = (SELECT id FROM baton.worker)"
        )
    await until(lambda: cluster.pool.fetchval("SELECT status = 'completed' FROM baton.stream"))
    assert [row["seq"] for row in await cluster.pool.fetch("SELECT seq FROM baton.event ORDER BY seq")] == [1, 2, 3, 4]


async def test_a_worker_connected_to_a_standby_ends_no_stream(scene: Scene) -> None:
    await scene.start()
    await scene.worker(lease_seconds=20)
    stream = await scene.create("goes on", 3)
    watcher = scene.watch(stream)
    await watcher.has(3)
    await scene.replicas.part()
    scene.script.let("goes on", 5)
    await watcher.has(5)
    assert scene.replicas.standby is not None
    refused = scene.proxy.accepted
    scene.proxy.lead_to(named_database(scene.replicas.standby.dsn, DATABASE))
    scene.proxy.cut()
    scene.script.let("goes on", 7)
    await until(lambda: scene.proxy.accepted > refused + 12)
    scene.lead()
    scene.script.let("goes on", 8, end=True)
    await scene.has_ended(stream)
    assert (await scene.status(stream), len(await scene.log(stream))) == ("completed", 9)


async def counted_on(scene: Scene, worker: Worker) -> None:
    """Wait until pods have seen the worker's counter rise twice, as they do within seconds."""
    counter = "SELECT heartbeat FROM baton.worker WHERE id = $1"
    before = await scene.cluster.pool.fetchval(counter, worker.lease.worker_id)
    await until(
        lambda: all(
            pod.shard.verifier._watch._counters.get(worker.lease.worker_id or UUID(int=0), 0) > before + 1
            for pod in scene.pods
        )
    )


async def fetched(scene: Scene, query: str) -> bool:
    with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
        return bool(await scene.cluster.pool.fetchval(query))
    return False


async def until_answered(scene: Scene, stream_id: str, cursor: int, dialect: str = NATIVE) -> Watcher:
    """Come back as often as it takes until a pod has seen that the database is another one."""
    while True:
        watcher = scene.client(stream_id, dialect)
        watcher.frames = [{"type": "had before"}] * cursor
        with contextlib.suppress(TimeoutError, httpx2.TransportError):
            async with asyncio.timeout(1):
                await watcher.connect(scene.pods[0].url)
        if watcher.refusal is not None or watcher.ended:
            return watcher


# What follows restores something older over the same server, or beside it.


@pytest.mark.slow
async def test_a_point_in_time_restore_is_noticed_like_a_promotion(scene: Scene) -> None:
    await scene.start(failover_settle_seconds=1)
    worker = await scene.worker()
    stream = await scene.create("restored", 3)
    watcher = scene.watch(stream)
    await watcher.has(3)
    # The backup is older than what it is restored to.
    await scene.replicas.part()
    scene.script.let("restored", 4)
    await watcher.has(4)
    target = await scene.cluster.pool.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    scene.script.let("restored", 6)
    await watcher.has(6)
    await scene.cluster.kill(worker)
    await scene.replicas.restore_to(target)
    scene.lead()
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    assert (watcher.refusal, len(watcher.texts)) == (BEYOND, 6)
    await scene.worker()
    await scene.has_ended(stream)
    assert (await scene.status(stream), len(await scene.log(stream))) == (REWOUND, 5)


@pytest.mark.parametrize("remembers", ["worker", "pod", pytest.param("nobody", marks=pytest.mark.slow)])
async def test_a_restored_snapshot_is_noticed_or_marked_by_a_command(scene: Scene, remembers: str) -> None:
    """Files as they were, on the timeline that they were on: only those who saw more can know."""
    # Clients wait for a worker that comes back as long as it takes; one that is dead only costs time.
    await scene.start(failover_settle_seconds=60 if remembers == "worker" else 1)
    worker = await scene.worker(lease_seconds=20)
    stream = await scene.create("restored", 3)
    watcher = scene.watch(stream)
    await watcher.has(3)
    scene.proxy.refuse()
    await scene.replicas.take_snapshot()
    scene.proxy.resume()
    await until(lambda: fetched(scene, "SELECT true"))
    await counted_on(scene, worker)
    scene.script.let("restored", 6)
    await watcher.has(6)
    marker = await scene.cluster.pool.fetchval("SELECT marker FROM baton.history")
    if remembers != "worker":
        await scene.cluster.kill(worker)
    if remembers == "nobody":
        await scene.cluster.stop_pod(scene.pods[0])
    await scene.replicas.restore_snapshot()
    scene.lead()
    if remembers == "nobody":
        connection = await asyncpg.connect(scene.replicas.dsn)
        assert await history.mark_restored(connection) == 1
        await connection.close()
        await scene.close()
        scene.watching.clear()
        scene.pods.clear()
        await scene.start()
    await until(lambda: fetched(scene, f"SELECT marker <> '{marker}' FROM baton.history"))
    if remembers == "worker":
        # It still has what the snapshot lacks.
        scene.script.let("restored", 8, end=True)
        await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
        watcher.require_one_answer()
        assert (watcher.code, len(watcher.texts)) == ("completed", 8)
        return
    await scene.worker()
    await scene.has_ended(stream)
    assert (await scene.status(stream), len(await scene.log(stream))) == (REWOUND, 4)
    watcher.require_one_answer()
    assert (await until_answered(scene, stream, 7)).refusal == BEYOND
    assert (await until_answered(scene, stream, 4)).refusal == BEYOND
    assert (await until_answered(scene, stream, 3)).code == REWOUND


async def test_only_a_counter_that_falls_or_changes_starts_a_history(cluster: Cluster) -> None:
    worker = await cluster.worker({"replay": Script()}, worker_heartbeat_seconds=60, lease_seconds=600)
    begin = "SELECT baton.begin_history($1, $2, $3)"
    seen = await history.read(cluster.pool)
    counter = await cluster.pool.fetchval("SELECT heartbeat FROM baton.worker")
    for at_most in (counter, counter - 1, 0):
        assert await cluster.pool.fetchval(begin, seen, worker.lease.worker_id, at_most) == seen
    assert await cluster.pool.fetchval(begin, seen, UUID(int=1), counter + 1) == seen
    # Several see it, and the first one's new history is not replaced by the others.
    assert await cluster.pool.fetchval(begin, "other/00000001", worker.lease.worker_id, counter + 1) == seen
    begun = await cluster.pool.fetchval(begin, seen, worker.lease.worker_id, counter + 1)
    assert begun != seen
    assert await cluster.pool.fetchval(begin, seen, worker.lease.worker_id, counter + 1) == begun


ASK = {"role": "user", "content": "hello"}
CREATES: dict[str, dict[str, object]] = {
    "/v1/streams": {"input": "x"},
    "/v1/responses": {"model": "replay", "input": "x", "stream": True},
    "/v1/chat/completions": {"model": "replay", "messages": [ASK], "stream": True},
    "/v1/ai-sdk/chat": {
        "id": "c",
        "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}],
        "trigger": "submit-message",
    },
    **dict(door.creating() for door in DOORS.values()),
}


async def test_changes_on_a_standby_get_503_and_the_pod_leaves_it(scene: Scene) -> None:
    await scene.start()
    pod, client = scene.pods[0], scene.cluster.client
    stream_id = await scene.create("a", 1)
    await scene.replicas.caught_up()
    assert scene.replicas.standby is not None
    scene.proxy.lead_to(named_database(scene.replicas.standby.dsn, DATABASE))
    scene.proxy.cut()
    changes = [
        *(("POST", path, body) for path, body in CREATES.items()),
        ("POST", f"/v1/streams/{stream_id}/cancel", None),
        ("DELETE", f"/v1/streams/{stream_id}", None),
        ("POST", f"/v1/responses/resp_{stream_id}/cancel", None),
    ]
    # The first may meet no more than a connection that was cut.
    for method, path, body in (changes[0], *changes):
        answer = await client.request(method, f"{pod.url}{path}", json=body)
        assert answer.status_code == 503, (path, answer.text)
        assert int(answer.headers["retry-after"]) >= 1, path
    # Its address leads to the primary again, and nobody cuts the connections that stand.
    scene.proxy.lead_to(scene.replicas.dsn)

    async def created() -> bool:
        answer = await client.post(f"{pod.url}/v1/streams", json=CREATES["/v1/streams"])
        assert answer.status_code in {201, 503}
        return answer.status_code == 201

    await until(created)


@pytest.mark.slow
async def test_a_failover_that_loses_ends_loses_what_was_saved_and_both_come_back(scene: Scene) -> None:
    await scene.cluster.pool.execute(end_hook.TABLE)
    await scene.start()
    worker = await scene.worker(lease_seconds=20, on_end=end_hook.TARGET)
    names = [f"ended {number}" for number in range(5)]
    streams = {name: await scene.create(name, 2) for name in names}
    watchers = {name: scene.watch(stream) for name, stream in streams.items()}
    for watcher in watchers.values():
        await watcher.has(2)
    await scene.replicas.part()
    for name in names:
        scene.script.let(name, 4, end=True)
    for stream in streams.values():
        await scene.has_ended(stream)
    assert len(await end_hook.saved(scene.cluster.pool)) == len(names)
    await scene.fail_over()
    await asyncio.wait_for(asyncio.gather(*scene.watching), 40)

    async def are_back() -> bool:
        return len(await end_hook.saved(scene.cluster.pool)) == len(names)

    await until(are_back)
    for name, watcher in watchers.items():
        watcher.require_one_answer()
        assert (watcher.code, len(watcher.texts)) == ("completed", 4)
        assert len(await scene.log(streams[name])) == 5
    assert worker.metrics.appended_again >= len(names)
    assert await end_hook.unlike(scene.cluster.pool) == []


class Asking:
    """Asks, and waits for an answer once a test allows it."""

    continues = True

    def __init__(self) -> None:
        self.may_wait = asyncio.Event()

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        if request.run == 1:
            yield "May I? "
            await self.may_wait.wait()
            yield {"type": "wait", "for": {"type": "approval"}}
        yield f"You said {await request.receive(timeout=0)}."


async def start_asking(scene: Scene, *, lease_seconds: float = 20) -> tuple[Asking, Worker, str, Watcher]:
    """Start a pod, a worker and a stream that has asked, with a viewer who has seen it."""
    asking = Asking()
    await scene.start(failover_settle_seconds=1)
    worker = await scene.cluster.worker({"ask": asking}, **{**QUICK_WORKER, "lease_seconds": lease_seconds})
    stream = await scene.cluster.create(scene.pods[0], generator="ask")
    watcher = scene.watch(stream)
    await watcher.has(1)
    return asking, worker, stream, watcher


async def waits(scene: Scene, stream_id: str) -> None:
    async def is_waiting() -> bool:
        return await scene.status(stream_id) == "waiting"

    await until(is_waiting)


async def answer(scene: Scene, stream_id: str) -> None:
    """Send an input, again for as long as the pod has no database."""
    url, body = f"{scene.pods[0].url}/v1/streams/{stream_id}/inputs", {"data": "yes"}

    async def taken() -> bool:
        sent = await scene.cluster.client.post(url, json=body, headers={"idempotency-key": "k"})
        assert sent.status_code in {200, 201, 503}, sent.text
        return sent.status_code != 503

    await until(taken)


@pytest.mark.slow
@pytest.mark.parametrize("nothing_lost", [False, True])
async def test_a_waiting_stream_after_a_promotion(scene: Scene, nothing_lost: bool) -> None:
    """Nobody ends it before it is woken. Then it ends as rewound, unless the operator says that nothing was lost."""
    asking, _, stream, watcher = await start_asking(scene)
    asking.may_wait.set()
    await waits(scene, stream)
    await scene.replicas.part()
    await scene.fail_over()
    await until(lambda: fetched(scene, "SELECT true"))
    if nothing_lost:
        assert await history.declare_complete(scene.cluster.pool) == 1
    assert await scene.status(stream) == "waiting"
    await answer(scene, stream)
    await scene.has_ended(stream)
    assert await scene.status(stream) == ("completed" if nothing_lost else REWOUND)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    if nothing_lost:
        assert watcher.texts == ["May I? ", "You said yes."]


@pytest.mark.slow
async def test_a_wait_that_begins_right_after_a_promotion(scene: Scene) -> None:
    """The log is compared first, and the answer goes on: its worker has what was lost."""
    asking, worker, stream, watcher = await start_asking(scene)
    await scene.replicas.part()
    (run,) = worker.slots.runs.values()
    before = run.outbox.history
    await scene.replicas.promote()
    asking.may_wait.set()
    scene.lead()
    await waits(scene, stream)
    assert run.outbox.history != before
    await answer(scene, stream)
    await asyncio.wait_for(asyncio.gather(*scene.watching), 30)
    assert (watcher.code, watcher.texts) == ("completed", ["May I? ", "You said yes."])
