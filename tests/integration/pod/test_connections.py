"""The response that follows a stream, as the server drives it: what is in each `send`, how it begins and ends."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import Message
from tests.support.cluster import Author, Cluster, RunningPod, ended, text
from tests.support.follower import following
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.wire import stream

from baton.api.native_events import Retry
from baton.db import streams
from baton.db.event_log import Batch
from baton.dialects import native
from baton.dialects.chat import CHAT
from baton.dialects.native import Native
from baton.dialects.protocol import Encoded, Reader
from baton.dialects.responses import RESPONSES
from baton.dialects.sse import retry_block
from baton.dialects.text import START, TEXT
from baton.errors import ConnectionCut
from baton.pod.event_stream import EventStream
from baton.pod.sinks import DIRECT_EXTENSION, OnLost

RETRY = re.compile(rb": baton\nretry: (\d+)\n\n")


class Wire:
    """An ASGI server as an application sees it. It keeps what was sent; `receive` returns when the client leaves."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    @property
    def ended(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1]["more_body"]


class Socket:
    """A server's way to a socket that takes no chunk and is never closed, but can be aborted."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._lost: OnLost | None = None

    def write(self, body: bytes) -> bool:
        return False

    def on_lost(self, on_lost: OnLost) -> bool:
        self._lost = on_lost
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        assert self._lost is not None
        self._lost()


async def follow(
    pod: RunningPod, author: Author, cursor: int = 0, reader: Reader[Any] | None = None
) -> tuple[Wire, asyncio.Task[None]]:
    """Serve one event stream to a `Wire`."""
    relays = pod.shard.relays
    subscriber = await relays.subscribe(author.id, cursor)
    event_stream = EventStream(
        subscriber,
        reader or Reader(native.FULL, native.START, cursor),
        relays,
        pod.pod.streams,
        pod.pod.metrics,
        reconnect_milliseconds=700,
    )
    connection = Wire()
    task = asyncio.create_task(event_stream({"type": "http"}, connection.receive, connection.send))
    await until(lambda: len(connection.sent) > 1)
    return connection, task


async def test_all_pending_events_go_into_one_send(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write_texts([1] * 100)
    connection, task = await follow(pod, author, 3)
    assert connection.bodies == [retry_block(700) + b"".join(author.frames[3:])]
    assert connection.sent[0]["status"] == 200
    await ended(task)


async def test_the_end_comes_with_the_last_events(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1), end=True)
    connection, task = await follow(pod, author)
    await task
    assert connection.bodies == [retry_block(700) + b"".join(author.frames)]
    assert connection.ended
    assert pod.metric("baton_subscribers") == 0


async def test_a_client_that_leaves_is_unsubscribed(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    connection, task = await follow(pod, author)
    assert pod.metric("baton_subscribers") == 1
    connection.gone.set()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert pod.metric("baton_subscribers") == 0


async def test_a_client_cut_off_while_sending_is_unsubscribed(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    noted = list[bool]()

    async def note() -> None:
        noted.append(True)

    subscriber = await pod.shard.relays.subscribe(author.id, 0)
    event_stream = EventStream(
        subscriber,
        Reader(native.FULL, native.START, 0),
        pod.shard.relays,
        pod.pod.streams,
        pod.pod.metrics,
        reconnect_milliseconds=1,
        on_gone=note,
    )

    async def send(_message: Message) -> None:
        raise ConnectionError("cut")

    await event_stream({"type": "http"}, Wire().receive, send)
    assert noted == [True]
    assert pod.metric("baton_subscribers") == 0


@pytest.mark.parametrize(("announced", "sent"), [(0, 0), (70_000, 70_000), (200_000, 100_000)])
async def test_the_pod_notices_that_a_client_leaves_in_the_middle_of_its_request(
    cluster: Cluster, announced: int, sent: int
) -> None:
    # With short times a comment that cannot be sent, or the timeout of the body, would show it too.
    pod, author = await cluster.pod(sse_keep_alive_seconds=300, body_timeout_seconds=300), await cluster.author()
    address = urlsplit(pod.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nHost: here\r\n".encode())
    writer.write(f"Content-Length: {announced}\r\n\r\n".encode() + b"x" * sent)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    await until(lambda: pod.metric("baton_subscribers") == 1)
    writer.transport.abort()
    await until(
        lambda: pod.metric("baton_event_streams_closed_total", dialect="native.full", reason="client_disconnected") == 1
    )
    assert pod.metric("baton_subscribers") == 0


async def test_a_draining_pod_sends_a_retry_and_ends_cleanly(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author)
    await pod.pod.drain()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert connection.ended
    (milliseconds,) = RETRY.fullmatch(connection.bodies[-1]).groups()  # type: ignore[union-attr]
    assert 0 <= int(milliseconds) <= 1400


async def test_a_comment_is_sent_first_and_then_after_each_silence(cluster: Cluster) -> None:
    pod, author = await cluster.pod(sse_keep_alive_seconds=0.1), await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        assert RETRY.fullmatch(await follower.next_block())
        assert [await follower.next_block() for _ in range(3)] == [b":\n\n"] * 3
        await author.write(text(1))
        assert (await follower.next_event())["seq"] == 1
        assert await follower.next_block() == b":\n\n"


async def test_a_busy_stream_gets_no_comments(cluster: Cluster) -> None:
    pod, author = await cluster.pod(sse_keep_alive_seconds=300), await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        for number in range(20):
            await author.write(text(number))
            await follower.next_event()
    assert len(follower.comments) == 1


async def test_the_headers_pass_proxies_unbuffered(cluster: Cluster) -> None:
    pod, author = await cluster.pod(reconnect_milliseconds=250), await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        headers = follower.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-baton-pod"] == pod.name
        assert "content-length" not in headers
        assert await follower.next_block() == b": baton\nretry: 250\n\n"


async def test_a_retry_has_only_the_time_to_reconnect() -> None:
    said = set()
    for _ in range(50):
        connection = Wire()
        await Retry(100)({"type": "http"}, connection.receive, connection.send)
        assert connection.sent[0]["status"] == 200
        assert connection.ended
        (milliseconds,) = RETRY.fullmatch(connection.bodies[0]).groups()  # type: ignore[union-attr]
        assert 100 <= int(milliseconds) <= 300
        said.add(milliseconds)
    assert len(said) > 1


async def test_a_server_that_cannot_cut_a_response_gets_an_error(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author, reader=Reader(TEXT, START, 0))
    await pod.pod.drain()
    with pytest.raises(ConnectionCut, match=r"a clean end for\b.*`baton serve`"):
        await task
    assert not connection.ended
    assert pod.metric("baton_subscribers") == 0


async def test_a_gap_in_the_log_is_an_error_of_the_dialect_or_a_cut(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    row = await streams.get(pod.shard.pool, author.id)
    assert row is not None
    _, plain = await follow(pod, author, reader=Reader(TEXT, START, 0))
    connection, other = await follow(pod, author, reader=Reader(RESPONSES, RESPONSES.begin(row, None), 0))
    author.lose(text(2))
    await author.write(text(3))
    with pytest.raises(ConnectionCut):
        await plain
    await other
    assert connection.ended
    assert b'"type":"error"' in connection.bodies[-1]
    assert b"log_damaged" in connection.bodies[-1]


async def test_an_erased_stream_does_not_look_like_the_end_of_an_answer(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    native_connection, native_task = await follow(pod, author)
    _, plain = await follow(pod, author, reader=Reader(TEXT, START, 0))
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{author.id}")).status_code == 204
    with pytest.raises(ConnectionCut):
        await plain
    # A client that reconnects gets an error: the stream is gone.
    await native_task
    assert native_connection.ended


class Faulty(Native):
    """A dialect with a fault."""

    def encode(self, batch: Batch, state: None, after: int) -> Encoded[None]:
        raise ValueError("a fault")


async def test_events_that_a_dialect_cannot_encode_end_in_an_error(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author, reader=Reader(Faulty("faulty"), native.START, 0))
    await task
    assert connection.ended
    assert b'"code":"internal_error"' in connection.bodies[-1]
    assert "cannot be encoded in native.faulty" in caplog.text
    assert "ValueError: a fault" in caplog.text


@pytest.mark.parametrize("leaving", [False, True])
async def test_a_stuck_client_has_left_unless_it_was_sent_away(cluster: Cluster, leaving: bool) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    noted, wire = list[bool](), Wire()

    async def note() -> None:
        noted.append(True)

    subscriber = await pod.shard.relays.subscribe(author.id, 0)
    stalled = EventStream(
        subscriber,
        Reader(CHAT, CHAT.begin(stream(), {}), 0),
        pod.shard.relays,
        pod.pod.streams,
        pod.pod.metrics,
        reconnect_milliseconds=1,
        on_gone=note,
    )
    scope = {"type": "http", "extensions": {DIRECT_EXTENSION: Socket(wire)}}
    task = asyncio.create_task(stalled(scope, wire.receive, wire.send))
    await until(lambda: len(wire.sent) > 1)
    if leaving:
        stalled.close("drained")
        await until(lambda: stalled.state == "cutting")
    stalled.close("write_timeout")
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert noted == ([] if leaving else [True])
