"""A NATS server that dies, comes back, is not there at the start, hangs, refuses, or carries what others forge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import nats
import pytest
from nats.aio.client import Client
from tests.support.cluster import Cluster, RunningPod, Tap, echo
from tests.support.follower import following, frames_after, numbers, parse, texts
from tests.support.logbook import until

from baton.chaos.nats_server import NatsServer
from baton.db import database_identity, notifications
from baton.db.notifications import CANCEL_CHANNEL, EVENTS_CHANNEL, INPUT_CHANNEL, QUEUE_CHANNEL
from baton.hints.nats import subject_prefix
from baton.hints.transport import HintState
from baton.outcome import Outcome

WORDS = [f"word{number} " for number in range(60)]
POLLS = {"log_poll_seconds": 0.2, "queue_poll_seconds": 0.2, "listen_probe_seconds": 1}


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer.running() as running:
        yield running


@contextlib.asynccontextmanager
async def speaking(server: NatsServer, cluster: Cluster) -> AsyncIterator[tuple[Client, str]]:
    """A stranger's connection, which knows the subjects of the database but not its key."""
    client = await nats.connect(server.url)
    try:
        yield client, subject_prefix(await database_identity.read(cluster.pool))
    finally:
        await client.close()


async def hears(pod: RunningPod, *, state: HintState = HintState.LISTENING) -> None:
    await until(lambda: pod.shard.hints.state is state)


async def test_a_nats_server_that_dies_and_comes_back_costs_no_event(cluster: Cluster, server: NatsServer) -> None:
    given = POLLS | {"hints_url": server.url}
    pods = [await cluster.pod(**given) for _ in range(2)]
    taps = {f"tap{number}": Tap() for number in range(4)}
    await cluster.worker(taps, **given)
    streams = [await cluster.create(pods[0], generator=name) for name in taps]
    viewers = [
        asyncio.create_task(frames_after(cluster.client, pod.url, stream_id)) for pod in pods for stream_id in streams
    ]
    for at, word in enumerate(WORDS):
        for tap in taps.values():
            tap.let(word)
        if at in {15, 40}:
            await server.kill()
            await asyncio.gather(*(hears(pod, state=HintState.DEGRADED) for pod in pods))
        if at in {25, 50}:
            await server.start()
            await asyncio.gather(*(hears(pod) for pod in pods))
    for tap in taps.values():
        tap.end()
    for frames in await asyncio.gather(*viewers):
        assert numbers(frames) == list(range(1, len(frames) + 1))
        assert "".join(texts(frames)) == "".join(WORDS)
        assert parse(frames[-1])["status"] == "completed"


async def test_pods_and_workers_start_without_a_nats_server_and_find_it_later(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with NatsServer.running(start=False) as server:
        given = POLLS | {"hints_url": server.url}
        pod = await cluster.pod(**given)
        await cluster.worker({"echo": echo}, **given)
        stream_id = await cluster.create(pod, generator="echo", input=["by", "polling"])
        assert texts(await frames_after(cluster.client, pod.url, stream_id)) == ["by", "polling"]
        assert pod.metric("baton_listener_up") == 0
        assert "The connection to NATS is lost; polling until it is back" in caplog.text
        await server.start()
        await hears(pod)
        assert pod.metric("baton_listener_up") == 1
        tap = Tap()
        await cluster.worker({"tap": tap}, **given)
        stream_id = await cluster.create(pod, generator="tap")
        async with following(cluster.client, pod.url, stream_id) as viewer:
            tap.let("hint")
            assert (await viewer.next_event())["delta"] == "hint"
            await until(lambda: pod.metric("baton_notifications_received_total") > 0)


async def test_forged_messages_and_rubbish_only_make_pods_read_the_log(cluster: Cluster, server: NatsServer) -> None:
    given = {"hints_url": server.url, "log_poll_seconds": 60, "queue_poll_seconds": 60}
    pod = await cluster.pod(**given)
    tap = Tap()
    await cluster.worker({"tap": tap}, **given)
    stream_id = await cluster.create(pod, generator="tap")
    stream = UUID(stream_id).hex
    end = Outcome.completed("stop").encode().decode()
    forged = '{"type":"text","delta":"forged"}'
    async with (
        following(cluster.client, pod.url, stream_id) as viewer,
        speaking(server, cluster) as (client, prefix),
    ):
        tap.let("true")
        await viewer.next_event()
        before = pod.metric("baton_notifications_unverified_total")
        payloads = [
            notifications.record(stream, 2, 2, "e", forged).encode(),
            notifications.record(stream, 2, 2, "e", forged).encode() + b"\n#1:" + b"A" * 22 + b"\n@1700000000000",
            notifications.record(stream, 2, 2, "t", end).encode(),
            notifications.erasure_payload(UUID(stream_id)).encode(),
            b"",
            b"\xff\xfe\x00\n\n\n",
            f"{stream} {'9' * 9000} 1 e".encode(),
            f"{stream} 1 1 -\n".encode() * 20_000,
        ]
        for payload in payloads:
            await client.publish(f"{prefix}.{EVENTS_CHANNEL}.{stream}", payload)
            for channel in (CANCEL_CHANNEL, INPUT_CHANNEL, QUEUE_CHANNEL):
                await client.publish(f"{prefix}.{channel}", payload)
        await client.publish(f"{prefix}.{CANCEL_CHANNEL}", stream.encode())
        await client.flush()
        await until(lambda: pod.metric("baton_notifications_unverified_total") >= before + 4)
        tap.let("as well")
        assert (await viewer.next_event())["delta"] == "as well"
        tap.end()
        assert parse((await viewer.rest())[-1])["status"] == "completed"


@pytest.mark.slow
async def test_a_nats_server_that_hangs_is_noticed_and_costs_no_event(cluster: Cluster, server: NatsServer) -> None:
    given = POLLS | {"hints_url": server.url}
    pod = await cluster.pod(**given)
    tap = Tap()
    await cluster.worker({"tap": tap}, **given)
    stream_id = await cluster.create(pod, generator="tap")
    async with following(cluster.client, pod.url, stream_id) as viewer:
        await hears(pod)
        with server.frozen():
            tap.let("one")
            assert (await viewer.next_event())["delta"] == "one"
            await hears(pod, state=HintState.DEGRADED)
            tap.let("two")
            assert (await viewer.next_event())["delta"] == "two"
        await hears(pod)
        tap.let("three")
        assert (await viewer.next_event())["delta"] == "three"


@pytest.mark.parametrize("wrong", ["password", "plain text"])
async def test_a_server_that_refuses_or_is_not_secure_is_logged_and_not_used(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    caplog.set_level(logging.WARNING)
    async with NatsServer.running("--user", "baton", "--pass", "right") as server:
        good = f"nats://baton:right@127.0.0.1:{server.port}"
        bad: dict[str, Any] = {
            "password": f"nats://baton:wrong@127.0.0.1:{server.port}",
            "plain text": f"tls://baton:right@127.0.0.1:{server.port}",
        }
        pod = await cluster.pod(hints_url=bad[wrong])
        await hears(pod, state=HintState.DEGRADED)
        expected = "Authorization Violation" if wrong == "password" else "SecureConnRequiredError"
        await until(lambda: expected in caplog.text)
        assert "right" not in caplog.text
        assert "wrong" not in caplog.text
        other = await cluster.pod(hints_url=good)
        await hears(other)
