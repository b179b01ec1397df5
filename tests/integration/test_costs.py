"""What a token costs, in counts: they are the same on every machine, and noise cannot change them.

`make bench` measures the times that follow from them. A change that raises one of these numbers will cost time there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections import defaultdict
from collections.abc import AsyncGenerator
from types import CoroutineType
from typing import Any, cast

import asyncpg
import orjson
import pytest
from tests.support import external
from tests.support.cluster import Cluster, RunningPod, text
from tests.support.follower import following, frames_after
from tests.support.logbook import connected, ended, queue, until, until_tail, working

from baton.db import (
    event_log,
    external_appends,
    notifications,
    stream_creation,
    stream_ending,
    stream_queue,
    streams,
    worker_rows,
)
from baton.db.postgres import Connection, Pool, pool
from baton.db.stream_creation import Limits, NewStream
from baton.db.stream_states import State
from baton.events import encode_text
from baton.generators import GenerationRequest, continues
from baton.generators.protocol import Yielded
from baton.observability.metrics import WorkerMetrics
from baton.outcome import Outcome
from baton.pod import event_stream

STREAMS = 40
TOKENS = 30
WORD = " a word"


class Conductor:
    """A generator whose streams all yield on a beat, so that a flush has events of each."""

    def __init__(self) -> None:
        self.waiting = 0
        self._beat = asyncio.Condition()

    async def __call__(self, request: GenerationRequest, /) -> AsyncGenerator[str, None]:
        for _ in range(TOKENS):
            async with self._beat:
                self.waiting += 1
                await self._beat.wait()
            yield WORD

    async def beat(self) -> None:
        """Have each stream yield once."""
        await until(lambda: self.waiting == STREAMS)
        self.waiting = 0
        async with self._beat:
            self._beat.notify_all()


async def test_a_flush_of_many_streams_is_one_statement_and_few_notifications(cluster: Cluster) -> None:
    conductor = Conductor()
    worker = await cluster.worker(
        {"test": conductor}, worker_concurrency=STREAMS, flush_interval_milliseconds=100, sse_keep_alive_seconds=0.2
    )
    pod = await cluster.pod()
    ids = [await cluster.create(pod, generator="test") for _ in range(STREAMS)]
    for _ in range(TOKENS):
        await conductor.beat()
    ended = {"generator": "test", "model": "", "status": "completed", "code": "stop"}
    await until(lambda: value(worker.metrics, "baton_streams_ended_total", **ended) == STREAMS)
    rows = await cluster.pool.fetchval("SELECT count(*) FROM baton.batch")
    flushes = value(worker.metrics, "baton_flush_seconds_count")
    # First and last events are flushed at once, alone. All other events of a beat, or of several, share a flush.
    assert flushes <= 2 * STREAMS + TOKENS
    assert rows <= STREAMS * (TOKENS + 1)
    assert value(worker.metrics, "baton_flush_events_sum") == STREAMS * (TOKENS + 1)
    size = value(worker.metrics, "baton_flushed_bytes_total") + rows * len(f"{ids[0]} 10000 10000 e1000\n")
    assert value(worker.metrics, "baton_notifications_sent_total") <= flushes + 2 * size / notifications.MAX_BYTES


async def test_a_live_batch_costs_one_write_for_each_client_and_no_query(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    author = await cluster.author()
    woken = 0
    flush = event_stream.EventStream._flush

    async def counted(self: event_stream.EventStream, *given: object, **options: object) -> None:
        nonlocal woken
        woken += 1
        await flush(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(event_stream.EventStream, "_flush", counted)
    async with contextlib.AsyncExitStack() as stack:
        followers = [await stack.enter_async_context(following(cluster.client, pod.url, author.id)) for _ in range(10)]
        await until(lambda: waiting(pod) == 10)
        reads, begun = pod.metric("baton_log_reads_total"), woken
        for number in range(20):
            await author.write(*[text(number)] * 5)
        for follower in followers:
            assert len(await follower.events(100)) == 100
        assert pod.metric("baton_log_reads_total") == reads
        assert pod.metric("baton_delivery_seconds_count") == 200
        # Each was written in the turn in which it was heard: no task had to wake up for it.
        assert woken == begun
        await author.write(end=True)
        for follower in followers:
            assert await follower.rest() == author.frames


async def test_a_waiting_client_costs_one_task_and_few_frames(cluster: Cluster) -> None:
    pod = await cluster.pod(allowed_origins=frozenset({"*"}))
    author = await cluster.author()
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(following(cluster.client, pod.url, author.id, origin="https://example.com"))
        await until(lambda: waiting(pod) == 5)
        # One task each: the server's frame, three around the middleware, and five of the event stream's own.
        await until(lambda: sorted(map(depth, asyncio.all_tasks() - before)) == [9] * 5)


def depth(task: asyncio.Task[object]) -> int:
    """Return how many frames a task is suspended in."""
    frames = 0
    inner: object = task.get_coro()
    while isinstance(inner, CoroutineType):
        frames, inner = frames + 1, inner.cr_await
    return frames


async def test_a_storm_reads_each_stream_twice_at_most(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    authors = [await cluster.author() for _ in range(20)]
    for author in authors:
        await author.write_texts([2] * 50, notify=False)
        await author.write(end=True, notify=False)
    await asyncio.gather(
        *(frames_after(cluster.client, pod.url, author.id, 60) for author in authors for _ in range(5))
    )
    assert pod.metric("baton_log_reads_total") <= 2 * len(authors)


@pytest.mark.parametrize(("tokens", "most"), [(1, 250), (2, 150), (20, 60)])
async def test_the_log_writes_few_bytes_of_wal_per_token(cluster: Cluster, tokens: int, most: int) -> None:
    authors = [await cluster.author() for _ in range(50)]
    lines = [encode_text(WORD)] * tokens
    async with cluster.pool.acquire() as connection:
        for number in range(20):
            first = number * tokens + 1
            items = [event_log.Append(author.id, 1, first, first + tokens - 1, b"\n".join(lines)) for author in authors]
            explained = Explained(connection)
            await event_log.append(cast(Connection, explained), items)
            plan = explained.plan
            assert plan["Actual Rows"] == len(authors)
            if plan["WAL FPI"] == 0:
                break
        else:
            pytest.fail("each append wrote whole pages")
    # The row, its place in the key, and now and then a split of a page of it.
    assert plan["WAL Records"] <= 2.2 * len(authors)
    assert plan["WAL Bytes"] / (tokens * len(authors)) < most


async def test_a_state_costs_a_row_and_no_statement_of_its_own(cluster: Cluster) -> None:
    """A state of 1 KiB with each of 50 streams' batches, which replaces the one before it."""
    authors = [await cluster.author() for _ in range(50)]
    line, content = encode_text(WORD), b'"' + b"x" * 1022 + b'"'
    async with cluster.pool.acquire() as connection:
        for number in range(1, 20):
            states = [State(number, content, None, number - 1 or None) for _ in authors]
            items = [
                event_log.Append(author.id, 1, number, number, line, state=state)
                for author, state in zip(authors, states, strict=True)
            ]
            explained = Explained(connection)
            await event_log.append(cast(Connection, explained), items)
            assert explained.statements == 1
            if explained.plan["WAL FPI"] == 0 and number > 1:
                break
        else:
            pytest.fail("each append wrote whole pages")
        assert await connection.fetchval("SELECT count(*) FROM baton.stream_state") == len(authors)
    # The batch, the state and their places in their keys; the confirmation of the state's; and the delete.
    assert explained.plan["WAL Records"] <= 6.5 * len(authors)
    assert explained.plan["WAL Bytes"] / len(authors) < 250 + 1024 + 350


async def test_a_group_of_appends_is_one_statement_that_updates_in_place(dsn: str) -> None:
    """50 producers append one message each, on the states that their pod remembers."""
    async with pool(dsn, size=1, timeout_seconds=10) as connections:
        ids = [(await external.create(connections)).stream_id for _ in range(50)]
    line = encode_text(WORD)
    async with connected(dsn) as connection:
        states = await external_appends.read(connection, [(stream_id, "a") for stream_id in ids])
        for number in range(20):
            writes = []
            for stream_id in ids:
                state = states[stream_id]
                before, sent = state.tail, external.request(stream_id, [line], by=("a", 0, number))
                state.accept(sent, max_bytes=1 << 20)
                writes.append(external_appends.Write(stream_id, before, state, 1, line, len(line), 1, ["a"], None))
            explained = Explained(connection)
            await external_appends.write(cast(Connection, explained), writes)
            assert explained.statements == 1
            if explained.plan["WAL FPI"] == 0 and number > 1:
                break
        else:
            pytest.fail("each append wrote whole pages")
        tails = await connection.fetch("SELECT tail FROM baton.external_stream")
        assert {row[0] for row in tails} == {number + 1}
    # The batch and its place in the key; the locks and the new versions of the stream's and the producer's row.
    changes = [plan for plan in explained.plan["Plans"] if plan["Node Type"] == "ModifyTable"]
    assert len(changes) == 3
    assert sum(plan["WAL Records"] for plan in changes) <= 6.5 * len(ids)
    assert sum(plan["WAL Bytes"] for plan in changes) / len(ids) < 600


async def test_a_stream_without_states_or_steps_does_nothing_for_them(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = spied(monkeypatch)
    async with connected(dsn) as connection, working(dsn):
        await ended(connection, await queue(dsn))
    assert not [
        said for said in itertools.chain(*statements.values()) if re.search("stream_state|step|stop_call", said)
    ]
    # The first event, and the rest with the end.
    assert sum("INSERT INTO baton.batch" in said for said in statements["baton worker append"]) <= 3
    assert "baton worker records" not in statements


async def test_a_run_that_continues_reads_the_log_and_its_state_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = spied(monkeypatch)

    @continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        for number in range(request.state or 0, 10):
            yield await request.step("word", lambda _number: WORD, number)
            yield {"type": "state", "state": number + 1}
            if (request.run, number) == (1, 4):
                await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, may_continue=True)
        async with working(dsn, generate):
            await until_tail(connection, stream_id, 5)
        statements.clear()
        async with working(dsn, generate):
            await ended(connection, stream_id)
    reads = [said for said in statements["baton worker records"] if not said.lstrip().startswith("WITH claimed")]
    # A page of the log and the empty one after it, the state, and the results of all steps.
    assert [re.findall(r"FROM baton\.(\w+)", said)[0] for said in reads] == ["batch", "batch", "stream_state", "step"]
    # The reaper reads whether the answer has grown; the claim reads the tail, and what was used.
    assert sum("FROM baton.batch" in said for said in statements["baton worker control"]) == 3


def spied(monkeypatch: pytest.MonkeyPatch) -> defaultdict[str, list[str]]:
    """Keep the statements of connections to come, by the names of these. Those that set up a session are left out."""
    statements: defaultdict[str, list[str]] = defaultdict(list)
    connect = asyncpg.connect

    async def spying(*given: Any, **options: Any) -> Any:
        connection = await connect(*given, **options)
        name = options.get("server_settings", {}).get("application_name", "")

        def note(record: Any) -> None:
            if not record.query.startswith("SET"):
                statements[name].append(record.query)

        connection.add_query_logger(note)
        return connection

    monkeypatch.setattr(asyncpg, "connect", spying)
    return statements


async def test_only_notes_of_watchers_update_in_place(cluster: Cluster) -> None:
    """What docs/database.md says about HOT updates. Another index would make the notes more expensive."""
    async with pool(cluster.dsn, size=1, timeout_seconds=10) as one:  # whose counts are sent when it is told to
        new = NewStream("test", None, {}, "retry", limits=Limits(unwatched_timeout=600))
        stream_id = (await stream_creation.create(one, new))[0].id
        async with one.acquire() as connection:
            worker_id = await worker_rows.register(connection, "w", ["test"], 1)
            place = await worker_rows.place(connection, worker_id)
            assert len(await stream_queue.claim(connection, worker_id, ["test"], 1, place=place)) == 1
        assert await updates(one) == (1, 0)
        for _ in range(3):
            await streams.note_watched(one, [stream_id])
        assert await updates(one) == (4, 3)
        assert await stream_ending.end_any(one, stream_id, Outcome.cancelled())
        updated, in_place = await updates(one)
        assert (updated > 4, in_place) == (True, 3)


async def updates(one: Pool) -> tuple[int, int]:
    """Return how many rows of `stream` were updated, and how many of these in place."""
    await one.execute("SELECT pg_stat_force_next_flush()")
    counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'baton.stream'::regclass"
    (row,) = await one.fetch(counted)
    return row[0], row[1]


class Explained:
    """A connection that keeps the plan of a statement instead of its result."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.plan: dict[str, Any] = {}
        self.statements = 0

    def is_in_transaction(self) -> bool:
        return False

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        self.statements += 1
        explain = f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {statement}"
        self.plan = orjson.loads(await self._connection.fetchval(explain, *arguments))[0]["Plan"]
        return []


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


def waiting(pod: RunningPod) -> int:
    """How many subscribers wait for events."""
    return sum(item.waiting for relay in pod.shard.relays._relays.values() for item in relay.subscribers)
