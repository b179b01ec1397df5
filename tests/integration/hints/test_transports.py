"""What every transport must do, and what each promises. The polls that find lost hints are too rare to help here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg
from tests.support.cluster import Cluster, Tap, echo
from tests.support.follower import following, frames_after, texts
from tests.support.hints import sending
from tests.support.logbook import until

import baton.hints
from baton.chaos.nats_server import NatsServer
from baton.errors import ConfigurationError
from baton.generators import GenerationRequest
from baton.pod import relay_registry

# A hint that is lost costs more than a test's deadline.
RARE = {"log_poll_seconds": 60, "queue_poll_seconds": 60, "worker_heartbeat_seconds": 60, "lease_seconds": 200}


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    async with NatsServer.running() as server:
        yield server


@contextlib.asynccontextmanager
async def settings_of(transport: str) -> AsyncIterator[dict[str, Any]]:
    """The settings of a transport, with its server."""
    async with contextlib.AsyncExitStack() as stack:
        if transport == "nats":
            server = await stack.enter_async_context(NatsServer.running())
            yield RARE | {"hints_url": server.url}
        elif transport == "poll":
            yield RARE | {"hints_url": "poll", "hints_poll_seconds": 0.02}
        else:
            yield RARE


async def listeners(cluster: Cluster) -> list[str]:
    """The sessions of the database that listen, or have just notified."""
    rows = await cluster.pool.fetch(
        "SELECT application_name, query FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND query ~* '^listen|pg_notify|pg_listening'"
    )
    return [row["application_name"] for row in rows]


@pytest.mark.parametrize("transport", ["postgres", "nats", "poll"])
async def test_an_answer_a_cancel_and_an_input_arrive(cluster: Cluster, transport: str) -> None:
    async def asks(request: GenerationRequest, /) -> AsyncGenerator[str, None]:
        yield "ready"
        yield str(await request.receive())

    async with settings_of(transport) as given:
        tap = Tap()
        pods = [await cluster.pod(**given) for _ in range(2)]
        await cluster.worker({"tap": tap, "asks": asks}, **given)
        written = await cluster.create(pods[0], generator="tap")
        async with following(cluster.client, pods[1].url, written) as viewer:
            for word in ("one", "two", "three"):
                tap.let(word)
                assert (await viewer.next_event())["delta"] == word
            await cluster.client.post(f"{pods[0].url}/v1/streams/{written}/cancel")
            assert (await viewer.next_event())["status"] == "cancelled"
        steered = await cluster.create(pods[0], generator="asks")
        async with following(cluster.client, pods[1].url, steered) as viewer:
            assert (await viewer.next_event())["delta"] == "ready"
            await cluster.client.post(f"{pods[0].url}/v1/streams/{steered}/inputs", json={"data": "go"})
            assert texts(await viewer.rest()) == ["ready", "go"]
        assert bool(await listeners(cluster)) == (transport == "postgres")
        assert {pod.shard.hints.state.value for pod in pods} == {"polling" if transport == "poll" else "listening"}


async def test_a_pod_with_nats_gets_the_hints_of_what_it_follows(
    cluster: Cluster, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_registry, "LINGER_SECONDS", 0)
    given = RARE | {"hints_url": nats_server.url, "log_poll_seconds": 0.05}
    one, other = [await cluster.pod(**given) for _ in range(2)]
    tap = Tap()
    await cluster.worker({"tap": tap}, **given)
    stream_id = await cluster.create(one, generator="tap")
    async with following(cluster.client, one.url, stream_id) as viewer:
        tap.let("a")
        await viewer.next_event()
        await until(lambda: one.metric("baton_notifications_received_total") > 0)
    await until(lambda: one.metric("baton_relays") == 0)
    received = one.metric("baton_notifications_received_total")
    async with following(cluster.client, other.url, stream_id, cursor=1) as viewer:
        for word in "bcd":
            tap.let(word)
            await viewer.next_event()
        await until(lambda: other.metric("baton_notifications_received_total") > 0)
        tap.end()
        await viewer.rest()
    assert one.metric("baton_notifications_received_total") == received


async def test_two_installations_on_one_nats_server_do_not_hear_each_other(
    cluster: Cluster, nats_server: NatsServer
) -> None:
    given = RARE | {"hints_url": nats_server.url}
    pod = await cluster.pod(**given)
    subjects: set[str] = set()

    async def hear(message: Msg) -> None:
        subjects.add(message.subject)

    client = await nats.connect(nats_server.url)
    try:
        await client.subscribe(">", cb=hear)
        await client.flush()
        await cluster.worker({"echo": echo}, **given)
        await frames_after(cluster.client, pod.url, await cluster.create(pod, generator="echo", input=["x"]))
        await until(lambda: any("baton_events" in subject for subject in subjects))
    finally:
        await client.close()
    identity = await cluster.pool.fetchrow("SELECT * FROM baton.database_identity")
    assert identity is not None
    prefix = f"baton.{identity['installation'].hex}.{identity['number']}."
    assert [subject for subject in subjects if not subject.startswith(prefix)] == []


async def test_a_client_of_nats_needs_its_package(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setitem(sys.modules, "baton.hints.nats", None)
    monkeypatch.delattr(baton.hints, "nats", raising=False)
    with pytest.raises(ConfigurationError, match=r"baton-stream\[nats\]"):
        sending(dsn, hints_url="nats://localhost")
