"""The response that follows a stream, as the server drives it: what is in each `send`, how it begins and ends."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import Message
from tests.cluster import Author, Cluster, RunningPod, ended, text
from tests.dialects.wire import stream
from tests.follower import following
from tests.logbook import DEADLINE_SECONDS, until

from baton.api.native_events import Retry
from baton.db import streams
from baton.db.event_log import Batch
from baton.dialects import native
from baton.dialects.chat import CHAT
from baton.dialects.dialect import Encoded, Reader
from baton.dialects.native import Native
from baton.dialects.responses import RESPONSES
from baton.dialects.sse import retry_block
from baton.dialects.text import START, TEXT
from baton.errors import ConnectionCut
from baton.pod.event_stream import ABORT_EXTENSION, CLOSE_EXTENSION, Connection

RETRY = re.compile(rb": baton\nretry: (\d+)\n\n")


class Wire:
    """What a server is to an ASGI application: it keeps what was sent, and tells when the client goes."""

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


async def follow(
    pod: RunningPod, author: Author, cursor: int = 0, reader: Reader[Any] | None = None
) -> tuple[Wire, asyncio.Task[None]]:
    """Serve one connection that a test holds in its hands."""
    relays = pod.pod.relays
    subscriber = await relays.subscribe(author.id, cursor)
    stream = Connection(
        subscriber,
        reader or Reader(native.FULL, native.START, cursor),
        relays,
        pod.pod.connections,
        pod.pod.metrics,
        reconnect_milliseconds=700,
    )
    connection = Wire()
    task = asyncio.create_task(stream({"type": "http"}, connection.receive, connection.send))
    await until(lambda: len(connection.sent) > 1)
    return connection, task


async def test_all_that_is_pending_goes_into_one_send(cluster: Cluster) -> None:
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


async def test_a_client_that_goes_is_forgotten(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    connection, task = await follow(pod, author)
    assert pod.metric("baton_subscribers") == 1
    connection.gone.set()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert pod.metric("baton_subscribers") == 0


async def test_a_connection_that_is_cut_while_sending_is_forgotten(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    noted = list[bool]()

    async def note() -> None:
        noted.append(True)

    subscriber = await pod.pod.relays.subscribe(author.id, 0)
    stream = Connection(
        subscriber,
        Reader(native.FULL, native.START, 0),
        pod.pod.relays,
        pod.pod.connections,
        pod.pod.metrics,
        reconnect_milliseconds=1,
        on_gone=note,
    )

    async def send(_message: Message) -> None:
        raise ConnectionError("cut")

    await stream({"type": "http"}, Wire().receive, send)
    assert noted == [True]
    assert pod.metric("baton_subscribers") == 0


@pytest.mark.parametrize(("announced", "sent"), [(0, 0), (70_000, 70_000), (200_000, 100_000)])
async def test_the_pod_hears_that_a_client_leaves_whatever_of_its_request_has_come(
    cluster: Cluster, announced: int, sent: int
) -> None:
    # Otherwise a comment that cannot be sent would tell, or the time for the body.
    pod, author = await cluster.pod(heartbeat_seconds=300, body_seconds=300), await cluster.author()
    address = urlsplit(pod.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nHost: here\r\n".encode())
    writer.write(f"Content-Length: {announced}\r\n\r\n".encode() + b"x" * sent)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    await until(lambda: pod.metric("baton_subscribers") == 1)
    writer.transport.abort()
    await until(lambda: pod.metric("baton_event_streams_closed_total", dialect="native.full", reason="left") == 1)
    assert pod.metric("baton_subscribers") == 0


async def test_a_pod_that_leaves_tells_when_to_come_back_and_ends_cleanly(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author)
    await pod.pod.drain()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert connection.ended
    (milliseconds,) = RETRY.fullmatch(connection.bodies[-1]).groups()  # type: ignore[union-attr]
    assert 0 <= int(milliseconds) <= 1400


async def test_a_comment_goes_out_at_once_and_then_whenever_nothing_else_did(cluster: Cluster) -> None:
    pod, author = await cluster.pod(heartbeat_seconds=0.1), await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        assert RETRY.fullmatch(await follower.next_block())
        assert [await follower.next_block() for _ in range(3)] == [b":\n\n"] * 3
        await author.write(text(1))
        assert (await follower.next_event())["seq"] == 1
        assert await follower.next_block() == b":\n\n"


async def test_a_busy_connection_gets_no_comments(cluster: Cluster) -> None:
    pod, author = await cluster.pod(heartbeat_seconds=300), await cluster.author()
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


async def test_a_retry_says_only_when_to_come_back() -> None:
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


async def test_a_server_that_cannot_close_in_mid_response_is_told_by_an_error(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author, reader=Reader(TEXT, START, 0))
    await pod.pod.drain()
    with pytest.raises(ConnectionCut, match=r"a clean end for\b.*`baton serve`"):
        await task
    assert not connection.ended
    assert pod.metric("baton_subscribers") == 0


async def test_a_hole_in_the_log_is_told_in_the_dialects_words_or_cut(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    row = await streams.get(pod.pod.pool, author.id)
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


async def test_a_stream_that_is_erased_is_no_end_of_an_answer(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    native_connection, native_task = await follow(pod, author)
    _, plain = await follow(pod, author, reader=Reader(TEXT, START, 0))
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{author.id}")).status_code == 204
    with pytest.raises(ConnectionCut):
        await plain
    # Who comes back is told that it is gone.
    await native_task
    assert native_connection.ended


class Untellable(Native):
    """A dialect with a fault."""

    def encode(self, batch: Batch, state: None, after: int) -> Encoded[None]:
        raise ValueError("a fault")


async def test_events_that_a_dialect_cannot_tell_end_in_its_error(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    connection, task = await follow(pod, author, reader=Reader(Untellable("faulty"), native.START, 0))
    await task
    assert connection.ended
    assert b'"code":"internal_error"' in connection.bodies[-1]
    assert "cannot be told in native.faulty" in caplog.text


@pytest.mark.parametrize("leaving", [False, True])
async def test_a_client_that_stalls_has_left_unless_it_was_sent_away(cluster: Cluster, leaving: bool) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    noted, wire = list[bool](), Wire()

    async def note() -> None:
        noted.append(True)

    subscriber = await pod.pod.relays.subscribe(author.id, 0)
    stalled = Connection(
        subscriber,
        Reader(CHAT, CHAT.begin(stream(), {}), 0),
        pod.pod.relays,
        pod.pod.connections,
        pod.pod.metrics,
        reconnect_milliseconds=1,
        on_gone=note,
    )
    scope = {"type": "http", "extensions": {ABORT_EXTENSION: wire.gone.set, CLOSE_EXTENSION: lambda: None}}
    task = asyncio.create_task(stalled(scope, wire.receive, wire.send))
    await until(lambda: len(wire.sent) > 1)
    if leaving:
        stalled.leave("drained")
        await until(lambda: stalled.sending_since is not None)
    stalled.abort()
    await asyncio.wait_for(task, DEADLINE_SECONDS)
    assert noted == ([] if leaving else [True])
