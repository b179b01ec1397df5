"""Relays over a real log: whatever is announced, in any order, each subscriber gets exactly what follows its cursor."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.cluster import Author, Cluster, ended, text
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.db import history, signing_keys, stream_ending
from baton.db.event_log import Append
from baton.db.notifications import change_payload, erasure_payload, pack, sign
from baton.db.signing_keys import SigningKeys
from baton.dialects import native
from baton.errors import CursorBeyondTail, StreamNotFound, Unavailable
from baton.observability.metrics import PodMetrics
from baton.outcome import Outcome
from baton.pod.notification_verifier import NotificationVerifier
from baton.pod.relay_registry import RelayRegistry
from baton.pod.settling import Settling
from baton.pod.subscriber import Subscriber
from baton.pod.subscriber_limits import SubscriberLimits

KEYS = SigningKeys({7: b"k" * 32}, "here/00000001")


class Watched(Settling):
    """Counts how often it was asked."""

    asked = 0

    async def unsettled(self, stream_ids: Collection[UUID]) -> set[UUID]:
        found = await super().unsettled(stream_ids)
        self.asked += 1
        return found


class Pod:
    """Relays without a server. The test takes the place of their listener."""

    def __init__(
        self, cluster: Cluster, *, window_bytes: int = 131_072, poll_seconds: float = 60, settle_seconds: float = 15
    ) -> None:
        self.metrics = PodMetrics()
        subscriber_limits = SubscriberLimits(self.metrics, max_pod=1000, max_tenant=1000, max_stream=1000)
        self.verifier = NotificationVerifier(cluster.pool, check_seconds=60, on_new_history=self._distrust_all)
        self.verifier.keys = KEYS
        self.settling = Watched(cluster.pool, settle_seconds, self.verifier.renew)
        self.relays = RelayRegistry(
            cluster.pool,
            self.metrics,
            self.metrics.of_database(""),
            subscriber_limits,
            verifier=self.verifier,
            settling=self.settling,
            window_bytes=window_bytes,
            poll_seconds=poll_seconds,
        )

    def _distrust_all(self) -> None:
        self.relays.distrust_all()

    @property
    def log_reads(self) -> float:
        return self.metrics.registry.get_sample_value("baton_log_reads_total") or 0

    def hear(self, *appends: Append, with_events: bool = True) -> None:
        for payload in pack(appends, time.time(), KEYS, with_events=with_events):
            self.relays.hear(payload)

    @contextlib.asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Run the poll that follows unsigned notifications."""
        task = asyncio.create_task(self.relays.run())
        try:
            yield
        finally:
            await ended(task)

    @contextlib.asynccontextmanager
    async def subscribed(self, author: Author, cursor: int = 0) -> AsyncIterator[Subscriber]:
        subscriber = await self.relays.subscribe(author.id, cursor)
        try:
            yield subscriber
        finally:
            self.relays.unsubscribe(subscriber)


async def take_all(subscriber: Subscriber) -> bytes:
    """Take all that the subscriber can take now."""
    received = b""
    while subscriber.cursor < subscriber.relay.tail:
        received += await take(subscriber)
    return received


async def take(subscriber: Subscriber) -> bytes:
    cursor = subscriber.cursor
    return b"".join(native.FULL.encode(batch, None, cursor).body for batch in await subscriber.take())


async def follow(subscriber: Subscriber) -> bytes:
    """Take until the end of the stream, as an event stream does."""
    received = await take(subscriber)
    while not (subscriber.finished or subscriber.relay.over):
        await subscriber.wait()
        received += await take(subscriber)
    return received


async def test_a_batch_that_follows_the_tail_is_applied_without_a_read(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.subscribed(author) as subscriber:
        reads = pod.log_reads
        pod.hear(await author.write(text(1), text(2), notify=False))
        assert await take_all(subscriber) == b"".join(author.frames)
        assert pod.log_reads == reads


async def test_a_known_batch_is_ignored(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    item = await author.write(text(1), text(2), notify=False)
    async with pod.subscribed(author, 1) as subscriber:
        reads = pod.log_reads
        pod.hear(item, item)
        assert subscriber.relay.tail == 2
        assert await take_all(subscriber) == author.frames[1]
        assert pod.log_reads == reads


async def test_a_batch_that_leaves_a_gap_makes_the_relay_read(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.subscribed(author) as subscriber:
        pod.hear(await author.write(text(1), notify=False))
        await author.write(text(2), notify=False)
        pod.hear(await author.write(text(3), notify=False))
        await until(lambda: subscriber.relay.tail == 3)
        assert await take_all(subscriber) == b"".join(author.frames)


async def test_an_announcement_without_events_makes_the_relay_read(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.subscribed(author) as subscriber:
        pod.hear(await author.write(text(1), notify=False), with_events=False)
        await asyncio.wait_for(subscriber.wait(), DEADLINE_SECONDS)
        assert await take_all(subscriber) == author.frames[0]


async def test_an_empty_hint_makes_the_relay_read(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.polling(), pod.subscribed(author) as subscriber:
        await author.write(text(1), notify=False)
        pod.relays.hear(change_payload(author.id))
        await asyncio.wait_for(subscriber.wait(), DEADLINE_SECONDS)
        assert await take_all(subscriber) == author.frames[0]


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "x",
        "a b c d",
        "\n\n",
        "{id} 1",
        "{id} x y e",
        "{id} 1 2 ",
        "{id} 1 2 e8\nonly one",
        "{id} 1 1 e9\ncut",
        "{id} 1 1 ex\n",
    ],
)
async def test_a_malformed_notification_changes_nothing(cluster: Cluster, payload: str) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.subscribed(author) as subscriber:
        pod.relays.hear(payload.replace("{id}", author.id.hex))
        pod.hear(await author.write(text(1), notify=False))
        assert await take_all(subscriber) == author.frames[0]


async def test_an_announcement_while_the_relay_loads_is_not_lost(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    joining = asyncio.create_task(pod.relays.subscribe(author.id, 0))
    await asyncio.sleep(0)
    pod.hear(await author.write(text(1), notify=False))
    subscriber = await joining
    await asyncio.wait_for(subscriber.wait(), DEADLINE_SECONDS)
    assert await take_all(subscriber) == author.frames[0]
    pod.relays.unsubscribe(subscriber)


async def test_subscribers_that_join_together_share_one_load(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    await author.write_texts([3, 4])
    subscribers = await asyncio.gather(*(pod.relays.subscribe(author.id, cursor % 8) for cursor in range(80)))
    assert pod.log_reads == 1
    assert len({id(subscriber.relay) for subscriber in subscribers}) == 1
    for cursor, subscriber in enumerate(subscribers):
        assert await take_all(subscriber) == b"".join(author.frames[cursor % 8 :])
        pod.relays.unsubscribe(subscriber)


async def test_cancelling_one_join_leaves_the_load_to_the_others(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    await author.write_texts([3])
    first = asyncio.create_task(pod.relays.subscribe(author.id, 0))
    second = asyncio.create_task(pod.relays.subscribe(author.id, 0))
    await asyncio.sleep(0)
    await ended(first)
    assert await take_all(await second) == b"".join(author.frames)
    assert pod.metrics.registry.get_sample_value("baton_subscribers") == 1


async def test_subscribers_behind_the_window_share_pages_and_catch_up(cluster: Cluster) -> None:
    pod, author = Pod(cluster, window_bytes=4096), await cluster.author()
    await author.write_texts([1] * 2000, padding=50, notify=False)
    await author.write(end=True, notify=False)
    async with contextlib.AsyncExitStack() as stack:
        joining = [stack.enter_async_context(pod.subscribed(author)) for _ in range(200)]
        subscribers = [await join for join in joining]
        received = await asyncio.gather(*map(follow, subscribers))
    assert set(received) == {b"".join(author.frames)}
    assert pod.log_reads <= 1 + 4


async def test_only_the_log_refuses_a_cursor_beyond_the_tail_not_a_lagging_relay(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.subscribed(author):
        await author.write_texts([5], notify=False)
        async with pod.subscribed(author, 4) as ahead:
            assert await take_all(ahead) == author.frames[4]
        with pytest.raises(CursorBeyondTail, match="5 events so far, and the cursor is 6"):
            await pod.relays.subscribe(author.id, 6)
    assert pod.metrics.registry.get_sample_value("baton_subscribers") == 0


async def test_an_unknown_stream_is_refused_and_leaves_nothing_behind(cluster: Cluster) -> None:
    pod, unknown = Pod(cluster, poll_seconds=0.01), uuid4()
    for _ in range(2):
        with pytest.raises(StreamNotFound):
            await pod.relays.subscribe(unknown, 0)
    assert pod.metrics.registry.get_sample_value("baton_subscribers") == 0


async def test_a_stream_created_after_a_failed_lookup_is_found(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    await cluster.pool.execute("UPDATE baton.stream SET id = $2 WHERE id = $1", author.id, other := uuid4())
    with pytest.raises(StreamNotFound):
        await pod.relays.subscribe(author.id, 0)
    await cluster.pool.execute("UPDATE baton.stream SET id = $1 WHERE id = $2", author.id, other)
    async with pod.subscribed(author) as subscriber:
        assert subscriber.cursor == 0


async def test_an_erased_stream_ends_for_its_subscribers(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.polling(), pod.subscribed(author) as subscriber:
        following = asyncio.create_task(follow(subscriber))
        await stream_ending.erase(cluster.pool, author.id)
        pod.relays.hear(erasure_payload(author.id))
        assert await asyncio.wait_for(following, DEADLINE_SECONDS) == b""


@pytest.mark.parametrize("ended", [False, True], ids=["shorter", "ended since"])
async def test_a_relay_that_the_log_contradicts_ends_for_subscribers_behind_it(cluster: Cluster, ended: bool) -> None:
    """The database has gone back in time, and the poll has not seen it yet."""
    pod, author = Pod(cluster, window_bytes=4096), await cluster.author()
    await author.write_texts([2, 2, 2], padding=3000)
    async with pod.subscribed(author) as subscriber:
        await cluster.pool.execute("DELETE FROM baton.batch WHERE last_seq > 2")
        if ended:
            await stream_ending.end_any(cluster.pool, author.id, stream_ending.REWOUND)
        received = await follow(subscriber)
    assert received == (b"" if ended else b"".join(author.frames[:2]))
    assert subscriber.relay.over
    assert not subscriber.relay.damaged
    # A client that comes back gets what the log holds.
    async with pod.subscribed(author) as subscriber:
        assert subscriber.relay.tail == (3 if ended else 2)


async def test_a_suspended_pod_reads_the_history_before_a_client_resumes(cluster: Cluster) -> None:
    """It has a terminal event in memory that the database lost, and another one has its number now."""
    pod, author = Pod(cluster), await cluster.author()
    await author.write(text(1), text(2), notify=False)
    await author.write(end=True, notify=False)
    async with pod.subscribed(author) as subscriber:
        await follow(subscriber)
    await pod.verifier.renew()
    async with cluster.pool.acquire() as connection:
        await connection.execute("DELETE FROM baton.batch WHERE terminal")
        await connection.execute("UPDATE baton.stream SET status = 'running'")
        await history.mark_restored(connection)
    await stream_ending.end_any(cluster.pool, author.id, stream_ending.REWOUND)
    pod.verifier._read_at -= 10
    with pytest.raises(CursorBeyondTail, match="events were lost after number 2"):
        await pod.relays.subscribe(author.id, 3)
    assert await take_from(pod, author, 2) == [b"log_rewound"]


async def take_from(pod: Pod, author: Author, cursor: int) -> list[bytes]:
    """Return the codes of the terminal events that a client gets after the cursor."""
    async with pod.subscribed(author, cursor) as subscriber:
        return re.findall(rb'"code":"(\w+)"', await follow(subscriber))


async def test_a_log_with_a_gap_ends_the_stream_and_never_loops(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    async with pod.polling(), pod.subscribed(author) as subscriber:
        await author.write(text(1), notify=False)
        author.lose(text(2))
        await author.write(text(3), notify=False)
        pod.relays.hear(change_payload(author.id))
        assert await asyncio.wait_for(follow(subscriber), DEADLINE_SECONDS) in (b"", author.frames[0])


async def test_a_log_that_went_back_ends_the_stream(cluster: Cluster) -> None:
    pod, author = Pod(cluster, poll_seconds=0.01), await cluster.author()
    await author.write_texts([1, 1, 1], notify=False)
    async with pod.subscribed(author) as subscriber:
        polling = asyncio.create_task(pod.relays.run())
        await cluster.pool.execute("DELETE FROM baton.batch WHERE first_seq = 3")
        await asyncio.wait_for(follow(subscriber), DEADLINE_SECONDS)
        await ended(polling)


async def test_a_page_missing_from_the_log_ends_the_stream(cluster: Cluster) -> None:
    pod, author = Pod(cluster, window_bytes=4096), await cluster.author()
    await author.write_texts([1] * 20, padding=500, notify=False)
    async with pod.subscribed(author) as subscriber:
        await cluster.pool.execute("DELETE FROM baton.batch")
        assert await asyncio.wait_for(follow(subscriber), DEADLINE_SECONDS) == b""


async def test_idle_relays_are_dropped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.pod.relay_registry.LINGER_SECONDS", 0)
    pod, author = Pod(cluster, poll_seconds=0.01), await cluster.author()
    polling = asyncio.create_task(pod.relays.run())
    async with pod.subscribed(author):
        assert pod.metrics.registry.get_sample_value("baton_relays") == 1
    await until(lambda: pod.metrics.registry.get_sample_value("baton_relays") == 0)
    await ended(polling)


# What may happen to a stream, its notifications and its subscribers, in any order.
STEPS = st.one_of(
    *[st.tuples(st.just("write"), st.integers(1, 4))] * 3,
    *[st.tuples(st.just("announce"), st.integers(0, 4))] * 3,
    st.tuples(st.just("announce bare"), st.integers(0, 4)),
    st.tuples(st.just("hint"), st.just(0)),
    st.tuples(st.just("forge"), st.integers(0, 5)),
    st.tuples(st.just("join"), st.integers(0, 100)),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("pause"), st.integers(0, 3)),
    st.tuples(st.just("settle"), st.just(0)),
)


# A stranger has no key, has a stolen key that was replaced, or repeats what was signed for another place.
STRANGERS = [
    signing_keys.NONE,
    SigningKeys({7: b"x" * 32}, KEYS.history),
    SigningKeys({8: b"k" * 32}, KEYS.history),
    SigningKeys(KEYS.secrets, "here/00000002"),
]


def forged(author: Author, number: int) -> str:
    """A forged notification that the stream continues, ends, or is gone."""
    seq = len(author.lines) + 1
    outcome = Outcome.completed("stop") if number % 2 else None
    line = outcome.encode() if outcome else text(666)
    (payload,) = pack([Append(author.id, 1, seq, seq, line, outcome)], time.time(), STRANGERS[number % len(STRANGERS)])
    match number:
        case 4:
            return erasure_payload(author.id)
        case 5:
            body, _, stamp = payload.rpartition("\n@")
            return sign(KEYS, "baton_queue", body, stamp)
    return payload


class Story:
    """Plays steps. Each subscriber is a task that keeps what it received."""

    def __init__(self, pod: Pod, author: Author) -> None:
        self.pod = pod
        self.author = author
        self.appends: list[Append] = []
        self.readers: list[tuple[int, asyncio.Task[bytes]]] = []

    async def play(self, step: str, number: int) -> None:
        match step:
            case "write":
                lines = [text(number, 300)] * number
                self.appends.append(await self.author.write(*lines, notify=False))
            case "announce" | "announce bare" if self.appends:
                item = self.appends[-1 - number % len(self.appends)]
                self.pod.hear(item, with_events=step == "announce")
            case "hint":
                self.pod.relays.hear(change_payload(self.author.id))
            case "forge":
                self.pod.relays.hear(forged(self.author, number))
            case "join":
                cursor = number % (len(self.author.lines) + 1)
                self.readers.append((cursor, asyncio.create_task(self.read(cursor))))
            case "leave" if self.readers:
                await ended(self.readers.pop(number % len(self.readers))[1])
            case "pause":
                for _ in range(number):
                    await asyncio.sleep(0)
            case "settle":
                await self.author.pool.execute("SELECT")

    async def read(self, cursor: int) -> bytes:
        async with self.pod.subscribed(self.author, cursor) as subscriber:
            return await follow(subscriber)

    async def end(self) -> None:
        """End the stream; all must get the rest from this one hint."""
        await self.author.write(end=True, notify=False)
        self.pod.relays.hear(change_payload(self.author.id))
        for cursor, reader in self.readers:
            received = await asyncio.wait_for(reader, DEADLINE_SECONDS)
            assert received == b"".join(self.author.frames[cursor:])


@given(
    steps=st.lists(STEPS, min_size=12, max_size=40),
    window_bytes=st.sampled_from([131_072, 700, 1]),
    loaded_first=st.booleans(),
)
@settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
async def test_any_interleaving_gives_each_subscriber_exactly_the_log(
    cluster: Cluster, steps: Sequence[tuple[str, int]], window_bytes: int, loaded_first: bool
) -> None:
    story = Story(Pod(cluster, window_bytes=window_bytes), await cluster.author())
    async with story.pod.polling():
        await story.play("write", 1)
        await story.play("join", 0)
        if loaded_first:
            await until(lambda: story.pod.log_reads == 1)
        for step, number in steps:
            await story.play(step, number)
        await story.end()


# After a failover that lost what relays hold, until the stream's worker has appended it again.


async def lose(cluster: Cluster, author: Author, after: int) -> list[asyncpg.Record]:
    """Lose what a stream has after an event, in a new history; return the lost batches."""
    async with cluster.pool.acquire() as connection, connection.transaction():
        lost = await connection.fetch("DELETE FROM baton.batch WHERE last_seq > $1 RETURNING *", after)
        await history.mark_restored(connection)
    return [row for row in lost if row["stream_id"] == author.id]


async def put_back(cluster: Cluster, lost: list[asyncpg.Record]) -> None:
    async with cluster.pool.acquire() as connection:
        await connection.executemany(f"INSERT INTO baton.batch VALUES ({PLACES})", [tuple(row) for row in lost])


async def settle(cluster: Cluster) -> None:
    await cluster.pool.execute("UPDATE baton.stream SET history = baton.current_history()")


PLACES = ", ".join(f"${number}" for number in range(1, 7))


async def test_a_cursor_beyond_the_log_has_to_wait_while_its_events_may_come_back(cluster: Cluster) -> None:
    pod, author = Pod(cluster), await cluster.author()
    await author.write_texts([1, 1, 1], notify=False)
    lost = await lose(cluster, author, 1)
    with pytest.raises(Unavailable) as refusal:
        await pod.relays.subscribe(author.id, 3)
    assert refusal.value.retry_after_seconds == 1
    await put_back(cluster, lost)
    await settle(cluster)
    async with pod.subscribed(author, 3) as subscriber:
        assert subscriber.cursor == 3
    with pytest.raises(CursorBeyondTail):
        await pod.relays.subscribe(author.id, 4)


async def test_a_cursor_beyond_the_log_is_refused_once_the_pod_has_waited(cluster: Cluster) -> None:
    pod, author = Pod(cluster, settle_seconds=0.2), await cluster.author()
    await author.write_texts([1, 1], notify=False)
    await lose(cluster, author, 1)
    with pytest.raises(Unavailable):
        await pod.relays.subscribe(author.id, 2)

    async def refused() -> bool:
        try:
            await pod.relays.subscribe(author.id, 2)
        except Unavailable:
            return False
        except CursorBeyondTail:
            return True
        raise AssertionError

    await until(refused)


async def test_a_client_that_returns_before_a_restore_is_noticed_is_not_refused(cluster: Cluster) -> None:
    """The history does not change by itself when a snapshot is restored. The pod remembers a worker's counter."""
    pod, author = Pod(cluster), await cluster.author()
    await author.write_texts([1, 1], notify=False)
    worker = "INSERT INTO baton.worker (name, generators, concurrency, heartbeat) VALUES ('w', '{}', 1, 7)"
    await cluster.pool.execute(worker)
    await pod.verifier._read()
    async with cluster.pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM baton.batch WHERE last_seq > 1")
        await connection.execute("UPDATE baton.worker SET heartbeat = 5 WHERE name = 'w'")
    pod.verifier._read_at -= 60
    with pytest.raises(Unavailable):
        await pod.relays.subscribe(author.id, 2)


async def test_a_relay_stays_while_what_it_holds_may_come_back(cluster: Cluster) -> None:
    pod, author = Pod(cluster, poll_seconds=0.01), await cluster.author()
    await author.write_texts([1, 1, 1], notify=False)
    async with pod.polling(), pod.subscribed(author, 1) as subscriber:
        following = asyncio.create_task(follow(subscriber))
        lost = await lose(cluster, author, 1)
        pod.relays.distrust_all()
        await asked_for_history(pod, 3)
        assert not subscriber.relay.over
        await put_back(cluster, lost)
        await settle(cluster)
        await author.write(text(4), end=True, notify=False)
        assert await asyncio.wait_for(following, DEADLINE_SECONDS) == b"".join(author.frames[1:])


async def test_a_relay_goes_when_what_it_holds_does_not_come_back(cluster: Cluster) -> None:
    pod, author = Pod(cluster, poll_seconds=0.01), await cluster.author()
    await author.write_texts([1, 1, 1], notify=False)
    async with pod.polling(), pod.subscribed(author, 3) as subscriber:
        following = asyncio.create_task(follow(subscriber))
        await lose(cluster, author, 1)
        await asked_for_history(pod, 3)
        assert not following.done()
        await stream_ending.end_any(cluster.pool, author.id, stream_ending.REWOUND)
        assert await asyncio.wait_for(following, DEADLINE_SECONDS) == b""
        assert subscriber.relay.over


async def asked_for_history(pod: Pod, times: int) -> None:
    """Wait until the pod has compared a relay that is longer than the log this often."""
    before = pod.settling.asked
    await until(lambda: pod.settling.asked >= before + times)


async def test_a_page_that_comes_back_while_it_is_read_is_no_damage(cluster: Cluster) -> None:
    pod, author = Pod(cluster, window_bytes=4096), await cluster.author()
    await author.write_texts([1] * 4, padding=3000, notify=False)
    async with pod.subscribed(author) as subscriber:
        lost = await lose(cluster, author, 0)
        async with cluster.pool.acquire() as connection, connection.transaction():
            # The first read finds nothing. The next statement, which reads the stream's row, waits.
            await connection.execute("LOCK TABLE baton.stream IN ACCESS EXCLUSIVE MODE")
            following = asyncio.create_task(subscriber.take())
            await until(lambda: pod_waits_for_a_lock(cluster))
            await connection.executemany(f"INSERT INTO baton.batch VALUES ({PLACES})", [tuple(row) for row in lost])
        assert (await following)[0].first_seq == 1
        assert not subscriber.relay.over


async def test_a_page_that_may_come_back_ends_no_relay(cluster: Cluster) -> None:
    pod, author = Pod(cluster, window_bytes=4096), await cluster.author()
    await author.write_texts([1] * 4, padding=3000, notify=False)
    async with pod.subscribed(author) as subscriber:
        lost = await lose(cluster, author, 0)
        with pytest.raises(Unavailable):
            await subscriber.take()
        assert not subscriber.relay.over
        await put_back(cluster, lost)
        assert (await subscriber.take())[0].first_seq == 1


async def pod_waits_for_a_lock(cluster: Cluster) -> bool:
    found: bool = await cluster.pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    return found
