"""A pod as a process: how it listens, and how it shuts down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import pytest
from tests.support.cluster import Cluster, InProcessServer, text
from tests.support.follower import following, frames_after
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.processes import SERVES, Running, environment, running

from baton.app import create_app
from baton.errors import ConfigurationError
from baton.processes.parent_link import ParentLink
from baton.server.http_protocol import HttpProtocol
from baton.server.listening_socket import bind
from baton.server.serve import serve, uvicorn_config


def pod_environment(cluster: Cluster, **given: str) -> dict[str, str]:
    settings = {"BATON_DATABASE_URL": cluster.dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_PORT": "0"}
    return environment(**settings | given)


async def address(pod: Running) -> str:
    return (await pod.said(SERVES))[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signaled_pod_sends_its_clients_away_and_exits(cluster: Cluster, number: signal.Signals) -> None:
    author = await cluster.author()
    env = pod_environment(cluster, BATON_DRAIN_SECONDS="1")
    async with running("serve", env=env) as leaving, running("serve", env=env) as staying:
        old, new = await address(leaving), await address(staying)

        async def client(cursor: int) -> list[bytes]:
            """Follow on one pod until it ends the connection, then on the other."""
            async with following(cluster.client, old, author.id, cursor) as follower:
                await follower.next_event()
                opened.release()
                frames = await follower.rest()
            assert follower.comments[-1].startswith(b": baton\nretry: ")
            return frames + await frames_after(cluster.client, new, author.id, cursor + len(frames))

        opened = asyncio.Semaphore(0)
        await author.write_texts([2, 1, 3])
        clients = [asyncio.create_task(client(cursor % 4)) for cursor in range(12)]
        for _ in clients:
            await asyncio.wait_for(opened.acquire(), DEADLINE_SECONDS)
        leaving.signal(number)
        for _ in range(20):
            await author.write_texts([1])
        assert await leaving.ends(10) == 0
        await author.write(text(0), end=True)
        for cursor, received in enumerate(await asyncio.gather(*clients)):
            assert received == author.frames[cursor % 4 :]
        assert not any("Traceback" in line for line in leaving.lines)


async def test_a_draining_pod_accepts_clients_and_sends_them_away(cluster: Cluster) -> None:
    author = await cluster.author()
    async with running("serve", env=pod_environment(cluster, BATON_DRAIN_SECONDS="30")) as pod:
        url = await address(pod)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                follower = await stack.enter_async_context(following(cluster.client, url, author.id))
                await follower.next_block()
            pod.signal(signal.SIGTERM)

            async def not_ready() -> None:
                while (await cluster.client.get(f"{url}/readyz")).status_code == 200:
                    pass

            await asyncio.wait_for(not_ready(), DEADLINE_SECONDS)
            async with following(cluster.client, url, author.id) as sent_on:
                assert await sent_on.rest() == []
                assert b"retry: " in sent_on.comments[0]


@pytest.mark.slow
async def test_a_second_signal_ends_a_pod_at_once(cluster: Cluster) -> None:
    author = await cluster.author()
    async with running("serve", env=pod_environment(cluster, BATON_DRAIN_SECONDS="60")) as pod:
        url = await address(pod)
        async with contextlib.AsyncExitStack() as stack:
            followers = [await stack.enter_async_context(following(cluster.client, url, author.id)) for _ in range(3)]
            for follower in followers:
                await follower.next_block()
            pod.signal(signal.SIGTERM)
            # When the first client is sent on, the drain has begun. The others would wait for up to a minute.
            rests = [asyncio.create_task(follower.next_block()) for follower in followers]
            sent_on, _ = await asyncio.wait(rests, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert len(sent_on) == 1
            assert pod.process.returncode is None
            pod.signal(signal.SIGTERM)
            await pod.ends(5)
            await asyncio.gather(*rests, return_exceptions=True)


async def test_a_connection_accepted_during_shutdown_meets_no_closed_pod(
    cluster: Cluster,
) -> None:
    app = create_app(cluster.settings())
    loop = asyncio.get_running_loop()
    with bind("127.0.0.1", 0) as listening, bind("127.0.0.1", 0) as late, socket.socket() as client:
        late.listen()
        for sock in (late, client):
            sock.setblocking(False)
        async with app.router.lifespan_context(app):
            pod = app.state.pod
            server = InProcessServer(uvicorn_config(app, pod), pod)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            await until(lambda: server.started)
            server.handle_exit(signal.SIGTERM, None)
            await until(lambda: not server.servers[0].is_serving())
            # uvicorn has closed the connections that it knows. The loop hands it one more, accepted just before.
            await loop.sock_connect(client, late.getsockname())
            accepted, _ = await loop.sock_accept(late)
            await loop.connect_accepted_socket(
                lambda: HttpProtocol(pod, config=server.config, server_state=server.server_state, app_state={}),
                accepted,
            )
            assert len(server.server_state.connections) == 1
            # Without the graceful timeout, so that no time decides this.
            server.force_exit = True
            await serving
        await loop.sock_sendall(client, b"GET /v1/streams HTTP/1.1\r\nHost: here\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(loop.sock_recv(client, 65_536), DEADLINE_SECONDS) == b""


async def test_a_broken_pod_leaves_if_a_parent_can_replace_it(cluster: Cluster) -> None:
    app = create_app(cluster.settings())
    with bind("127.0.0.1", 0) as listening:
        async with app.router.lifespan_context(app):
            pod = app.state.pod
            server = InProcessServer(uvicorn_config(app, pod), pod)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            await until(lambda: server.started)
            pod.broken = True
            pod.siblings = ParentLink(0)
            await asyncio.wait_for(serving, DEADLINE_SECONDS)


async def test_a_pod_without_clients_leaves_at_once(cluster: Cluster) -> None:
    async with running("serve", env=pod_environment(cluster, BATON_DRAIN_SECONDS="60")) as pod:
        await address(pod)
        pod.signal(signal.SIGTERM)
        assert await pod.ends(5) == 0


async def test_a_signaled_worker_hands_its_streams_to_the_next(cluster: Cluster) -> None:
    pod = await cluster.pod()
    env = environment(BATON_DATABASE_URL=cluster.dsn, BATON_REPLAY_SPEED="0.5", BATON_WORKER_DRAIN_SECONDS="0.5")
    async with running("worker", env=env) as first:
        stream_id = await cluster.create(pod, input={"transcript": "outlive"})
        async with following(cluster.client, pod.url, stream_id) as follower:
            await follower.next_event()
            first.signal(signal.SIGTERM)
            assert await first.ends(10) == 0
            async with running("worker", env=env | {"BATON_REPLAY_SPEED": "1000"}):
                frames = await follower.rest()
    kinds = [frame.partition(b'"type":"')[2].partition(b'"')[0] for frame in frames]
    assert (kinds.count(b"resumed"), kinds.count(b"reset")) == (1, 0)
    assert kinds[-1] == b"done"
    assert frames == await frames_after(cluster.client, pod.url, stream_id)


async def test_a_signal_ends_a_pod_that_is_still_starting() -> None:
    """As the first process of a container it would ignore the signal, and be killed after the grace period."""
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        env = environment(
            BATON_DATABASE_URL=f"postgresql://baton@127.0.0.1:{port}/baton",
            BATON_ALLOW_ANONYMOUS="true",
            BATON_PORT="0",
        )
        async with running("serve", env=env) as pod:
            await asyncio.wait_for(asked.wait(), DEADLINE_SECONDS)
            pod.signal(signal.SIGTERM)
            assert await pod.ends(5) == 128 + signal.SIGTERM


async def test_a_page_that_kills_pods_is_served_on_this_machine_only(cluster: Cluster) -> None:
    with pytest.raises(ConfigurationError, match="BATON_DEMO serves a page that kills pods and workers"):
        await serve(cluster.settings(host="0.0.0.0", port=0, demo=True))
