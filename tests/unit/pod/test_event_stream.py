"""The states of an event stream, why it closes, and the one way of a batch; without a server and a database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import pytest
from starlette.types import Message
from tests.support.logbook import until

from baton.db.event_log import Batch
from baton.db.notifications import Announcement
from baton.db.postgres import Pool
from baton.dialects import native
from baton.dialects.native import Native
from baton.dialects.protocol import Encoded, Reader
from baton.dialects.text import START, TEXT
from baton.events import encode_text
from baton.observability.metrics import PodMetrics
from baton.observability.metrics.pod_metrics import Closing
from baton.outcome import Outcome
from baton.pod.event_stream import EventStream, State
from baton.pod.notification_verifier import NotificationVerifier
from baton.pod.relay import Relay
from baton.pod.relay_registry import RelayRegistry
from baton.pod.settling import Settling
from baton.pod.sinks import DIRECT_EXTENSION, OnLost
from baton.pod.stream_timeouts import OpenStreams
from baton.pod.subscriber import Subscriber
from baton.pod.subscriber_limits import SubscriberLimits

ID = UUID("01a1ffd0-610d-7a42-a65e-430aea861ca4")
NO_POOL = cast(Pool, None)


class Faulty(Native):
    """A dialect that cannot encode one of the events."""

    def encode(self, batch: Batch, state: None, after: int) -> Encoded[None]:
        if "a fault" in batch.events:
            raise ValueError("a fault")
        return super().encode(batch, state, after)


class Server:
    """A server that keeps what it is sent, by ASGI and by its socket; what it sends may have to wait."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.written: list[bytes] = []
        self.closing = False
        self.aborted = False
        self.ready = True
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.on_lost_call: OnLost | None = None

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        await self.accepts.wait()

    def write(self, body: bytes) -> bool:
        if self.ready:
            self.written.append(body)
        return self.ready

    def on_lost(self, on_lost: OnLost) -> bool:
        self.on_lost_call = on_lost
        return True

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True
        self.lose()

    def lose(self) -> None:
        self.accepts.set()
        assert self.on_lost_call is not None
        self.on_lost_call()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]


class Scene:
    """A relay in memory with one event stream, which a task serves."""

    def __init__(self, reader: Reader[Any] | None = None, **options: Any) -> None:
        self.metrics = PodMetrics()
        limits = SubscriberLimits(self.metrics, max_pod=10, max_tenant=10, max_stream=10)
        verifier = NotificationVerifier(NO_POOL, check_seconds=60)
        self.settling = Settling(NO_POOL, 0, verifier.renew)
        self.relays = RelayRegistry(
            NO_POOL,
            self.metrics,
            self.metrics.of_database(""),
            limits,
            verifier=verifier,
            settling=self.settling,
            window_bytes=65_536,
            poll_seconds=60,
        )
        self.relay = Relay(ID, NO_POOL, self.metrics, self.settling, window_bytes=65_536)
        self.relay.loaded = True
        limits.join("t", ID)
        self.subscriber = Subscriber(self.relay, 0, "t")
        self.relay.add(self.subscriber)
        self.streams = OpenStreams(sse_keep_alive_seconds=60, write_timeout_seconds=60, max_age_seconds=600)
        self.reader = reader or Reader(native.FULL, native.START, 0)
        self.gone = 0
        self.stream = EventStream(
            self.subscriber,
            self.reader,
            self.relays,
            self.streams,
            self.metrics,
            reconnect_milliseconds=1,
            on_gone=self._on_gone,
            **options,
        )
        self.server = Server()
        self.task: asyncio.Task[None] | None = None

    async def _on_gone(self) -> None:
        self.gone += 1

    def hear(self, *words: str, end: bool = False) -> None:
        """Apply a batch with these words, and perhaps the end."""
        lines = [encode_text(word) for word in words] + ([Outcome.completed("stop").encode()] if end else [])
        first = self.relay.tail + 1
        events = b"\n".join(lines).decode()
        self.relay.hear(Announcement(ID.hex, first, first + len(lines) - 1, end, events))

    def begin(self, *, direct: bool = True) -> asyncio.Task[None]:
        scope = {"type": "http", "extensions": {DIRECT_EXTENSION: self.server} if direct else {}}
        task: asyncio.Task[None] = asyncio.ensure_future(self.stream(scope, self.server.receive, self.server.send))
        self.task = task
        return task

    async def live(self, *, direct: bool = True) -> asyncio.Task[None]:
        """Begin, and wait until the client has caught up."""
        task = self.begin(direct=direct)
        await until(lambda: self.subscriber.waiting)
        assert self.stream.state == "live"
        return task

    @property
    def closed(self) -> dict[str, float]:
        """How many streams closed, by the reason."""
        (family,) = self.metrics.closed.collect()
        return {item.labels["reason"]: item.value for item in family.samples if item.name.endswith("_total")}

    def sent_events(self) -> float | None:
        labels = {"dialect": self.reader.dialect.name}
        return self.metrics.registry.get_sample_value("baton_events_sent_total", labels)


@contextlib.asynccontextmanager
async def ended(scene: Scene) -> AsyncIterator[None]:
    """End what the test left."""
    try:
        yield
    finally:
        assert scene.task is not None
        scene.task.cancel()
        await asyncio.gather(scene.task, return_exceptions=True)


async def test_a_stream_opens_catches_up_and_is_live() -> None:
    scene = Scene()
    scene.hear("one")
    scene.server.accepts.clear()
    scene.begin()
    async with ended(scene):
        states: list[State] = []
        for messages in (1, 2):
            await until(lambda messages=messages: len(scene.server.sent) == messages)  # type: ignore[misc]
            states.append(scene.stream.state)
            scene.server.accepts.set()
            scene.server.accepts.clear()
        scene.server.accepts.set()
        await until(lambda: scene.subscriber.waiting)
        states.append(scene.stream.state)
        assert states == ["opening", "catching up", "live"]
        assert scene.stream.sending_since is None


async def test_a_live_batch_is_written_when_the_relay_applies_it() -> None:
    scene = Scene()
    await scene.live()
    async with ended(scene):
        sent = len(scene.server.sent)
        scene.hear("one", "two")
        scene.hear("three")
        assert b"".join(scene.server.written).count(b"id: ") == 3
        assert (len(scene.server.sent), scene.sent_events(), scene.subscriber.cursor) == (sent, 3, 3)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_batch_without_a_ready_sink_is_sent_by_the_task_and_counted(direct: bool) -> None:
    scene = Scene()
    await scene.live(direct=direct)
    async with ended(scene):
        scene.server.ready = False
        scene.hear("one", "two")
        scene.hear("three")
        await until(lambda: scene.sent_events() == 3)
        await until(lambda: scene.subscriber.waiting)
        assert scene.server.written == []
        assert scene.server.bodies[-1].count(b"id: ") == 3


async def test_with_a_window_live_batches_gather() -> None:
    scene = Scene(window_seconds=30)
    scene.begin()
    async with ended(scene):
        await until(lambda: scene.subscriber.waiting)
        scene.hear("one")
        scene.hear("two")
        assert scene.server.written == []
        scene.hear(end=True)
        await until(lambda: scene.closed == {"ended": 1})
        assert scene.server.bodies[-1].count(b"id: ") == 3


async def test_the_end_of_the_answer_ends_the_response() -> None:
    scene = Scene()
    task = await scene.live()
    scene.hear("one", end=True)
    await task
    assert scene.server.sent[-1]["more_body"] is False
    assert (scene.closed, scene.stream.state, scene.gone, len(scene.streams)) == ({"ended": 1}, "closed", 0, 0)


async def test_a_dialect_whose_clients_do_not_reconnect_is_cut() -> None:
    scene = Scene(Reader(TEXT, START, 0))
    task = await scene.live()
    scene.stream.close("drained")
    await until(lambda: scene.server.closing)
    assert (scene.stream.state, task.done()) == ("cutting", False)
    assert scene.stream.sending_since is not None
    scene.server.lose()
    await task
    assert (scene.closed, scene.stream.state) == ({"drained": 1}, "closed")


async def test_a_connection_that_is_lost_while_the_last_bytes_are_sent_is_not_cut_again() -> None:
    scene = Scene(Reader(TEXT, START, 0))
    task = await scene.live()
    scene.server.ready = False
    scene.server.accepts.clear()
    scene.hear("one")
    await until(lambda: scene.stream.sending_since is not None)
    scene.stream.close("drained")
    scene.server.lose()
    await task
    assert (scene.closed, scene.stream.state, scene.server.closing) == ({"drained": 1}, "closed", False)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (["client_disconnected"], "client_disconnected"),
        (["max_age"], "max_age"),
        (["drained"], "drained"),
        (["revoked"], "revoked"),
        (["write_timeout"], "write_timeout"),
        # Of those for which it is sent away, the first counts.
        (["max_age", "drained"], "max_age"),
        (["drained", "max_age"], "drained"),
        (["revoked", "drained"], "revoked"),
        # The stronger one counts, in whichever order they come.
        (["client_disconnected", "max_age"], "max_age"),
        (["max_age", "client_disconnected"], "max_age"),
        (["write_timeout", "client_disconnected"], "write_timeout"),
        (["max_age", "write_timeout"], "write_timeout"),
        (["write_timeout", "drained"], "write_timeout"),
        (["damage"], "error"),
        (["damage", "client_disconnected"], "error"),
        (["client_disconnected", "damage"], "error"),
        (["drained", "damage"], "error"),
        (["damage", "drained"], "error"),
        (["damage", "write_timeout"], "write_timeout"),
        (["write_timeout", "damage"], "write_timeout"),
        (["fault"], "error"),
        (["fault", "drained"], "error"),
        (["fault", "client_disconnected"], "error"),
        (["fault", "write_timeout"], "write_timeout"),
        (["end"], "ended"),
        (["end", "max_age"], "max_age"),
        (["max_age", "end"], "max_age"),
        (["over"], "ended"),
        (["over", "drained"], "drained"),
    ],
)
async def test_the_strongest_of_several_reasons_counts(given: list[str], counts: Closing) -> None:
    scene = Scene(Reader(Faulty("full"), native.START, 0))
    task = await scene.live()
    for item in given:
        if item == "damage":
            scene.relay.damage(0)
        elif item == "fault":
            scene.hear("a fault")
        elif item == "end":
            scene.hear(end=True)
        elif item == "over":
            scene.relay.leave()
        elif item == "client_disconnected":
            scene.server.lose()
        else:
            scene.stream.close(cast(Closing, item))
    await task
    assert scene.closed == {counts: 1}
    assert scene.stream.state == "closed"


async def test_a_client_that_leaves_while_the_end_is_sent_got_the_end() -> None:
    scene = Scene()
    task = await scene.live()
    scene.server.accepts.clear()
    scene.hear("one", end=True)
    await until(lambda: scene.stream.state == "leaving")
    scene.server.lose()
    await task
    assert (scene.closed, scene.gone) == ({"ended": 1}, 0)


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (["client_disconnected"], 1),
        (["write_timeout"], 1),
        (["drained", "client_disconnected"], 0),
        (["max_age", "write_timeout"], 0),
        (["client_disconnected", "max_age"], 0),
    ],
)
async def test_a_client_is_gone_if_it_was_not_sent_away(given: list[Closing], gone: int) -> None:
    scene = Scene()
    task = await scene.live()
    for reason in given:
        scene.stream.close(reason)
    await task
    assert scene.gone == gone


async def test_a_stuck_client_is_aborted_at_once() -> None:
    scene = Scene()
    task = await scene.live()
    scene.server.accepts.clear()
    scene.stream.keep_alive()
    await until(lambda: scene.stream.sending_since is not None)
    scene.stream.close("write_timeout")
    assert scene.server.aborted
    await task
    assert scene.closed == {"write_timeout": 1}


async def test_a_stuck_client_of_a_plain_server_is_aborted_by_a_cancelled_response() -> None:
    scene = Scene()
    task = await scene.live(direct=False)
    scene.server.accepts.clear()
    scene.stream.keep_alive()
    await until(lambda: scene.stream.sending_since is not None)
    scene.stream.close("write_timeout")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.closed == {"write_timeout": 1}


async def test_a_client_that_loses_a_draining_pod_is_not_gone() -> None:
    scene = Scene()
    task = await scene.live()
    scene.streams.draining = True
    scene.server.lose()
    await task
    assert (scene.closed, scene.gone) == ({"client_disconnected": 1}, 0)


@pytest.mark.parametrize("live", [True, False])
async def test_an_event_that_cannot_be_encoded_is_logged_once_live_or_not(
    live: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(Reader(Faulty("full"), native.START, 0))
    if live:
        task = await scene.live()
        scene.hear("a fault")
    else:
        scene.hear("a fault")
        task = scene.begin()
    await task
    assert scene.closed == {"error": 1}
    assert b'"internal_error"' in scene.server.bodies[-1]
    assert scene.server.sent[-1]["more_body"] is False
    assert [record.exc_info is not None for record in caplog.records if "cannot be encoded" in record.message] == [True]


@pytest.mark.parametrize("end", [False, True])
async def test_nothing_follows_a_live_batch_that_cannot_be_encoded(end: bool) -> None:
    scene = Scene(Reader(Faulty("full"), native.START, 0))
    task = await scene.live()
    scene.hear("a fault")
    scene.hear("later", end=end)
    await task
    assert scene.closed == {"error": 1}
    assert b"later" not in b"".join(scene.server.bodies + scene.server.written)
    assert b'"internal_error"' in scene.server.bodies[-1]


@pytest.mark.parametrize(("draining", "counts"), [(True, "drained"), (False, "error")])
async def test_a_server_that_cancels_a_plain_response_ends_it(draining: bool, counts: str) -> None:
    scene = Scene()
    task = await scene.live(direct=False)
    scene.streams.draining = draining
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.closed == {counts: 1}


async def test_while_it_drains_a_cancelled_response_aborts_its_socket_and_returns() -> None:
    scene = Scene()
    task = await scene.live()
    scene.streams.draining = True
    task.cancel()
    await task
    assert scene.server.aborted
    assert scene.closed == {"drained": 1}


async def test_a_header_that_cannot_be_sent_releases_the_place() -> None:
    scene = Scene()

    async def send(_message: Message) -> None:
        raise RuntimeError("a layer has failed")

    with pytest.raises(RuntimeError):
        await scene.stream({"type": "http"}, scene.server.receive, send)
    assert scene.relay.subscribers == set()
    assert scene.metrics.registry.get_sample_value("baton_subscribers") == 0
