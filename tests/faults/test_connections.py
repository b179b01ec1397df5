"""A pod's event streams: their age, clients that accept nothing, and many clients that arrive at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import psutil
import pytest
from tests.faults.viewers import Viewer
from tests.support.cluster import Author, Cluster, Tap
from tests.support.follower import following, frames_after, numbers
from tests.support.logbook import until
from tests.support.processes import SERVES, environment, running

MEGABYTE = 1 << 20


async def test_connections_rotate_and_nothing_is_lost(cluster: Cluster) -> None:
    pod = await cluster.pod(max_connection_age_seconds=0.3, reconnect_milliseconds=10, sse_keep_alive_seconds=0.5)
    tap = Tap()
    await cluster.worker({"replay": tap}, flush_interval_milliseconds=1)
    viewer = Viewer(cluster.client, pod.url, await cluster.create(pod))
    words = 0
    while len(viewer.pods) < 4:
        words += 1
        tap.let(f"{words} ")
        await viewer.has(words)
    tap.end()
    assert (await viewer.end())["status"] == "completed"
    assert viewer.text == "".join(f"{number} " for number in range(1, words + 1))


class Deaf:
    """A client that requests a stream and then reads nothing, with the smallest possible buffer in its kernel."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self, stream_id: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        request = f"GET /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: here\r\n\r\n"
        await loop.sock_sendall(self._socket, request.encode())

    async def what_came(self) -> bytes:
        """Read what was in transit, up to the connection's end."""
        came = b""
        with contextlib.suppress(ConnectionResetError):
            while part := await asyncio.get_running_loop().sock_recv(self._socket, 65_536):
                came += part
        return came

    def close(self) -> None:
        self._socket.close()


@contextlib.asynccontextmanager
async def deaf(url: str, stream_id: object, count: int = 1) -> AsyncIterator[list[Deaf]]:
    clients = [Deaf(url) for _ in range(count)]
    try:
        await asyncio.gather(*(client.ask(stream_id) for client in clients))
        yield clients
    finally:
        for client in clients:
            client.close()


async def fat(cluster: Cluster, *, batches: int, padding: int = 10_000) -> Author:
    """A stream of this many batches of ten events."""
    author = await cluster.author()
    for _ in range(batches):
        await author.write_texts([10], padding=padding)
    return author


async def test_a_client_that_reads_nothing_is_cut_off_and_can_resume(cluster: Cluster) -> None:
    pod = await cluster.pod(write_timeout_seconds=0.5)
    author = await fat(cluster, batches=40)
    async with (
        deaf(pod.url, author.id) as (client,),
        following(cluster.client, pod.url, author.id) as follower,
    ):
        assert len(await follower.events(400)) == 400
        await until(
            lambda: pod.metric("baton_event_streams_closed_total", dialect="native.full", reason="write_timeout") == 1
        )
        # It is aborted, and not closed after what is pending: that would need a client that accepts it.
        await until(lambda: pod.metric("baton_subscribers") == 1)
        assert await _connections(pod.url) == 1
        came = await client.what_came()
        await author.write(end=True)
        assert await follower.rest() == author.frames
    whole = [part for part in came.split(b"\n\n") if part.rpartition(b"\r\n")[2].startswith(b"id: ")]
    cursor = int(whole[-2].rpartition(b"id: ")[2].partition(b"\n")[0])
    assert 0 < cursor < 400
    resumed = await frames_after(cluster.client, pod.url, author.id, cursor)
    assert numbers(resumed) == list(range(cursor + 1, 402))
    assert resumed == author.frames[cursor:]


async def _connections(url: str) -> int:
    """How many connections the server's end of an address has."""
    port = urlsplit(url).port
    found = await asyncio.to_thread(psutil.Process().net_connections, "tcp")
    return sum(item.status == psutil.CONN_ESTABLISHED and item.laddr.port == port for item in found)


async def test_clients_that_read_nothing_use_bounded_memory(cluster: Cluster) -> None:
    clients = 100
    env = environment(BATON_DATABASE_URL=cluster.dsn, BATON_ALLOW_ANONYMOUS="true", BATON_PORT="0")
    author = await fat(cluster, batches=1)
    async with running("serve", env=env) as pod:
        url = (await pod.said(SERVES))[2]
        process = psutil.Process(pod.process.pid)
        async with deaf(url, author.id, clients), following(cluster.client, url, author.id) as follower:
            await follower.events(10)
            before = process.memory_info().rss
            for _ in range(20):
                await author.write_texts([10] * 10, padding=10_000)
                await follower.events(100)
            # If the pod kept it for clients that do not read, each would take 20 MB.
            assert process.memory_info().rss - before < 100 * MEGABYTE


async def storm(cluster: Cluster, *, streams: int, clients: int) -> None:
    """Let the clients of a lost pod arrive at another one, all at once, each after its last event."""
    authors = [await cluster.author() for _ in range(streams)]
    for author in authors:
        await author.write_texts([5, 5, 5])
    pod = await cluster.pod(log_poll_seconds=60)
    url = urlsplit(pod.url)
    before = pod.metric("baton_log_reads_total")

    async def resume(author: Author, cursor: int) -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        head = f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {cursor}\r\n"
        writer.write((head + "Connection: close\r\n\r\n").encode())
        assert b" 200 " in await reader.readline()
        body = await reader.read()
        assert body.count(b"\nid: ") + body.count(b"\r\nid: ") >= 1
        found = [line for line in body.split(b"\n") if line.startswith(b"id: ")]
        assert found == [b"id: %d" % seq for seq in range(cursor + 1, 17)]
        writer.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(resume(authors[number % streams], number // streams % 15))
        await until(lambda: pod.metric("baton_subscribers") == clients)
        assert pod.metric("baton_log_reads_total") - before <= 2 * streams
        await asyncio.gather(*(author.write(end=True) for author in authors))
    assert pod.metric("baton_log_reads_total") - before <= 2 * streams


async def test_a_reconnect_storm_reads_each_log_once_or_twice(cluster: Cluster) -> None:
    await storm(cluster, streams=100, clients=500)


@pytest.mark.slow
async def test_a_large_reconnect_storm_reads_each_log_once_or_twice(cluster: Cluster) -> None:
    await storm(cluster, streams=100, clients=2000)
