"""The server's own limits: what clients may send before a request is complete, and how long they may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from tests.support.cluster import Cluster, RunningPod, Tap, text
from tests.support.follower import following
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.processes import BATON, SERVES, environment, running

GET = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
POST = b"POST /v1/streams HTTP/1.1\r\nHost: here\r\n"


class Raw:
    """A connection whose bytes the test writes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of a response."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), DEADLINE_SECONDS)
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), orjson.loads(await self._reader.readexactly(length))

    async def rest(self) -> bytes:
        """All until the pod closes."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self._reader.read(), DEADLINE_SECONDS)
        return b""


@contextlib.asynccontextmanager
async def raw(pod: RunningPod) -> AsyncIterator[Raw]:
    parts = urlsplit(pod.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def rejected(pod: RunningPod, limit: str) -> float:
    return pod.pod.metrics.registry.get_sample_value("baton_rejections_total", {"limit": limit}) or 0


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"X: " + b"a" * 4100 + b"\r\n\r\n", id="one"),
        pytest.param(b"X: a\r\n" * 690 + b"\r\n", id="many"),
        pytest.param(b"X: " + b"a" * 4100, id="one without an end"),
        pytest.param(b"X" * 4100, id="a name without an end"),
    ],
)
@pytest.mark.parametrize("part_bytes", [700, 65_536])
async def test_a_header_that_is_too_large_is_refused(cluster: Cluster, header: bytes, part_bytes: int) -> None:
    pod = await cluster.pod(max_header_bytes=4096)
    whole = GET + header
    async with raw(pod) as client:
        for start in range(0, len(whole), part_bytes):
            client.send(whole[start : start + part_bytes])
            await asyncio.sleep(0)
        status, problem = await client.response()
        assert status == 431
        assert problem.pop("request_id")
        assert problem == {
            "type": "/errors#header_too_large",
            "title": "The header of the request is too large",
            "status": 431,
            "detail": "A request's header may have 4096 bytes at most.",
            "code": "header_too_large",
        }
        assert await client.rest() == b""
    assert rejected(pod, "header_bytes") == 1


async def test_an_address_and_a_trailer_count_as_header(cluster: Cluster) -> None:
    pod = await cluster.pod(max_header_bytes=4096)
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    for sent, more in ((b"GET /", b"a"), (chunked + b"X: ", b"a"), (chunked, b"X: a\r\n")):
        async with raw(pod) as client:
            client.send(sent)
            response = asyncio.create_task(client.response())
            while not response.done():
                client.send(more * 10)
                await asyncio.sleep(0.001)
            assert (await response)[0] == 431


async def test_a_header_within_the_limit_may_arrive_byte_by_byte(cluster: Cluster) -> None:
    pod = await cluster.pod(max_header_bytes=4096)
    async with raw(pod) as client:
        for _ in range(2):
            for byte in GET + b"X: " + b"a" * 3900 + b"\r\n\r\n":
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await client.response() == (200, {"status": "alive"})


async def test_a_header_that_trickles_for_too_long_is_refused(cluster: Cluster) -> None:
    pod = await cluster.pod(header_timeout_seconds=0.5)
    async with raw(pod) as trickling, raw(pod) as second:
        second.send(GET + b"\r\n")
        assert (await second.response())[0] == 200
        second.send(b"GE")  # of the next one
        response = asyncio.create_task(trickling.response())
        header = (bytes([byte]) for byte in GET + b"X" * 1000)
        while not response.done():
            trickling.send(next(header))
            await asyncio.sleep(0.05)
        # Bytes that are sent after the end make the kernel reset the connection, which may drop the response.
        with contextlib.suppress(ConnectionResetError):
            assert ((await response)[0], (await response)[1]["code"]) == (408, "header_timeout")
        assert (await second.response())[0] == 408
        assert await second.rest() == b""
    assert rejected(pod, "header_timeout") == 2
    await until(lambda: pod.metric("baton_tcp_connections") == 0)


async def test_a_connection_without_a_request_is_closed_without_a_response(cluster: Cluster) -> None:
    pod = await cluster.pod(header_timeout_seconds=0.3)
    async with raw(pod) as silent:
        assert await silent.rest() == b""


@pytest.mark.parametrize("between", [b"", b"\r\n"])
async def test_a_connection_that_is_not_used_again_is_closed(cluster: Cluster, between: bytes) -> None:
    pod = await cluster.pod(http_keep_alive_seconds=0.3, header_timeout_seconds=0.3)
    async with raw(pod) as client:
        client.send(GET + b"\r\n")
        assert (await client.response())[0] == 200
        client.send(between)
        await client.rest()
    await until(lambda: pod.metric("baton_tcp_connections") == 0)


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n"])
async def test_a_body_that_never_ends_is_refused(cluster: Cluster, head: bytes) -> None:
    pod = await cluster.pod(body_timeout_seconds=0.5)
    async with raw(pod) as client:
        client.send(POST + head)
        response = asyncio.create_task(client.response())
        while not response.done():
            client.send(b"1\r\n \r\n" if b"chunked" in head else b" ")
            await asyncio.sleep(0.05)
        # Bytes that are sent after the end make the kernel reset the connection, which may drop the response.
        with contextlib.suppress(ConnectionResetError):
            assert ((await response)[0], (await response)[1]["code"]) == (408, "body_timeout")
    assert rejected(pod, "body_timeout") == 1
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_an_unexpected_body_is_not_read_forever(cluster: Cluster) -> None:
    pod = await cluster.pod(body_timeout_seconds=0.5)
    async with raw(pod) as client:
        client.send(GET + b"Content-Length: 1000000\r\n\r\n")
        assert (await client.response())[0] == 200
        assert await client.rest() == b""


async def test_a_response_that_is_not_read_is_not_kept_forever(cluster: Cluster) -> None:
    pod = await cluster.pod(http_keep_alive_seconds=0.3, write_timeout_seconds=0.5)
    author = await cluster.author()
    await author.write_texts([100] * 10, padding=5000)
    await author.write(end=True)
    parts = urlsplit(pod.url)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((parts.hostname, parts.port))
        deaf.sendall(f"GET /v1/streams/{author.id} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        await until(lambda: pod.metric("baton_tcp_connections") == 1)
        await until(lambda: pod.metric("baton_tcp_connections") == 0)


async def test_garbage_sent_during_a_stream_does_not_reach_the_response(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(1))
    async with raw(pod) as client:
        client.send(f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        await client._reader.readuntil(b"token 1")
        client.send(b"\0\0\0 nonsense \r\n\r\n")
        await author.write(end=True)
        assert b"HTTP/1.1" not in await client.rest()
    await until(lambda: pod.metric("baton_subscribers") == 0)


async def test_pipelined_requests_are_not_kept(cluster: Cluster) -> None:
    pod = await cluster.pod()
    async with raw(pod) as client:
        client.send((GET + b"\r\n") * 1000)
        answered = await client.rest()
        assert answered.count(b"HTTP/1.1 200 OK") == answered.count(b"HTTP/1.1") == 1
        assert b"\r\nconnection: close\r\n" in answered
    await until(lambda: pod.metric("baton_tcp_connections") == 0)


async def test_a_request_sent_during_a_stream_does_not_reach_the_response(cluster: Cluster) -> None:
    pod, author = await cluster.pod(body_timeout_seconds=0.2), await cluster.author()
    await author.write(text(1))
    async with raw(pod) as client:
        client.send(f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        await client._reader.readuntil(b"token 1")
        client.send(POST + b"Content-Length: 100\r\n\r\n{")
        await author.write(text(2))
        await client._reader.readuntil(b"token 2")
        client.send(b" " * 10)
        await author.write(end=True)
        rest = await client.rest()
        assert rest.endswith(b"\r\n0\r\n\r\n")
        assert b"HTTP/1.1" not in rest


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'Content-Length: 15\r\n\r\n{"input": "one"', id="no JSON"),
        pytest.param(b'Content-Length: 16\r\n\r\n{"input": "one"}', id="length"),
        pytest.param(b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"input": "one"}\r\n0\r\n\r\n', id="chunked"),
    ],
)
async def test_an_upgrade_is_declined_and_the_body_is_kept(
    cluster: Cluster, body: bytes, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await cluster.pod()
    header, gap, content = (POST + UPGRADE + b"Expect: 100-continue\r\n" * apart + body).partition(b"\r\n\r\n")
    async with raw(pod) as client:
        client.send(header + gap)
        if apart:
            assert await client._reader.readuntil(b"\r\n\r\n") == CONTINUE
        client.send(content)
        status, created = await client.response()
        if content.endswith(b'"'):
            assert (status, created["code"]) == (400, "invalid_request")
        else:
            assert status == 201
            client.send(GET + b"\r\n")
            assert await client.response() == (200, {"status": "alive"})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_body_after_an_upgrade_is_not_a_request(cluster: Cluster) -> None:
    pod = await cluster.pod()
    hidden = b"GET /hidden HTTP/1.1\r\n\r\n"
    async with raw(pod) as client:
        client.send(POST + UPGRADE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(hidden))
        assert await client._reader.readuntil(b"\r\n\r\n") == CONTINUE
        client.send(hidden)
        status, problem = await client.response()
        assert (status, problem["code"]) == (400, "invalid_request")
        client.send(GET + b"\r\n")
        assert await client.response() == (200, {"status": "alive"})


BARE = b"GET /healthz HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("request_head", "detail"),
    [
        pytest.param(BARE, "must have the header Host, once", id="none"),
        pytest.param(GET + b"Host: here\r\n", "must have the header Host, once", id="two alike"),
        pytest.param(GET + b"hOST: there\r\n", "must have the header Host, once", id="two"),
        pytest.param(GET + b"Host:\r\n", "must have the header Host, once", id="two and one is empty"),
        pytest.param(BARE + UPGRADE, "must have the header Host, once", id="none beside an upgrade"),
        pytest.param(GET.replace(b"/healthz", b"http://here/healthz") + b"Host: b\r\n", "once", id="two of a proxy"),
        pytest.param(BARE.replace(b"/healthz", b"http://here/healthz"), "once", id="none but in the target"),
        pytest.param(GET.replace(b"1.1", b"1.0") + b"Host: b\r\n", "once", id="two in HTTP/1.0"),
        *(
            pytest.param(BARE + b"Host: %b\r\n" % host, "must be a host", id=f"malformed {host!r}")
            for host in (b"[", b"[::1", b"::1", b"a/b?c#d", b"a b", b"\xe4", b"u@h", b"h:p", b"h:1:2", b"a, b", b'"')
        ),
    ],
)
async def test_a_request_has_one_host(cluster: Cluster, request_head: bytes, detail: str) -> None:
    pod = await cluster.pod()
    async with raw(pod) as client:
        client.send(request_head + b"\r\n" + GET + b"\r\n")
        status, problem = await client.response()
        assert (status, problem["code"]) == (400, "bad_request")
        assert detail in problem["detail"]
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "request_head",
    [
        pytest.param(b"GET /healthz HTTP/1.0\r\n", id="HTTP/1.0 has none"),
        pytest.param(BARE + b"Host:\r\n", id="empty"),
        pytest.param(BARE + b"Host: here \r\n", id="with spaces around it"),
        pytest.param(GET.replace(b"/healthz", b"http://there/healthz"), id="the target names another"),
    ],
)
async def test_a_host_may_be_any_name(cluster: Cluster, request_head: bytes) -> None:
    pod = await cluster.pod()
    async with raw(pod) as client:
        client.send(request_head + b"\r\n")
        assert await client.response() == (200, {"status": "alive"})


TWO_WAYS = {
    "two lengths": b"Content-Length: 15\r\nContent-Length: 16\r\n",
    "two lengths alike": b"Content-Length: 15\r\nContent-Length: 15\r\n",
    "a list of lengths": b"Content-Length: 15, 15\r\n",
    "a length with a sign": b"Content-Length: +15\r\n",
    "a length and chunks": b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n",
    "chunks inside something": b"Transfer-Encoding: chunked, identity\r\n",
    "an encoding of nobody": b"Transfer-Encoding: xchunked\r\n",
    "a space before the colon": b"Content-Length : 15\r\n",
    "a folded line": b"X: a\r\n b\r\n",
    "a bare line feed": b"X: a\nContent-Length: 15\r\n",
}


@pytest.mark.parametrize("name", TWO_WAYS)
async def test_an_ambiguous_request_is_refused(cluster: Cluster, name: str) -> None:
    pod = await cluster.pod()
    async with raw(pod) as client:
        client.send(POST + TWO_WAYS[name] + b"\r\n" + b'{"input": "one"}')
        status, problem = await client.response()
        assert (status, problem["code"]) == (400, "bad_request")


async def test_a_trailer_is_not_a_header(cluster: Cluster) -> None:
    pod = await cluster.pod()
    async with raw(pod) as client:
        body = b'2\r\n{"\r\ne\r\ninput": "one"}\r\n0\r\n'
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"Accept: text/plain\r\n\r\n")
        assert (await client.response())[0] == 201


async def test_a_stream_outlives_all_request_timeouts(cluster: Cluster) -> None:
    pod, author = (
        await cluster.pod(
            header_timeout_seconds=0.2,
            body_timeout_seconds=0.2,
            http_keep_alive_seconds=0.2,
            sse_keep_alive_seconds=0.5,
        ),
        await cluster.author(),
    )
    async with following(cluster.client, pod.url, author.id) as follower:
        for _ in range(3):
            await follower.next_block()
        await author.write(text(1), end=True)
        assert len(await follower.rest()) == 2


async def test_half_open_connections_keep_no_client_out(cluster: Cluster) -> None:
    pod = await cluster.pod(max_connections=20)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            client = await stack.enter_async_context(raw(pod))
            client.send(b"GET / HT")
        await until(lambda: pod.metric("baton_tcp_connections") == 20)
        async with raw(pod) as refused:  # for a second
            assert (await refused.response())[0] == 503
        assert not pod.pod.full
        await until(lambda: answers(pod))
        assert pod.metric("baton_tcp_connections") <= 21


async def answers(pod: RunningPod) -> bool:
    async with raw(pod) as client:
        client.send(GET + b"\r\n")
        return (await client.response())[0] == 200


async def test_at_its_limit_of_connections_a_pod_is_not_ready_until_clients_leave(cluster: Cluster) -> None:
    pod = await cluster.pod(max_connections=3)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pod)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(following(cluster.client, pod.url, stream_id))
        ready = await cluster.client.get(f"{pod.url}/readyz")
        assert (ready.status_code, ready.json()["full"]) == (503, True)
    await until(lambda: not pod.pod.full)


async def test_fewer_open_files_allow_fewer_connections(cluster: Cluster) -> None:
    env = environment(BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0")
    async with running("-c", f"ulimit -n 300; exec {BATON} serve", env=env, command=Path("/bin/sh")) as pod:
        await pod.said("allows this process 300 open files, so it accepts 228 connections instead of 10000")
        await pod.said(SERVES)
