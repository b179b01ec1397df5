"""A role that may connect, and nothing else: it hears all notifications, and sends whatever it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.watchers import Script, Watcher
from tests.support.cluster import Author, Cluster, RunningPod, text
from tests.support.logbook import until
from tests.support.roles import PASSWORD, as_role

from baton.db import event_log, history, notifications, signing_keys, stream_ending, stream_queue, streams, worker_rows
from baton.db.event_log import Append
from baton.db.notifications import CANCEL_CHANNEL, EVENTS_CHANNEL, KILL_CHANNEL, KILL_WORKER_CHANNEL, QUEUE_CHANNEL
from baton.db.postgres import Connection
from baton.db.signing_keys import SigningKeys
from baton.outcome import Outcome
from baton.pod.relay_registry import DOUBT_SECONDS
from baton.worker.worker import CLAIM_PAUSE_SECONDS

CHANNELS = (EVENTS_CHANNEL, CANCEL_CHANNEL, QUEUE_CHANNEL, KILL_CHANNEL, KILL_WORKER_CHANNEL)
WORKER = "worker-1"
PROJECT = Path(__file__).parent.parent.parent
# The last commit whose workers sign nothing.
UNSIGNED = "742df4c"
MAX_BYTES = 7999


class Stranger:
    """Its session. `heard` is what others have sent, on whatever channel."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, dsn: str) -> AsyncIterator[Stranger]:
        """Make the role, and connect."""
        role = f"stranger_{secrets.token_hex(4)}"
        owner = await asyncpg.connect(dsn)
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        connection = await asyncpg.connect(as_role(dsn, role))
        stranger = cls(connection)
        try:
            for channel in CHANNELS:
                await connection.add_listener(channel, stranger._hear)
            yield stranger
        finally:
            await connection.close()
            await owner.execute(f"DROP ROLE {role}")
            await owner.close()

    def _hear(self, _connection: Any, pid: int, _channel: str, payload: Any) -> None:
        if pid != self.connection.get_server_pid():
            self.heard.append(str(payload))

    async def send(self, channel: str, payload: str) -> None:
        """Send it, cut to what Postgres takes."""
        payload = payload.replace("\0", "").encode(errors="ignore")[:MAX_BYTES].decode(errors="ignore")
        await self.connection.execute("SELECT pg_notify($1, $2)", channel, payload)


class Play:
    """Two streams that are followed, one that waits in the queue, and what a stranger does meanwhile."""

    def __init__(self, cluster: Cluster, pods: Sequence[RunningPod], script: Script, stranger: Stranger) -> None:
        self.cluster, self.pods, self.script, self.stranger = cluster, pods, script, stranger
        self.said = 1

    async def begin(self) -> None:
        self.names = [secrets.token_hex(4) for _ in range(2)]
        for name in self.names:
            self.script.let(name, 1)
        self.ids = [await self.cluster.create(self.pods[0], input=name) for name in self.names]
        self.queued = await self.cluster.create(self.pods[0], generator="later")
        self.watchers = [
            Watcher(self.cluster.client, [pod.url], "native", stream) for stream in self.ids for pod in self.pods
        ]
        self.tasks = [asyncio.create_task(watcher.watch()) for watcher in self.watchers]
        for watcher in self.watchers:
            await watcher.has(1)

    async def end(self) -> None:
        """Let the streams end, and hold what the viewers got against the log."""
        for name in self.names:
            self.script.let(name, self.said, end=True)
        await asyncio.wait_for(asyncio.gather(*self.tasks), 60)
        for watcher in self.watchers:
            rows = await self.cluster.pool.fetch(
                "SELECT data FROM baton.event WHERE stream_id = $1 ORDER BY seq", UUID(watcher.stream_id)
            )
            assert watcher.frames == [orjson.loads(row["data"]) for row in rows]
            assert (watcher.code, len(watcher.texts)) == ("completed", self.said)
            assert watcher.connections == 1
        stream = await streams.get(self.cluster.pool, UUID(self.queued))
        assert stream is not None
        assert (stream.status, stream.cancel_requested_at) == ("queued", None)
        assert await stream_ending.erase(self.cluster.pool, stream.id)

    def say(self) -> None:
        self.said += 1
        for name in self.names:
            self.script.let(name, self.said)

    async def take(self, step: Step) -> None:
        kind, channel, number, words = step
        if kind == "say":
            self.say()
        else:
            await self.stranger.send(channel, self.forge(kind, number, words))

    def forge(self, kind: str, number: int, words: str) -> str:
        stream = UUID([*self.ids, self.queued][number % 3])
        heard = self.stranger.heard
        genuine, other = heard[number % len(heard)], heard[(number // 7) % len(heard)]
        at = number % (len(genuine) + 1)
        sent_soon = notifications.stamp_of(time.time() + 60)
        forms = {
            "words": words,
            "replayed": genuine,
            "mutated": genuine[:at] + words + genuine[at + number % 3 :],
            "truncated": genuine[:at],
            "swapped signature": genuine.rpartition("\n#")[0] + "\n#" + other.rpartition("\n#")[2],
            "next": self._next(stream, number, words),
            "gone": notifications.erasure_payload(stream),
            "hint": notifications.change_payload(stream),
            "id": (str(stream), stream.hex, stream.urn, f"{{{stream}}}")[number % 4],
            "pod": f"{self.pods[number % 2].name}\n#{number}:{words}\n@{sent_soon}",
            "worker": f"{WORKER}\n#{number}:{words}\n@{sent_soon}",
        }
        return forms[kind]

    def _next(self, stream: UUID, number: int, words: str) -> str:
        """What would follow the tail, or end the stream, if it were signed."""
        seq = self.said + 1 + number % 2
        outcome = (None, Outcome.completed("stop"), stream_ending.REWOUND, Outcome.cancelled())[number % 4]
        line = outcome.encode() if outcome else text(666)
        sealing = (
            SigningKeys({1 + number % 3: words.encode(errors="ignore").ljust(32)}, "")
            if number % 5
            else signing_keys.NONE
        )
        return notifications.pack([Append(stream, 1, seq, seq, line, outcome)], time.time(), sealing)[0]


Step = tuple[str, str, int, str]
KINDS = ("say", "say", "words", "replayed", "mutated", "truncated", "swapped signature", "next", "next")
STEPS: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from((*KINDS, "gone", "hint", "id", "pod", "worker")),
    st.sampled_from((*CHANNELS, EVENTS_CHANNEL, CANCEL_CHANNEL)),
    st.integers(0, 1 << 20),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
)


@contextlib.asynccontextmanager
async def stage(cluster: Cluster, *, payloads: bool) -> AsyncIterator[Play]:
    script = Script()
    pods = [await cluster.pod(notify_payloads=payloads, demo=True) for _ in range(2)]
    # Its lease is longer than the test, so that it does not bury the worker that never beats.
    given: dict[str, Any] = {"notify_payloads": payloads, "worker_concurrency": 50, "lease_seconds": 600}
    await cluster.worker({"replay": script}, demo=True, worker_name=WORKER, **given)
    # Somebody offers it, so that pods accept it, and has no slot free.
    await cluster.pool.execute("INSERT INTO baton.worker (name, generators, concurrency) VALUES ('busy', '{later}', 1)")
    async with Stranger.connected(cluster.dsn) as stranger:
        yield Play(cluster, pods, script, stranger)


@pytest.fixture
async def play(
    request: pytest.FixtureRequest, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Play]:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *about: killed.append(about))
    async with stage(cluster, payloads=request.param) as play:
        yield play
        assert killed == []
        assert not any(pod.pod.broken for pod in play.pods)


@pytest.mark.slow
@pytest.mark.parametrize("play", [True, False], indirect=True, ids=["payloads", "no payloads"])
@given(steps=st.lists(STEPS, min_size=4, max_size=30))
@settings(suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture])
async def test_forged_notifications_do_not_change_what_viewers_get(play: Play, steps: list[Step]) -> None:
    play.said = 1
    await play.begin()
    await until(lambda: bool(play.stranger.heard))
    for step in steps:
        await play.take(step)
    await play.end()


async def test_another_role_can_neither_read_keys_nor_change_the_history(cluster: Cluster) -> None:
    async with Stranger.connected(cluster.dsn) as stranger:
        for statement in (
            "SELECT secret FROM baton.notify_key",
            "SELECT marker FROM baton.history",
            "SELECT baton.current_history()",
            "SELECT baton.begin_history('', gen_random_uuid(), 1)",
            "UPDATE baton.history SET marker = 'x'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await stranger.connection.execute(statement)


async def test_the_cost_of_a_flood_of_forged_notifications_is_bounded(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def counted(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapper(*arguments: Any, **named: Any) -> Any:
            asked[function.__name__] += 1
            return await function(*arguments, **named)

        return wrapper

    async with stage(cluster, payloads=True) as play:
        await play.begin()
        for module, name in (
            (event_log, "tails"),
            (stream_queue, "claim"),
            (worker_rows, "cancelled"),
            (signing_keys, "read"),
        ):
            monkeypatch.setattr(module, name, counted(getattr(module, name)))
        reads = sum(pod.metric("baton_log_reads_total") for pod in play.pods)
        began, sent = time.monotonic(), 0
        for wave in range(20):
            await play.stranger.connection.execute(
                """
                SELECT pg_notify('baton_events', $1 || ' ' || ($2 + i) || ' ' || ($2 + i) || E' t2\\n{}\\n#9:x\\n@1'),
                       pg_notify('baton_queue', i::text), pg_notify('baton_cancel', $3)
                FROM generate_series(1, 500) AS i
                """,
                UUID(play.ids[wave % 2]).hex,
                wave * 500,
                play.ids[wave % 2],
            )
            sent += 1000
            play.say()
            await asyncio.sleep(max(0, began + wave / 10 - time.monotonic()))
        await until(lambda: all(pod.metric("baton_notifications_unverified_total") >= 10_000 for pod in play.pods))
        seconds = time.monotonic() - began
        await play.end()
    polls = seconds + 1
    assert asked["tails"] <= len(play.pods) * (seconds / DOUBT_SECONDS + polls + 2)
    assert asked["claim"] <= seconds / CLAIM_PAUSE_SECONDS + 2
    assert asked["cancelled"] <= seconds / CLAIM_PAUSE_SECONDS + 2
    # A made-up key is looked for with the next look at the history.
    assert asked["read"] <= (len(play.pods) + 1) * (polls + 2)
    assert sum(asked.values()) < sent / 10
    # None of it made a pod read the log: it names no event that is there.
    assert sum(pod.metric("baton_log_reads_total") for pod in play.pods) - reads <= 60


async def test_keys_rotate_under_load_and_the_old_one_fails_after_its_grace(
    cluster: Cluster,
) -> None:
    async with stage(cluster, payloads=True) as play:
        await play.begin()
        (before,) = (await signing_keys.read(cluster.pool, await history.read(cluster.pool))).secrets.items()
        async with cluster.pool.acquire() as connection:
            new = await signing_keys.rotate(connection)
        for pod in play.pods:
            pod.shard.verifier.forget()
        play.say()
        for watcher in play.watchers:
            await watcher.has(2)
        await until(lambda: all(set(pod.shard.verifier.keys.secrets) == {before[0], new} for pod in play.pods))
        await cluster.pool.execute(
            "UPDATE baton.notify_key SET created_at = created_at - make_interval(secs => $1)",
            float(signing_keys.GRACE_SECONDS + signing_keys.REREAD_SECONDS),
        )
        for pod in play.pods:
            pod.shard.verifier.forget()
        await until(lambda: all(set(pod.shard.verifier.keys.secrets) == {new} for pod in play.pods))
        stolen = SigningKeys(dict([before]), await history.read(cluster.pool))
        for stream in map(UUID, play.ids):
            item = Append(stream, 1, play.said + 1, play.said + 1, text(666))
            (payload,) = notifications.pack([item], time.time(), stolen)
            await play.stranger.send(EVENTS_CHANNEL, payload)
        await play.end()


async def test_unsigned_notifications_of_the_previous_release_only_add_delay(cluster: Cluster) -> None:
    pod, author = await cluster.pod(log_poll_seconds=60), await cluster.author()
    watcher = Watcher(cluster.client, [pod.url], "native", str(author.id))
    watching = asyncio.create_task(watcher.watch())
    await until(lambda: watcher.connections == 1)
    for number in range(5):
        await _notify_unsigned(author, await author.write(text(number), notify=False))
        await watcher.has(number + 1)
    await _notify_unsigned(author, await author.write(text(5), end=True, notify=False))
    await asyncio.wait_for(watching, 60)
    assert watcher.connections == 1
    assert len(watcher.texts) == 6
    assert pod.metric("baton_notifications_unverified_total") >= 6


async def _notify_unsigned(author: Author, item: Append) -> None:
    await notifications.notify(author.pool, EVENTS_CHANNEL, notifications.pack([item], time.time()))


READ = """
import sys
from baton.notifications import committed_at, unpack
payload = sys.stdin.read()
(found,) = unpack(payload, [payload[:32]])
print(found.first_seq, found.last_seq, found.terminal, repr(found.events), committed_at(payload))
"""


def test_signed_notifications_are_read_by_the_previous_release(tmp_path: Path) -> None:
    archive = subprocess.run(["git", "archive", UNSIGNED, "app"], cwd=PROJECT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"Commit {UNSIGNED}, the code before, is not here: fetch the whole history.")
    subprocess.run(["tar", "-x", "-C", tmp_path], input=archive.stdout, check=True)
    item = Append(UUID(int=7), 1, 3, 4, text(3) + b"\n" + text(4))
    (payload,) = notifications.pack([item], 1_700_000_000.5, SigningKeys({3: b"k" * 32}, "here/00000001"))
    read = subprocess.run(
        [sys.executable, "-c", READ],
        input=payload,
        env={"PYTHONPATH": str(tmp_path / "app")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout.strip() == f"3 4 False {item.events.decode()!r} 1700000000.5"
