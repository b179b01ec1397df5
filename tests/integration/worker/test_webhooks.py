"""Webhooks: signed calls, at least once, under one id, and only to hosts that the operator has listed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.support.cluster import Cluster, echo
from tests.support.logbook import connected, settings, until
from tests.support.serving import served

from baton.db import stream_creation, webhook_calls
from baton.db.postgres import Connection, pool
from baton.db.stream_creation import NewStream
from baton.errors import ConfigurationError
from baton.observability.metrics import WorkerMetrics
from baton.server.listening_socket import bind
from baton.worker.records import Records
from baton.worker.webhooks import Webhooks, signed_headers

SECRETS = tuple(f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2))


@dataclass
class Receiver:
    """An endpoint that verifies each call, and answers as the test says."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)  # of the next calls; then 204
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        first, second = (Webhook(secret).verify(body, dict(request.headers)) for secret in SECRETS)
        assert first == second
        assert request.headers["content-type"] == "application/json"
        self.calls.append(first)
        self.bodies.append(body)
        self.ids.append(request.headers["webhook-id"])
        if self.hangs:
            await asyncio.Event().wait()
        return Response(status_code=self.statuses.pop(0) if self.statuses else 204, headers=self.headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = Starlette(routes=[Route("/hook", found.answer, methods=["POST"])])
    async with served(app) as url:
        found.url = f"{url}/hook"
        yield found


class Caller:
    """A worker, as far as it calls webhooks."""

    def __init__(self, dsn: str, receiver: Receiver, **changes: Any) -> None:
        given = {"webhook_url": receiver.url, "webhook_secrets": SECRETS} | changes
        self.result = asyncio.Event()
        self.metrics = WorkerMetrics()
        self.webhooks = Webhooks(settings(dsn, **given), self.metrics, records=Records(dsn), on_result=self.result.set)

    async def begin(self, connection: Connection) -> None:
        """Begin the calls that are due."""
        self.webhooks.hurry()
        await self.webhooks.work(connection)

    async def work(self, connection: Connection) -> None:
        """Make the calls that are due, and write their results."""
        await self.begin(connection)
        await until(lambda: not self.webhooks.running)
        await self.webhooks.work(connection)

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("baton_webhook_calls_total", {"result": result}) or 0


@contextlib.asynccontextmanager
async def calling(dsn: str, receiver: Receiver, **changes: Any) -> AsyncIterator[Caller]:
    caller = Caller(dsn, receiver, **changes)
    try:
        yield caller
    finally:
        await caller.webhooks.aclose()


async def end(dsn: str, connection: Connection, url: str, text: str = "so far") -> UUID:
    """A stream with a webhook that has ended."""
    async with pool(dsn, size=1, timeout_seconds=10) as opened:
        stream, _ = await stream_creation.create(opened, NewStream("none", None, {"chat": 7}, "fail", webhook=url))
    line = b'{"type":"text","delta":"%b"}' % text.encode()
    await connection.execute("INSERT INTO baton.batch VALUES ($1, 1, 1, 1, false, $2)", stream.id, line)
    await connection.execute(
        "UPDATE baton.stream SET status = 'failed', finish_reason = 'error', error_code = 'oops', "
        "error_message = 'No.', finished_at = clock_timestamp() WHERE id = $1",
        stream.id,
    )
    return stream.id


async def count(connection: Connection) -> int:
    found: int = await connection.fetchval("SELECT count(*) FROM baton.webhook_call")
    return found


async def pass_time(connection: Connection, **ages: int) -> None:
    """Move the calls into the past."""
    await connection.execute(
        "UPDATE baton.webhook_call SET due_at = due_at - $1::interval, created_at = created_at - $1::interval",
        timedelta(**ages),
    )


async def test_every_end_is_called_with_a_signature_of_each_secret(cluster: Cluster, receiver: Receiver) -> None:
    given = {"webhook_url": receiver.url, "webhook_secrets": SECRETS}
    await cluster.worker({"echo": echo}, **given)
    pod = await cluster.pod(**given, generators={"echo": "no:where"})
    own = f"{receiver.url}?own"
    first = await cluster.create(pod, input=["a", "b"], generator="echo", metadata={"chat": 7})
    second = await cluster.create(pod, input=["c", {"type": "no such"}], generator="echo", webhook=own)
    external = await cluster.create(pod, generator="external")
    assert (await cluster.client.post(f"{pod.url}/v1/streams/{external}/cancel")).status_code == 200
    await until(lambda: len(receiver.calls) >= 3)
    found = {call["data"]["id"]: call for call in receiver.calls}
    assert {item: call["type"] for item, call in found.items()} == {
        first: "stream.completed",
        second: "stream.failed",
        external: "stream.cancelled",
    }
    assert sorted(receiver.ids) == sorted(f"msg_{UUID(item).hex}" for item in found)
    data = found[first]["data"]
    assert (data["text"], data["text_bytes"], data["metadata"], data["error"]) == ("ab", 2, {"chat": 7}, None)
    assert found[second]["data"]["error"]["code"] == "invalid_event"
    shown = (await cluster.client.get(f"{pod.url}/v1/streams/{first}")).json()
    assert (shown["status"], shown["metadata"]) == (data["status"], data["metadata"])
    await until(lambda: _is_empty(cluster))


async def _is_empty(cluster: Cluster) -> bool:
    found: bool = await cluster.pool.fetchval("SELECT NOT EXISTS (SELECT FROM baton.webhook_call)")
    return found


async def test_pods_refuse_hosts_that_are_not_listed(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    pod = await cluster.pod(webhook_hosts="hooks.example.com,http://10.0.0.7:9000")

    async def answer(url: Any, **more: Any) -> httpx2.Response:
        return await cluster.client.post(f"{pod.url}/v1/streams", json={"input": None, "webhook": url, **more})

    for url in ("https://hooks.example.com/a?b=c", "https://hooks.example.com:443/", "http://10.0.0.7:9000/x"):
        assert (await answer(url)).status_code == 201, url
        assert (await answer(url, generator="external")).status_code == 201, url
    for url in (
        "http://hooks.example.com/a",
        "https://hooks.example.com:8443/a",
        "https://evil.example.com/a",
        "https://hooks.example.com.evil.example.com/",
        "http://10.0.0.7/",
        "http://169.254.169.254/latest/meta-data",
    ):
        refused = await answer(url)
        assert refused.status_code == 400, url
        assert "BATON_" not in refused.text
    malformed: tuple[object, ...] = (
        "https://user:pw@hooks.example.com/",
        "https://hooks.example.com@evil.example.com/",
        "https://evil.example.com\\@hooks.example.com/",
        "ftp://hooks.example.com/",
        "https://hooks.example.com/#fragment",
        "https://hooks.example.com/ x",
        "https://hooks.example.com:99999/",
        "//hooks.example.com/",
        "hooks.example.com",
        "",
        7,
    )
    for wrong in malformed:
        assert (await answer(wrong)).status_code == 400, wrong
    assert "BATON_WEBHOOK_HOSTS" in caplog.text


async def test_a_worker_does_not_call_what_only_a_pod_allowed(
    dsn: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(dsn) as connection, calling(dsn, receiver, webhook_url="https://other.example.com/") as caller:
        await end(dsn, connection, receiver.url + "?token=secret")
        await caller.work(connection)
        assert (receiver.calls, await count(connection), caller.count("given_up")) == ([], 0, 1)
    assert "BATON_WEBHOOK_HOSTS" in caplog.text
    assert "token=secret" not in caplog.text


async def test_a_call_is_repeated_with_the_same_id_and_body(
    dsn: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 302, 429]
    receiver.headers = {"location": "/elsewhere", "retry-after": "1800"}
    async with connected(dsn) as connection, calling(dsn, receiver) as caller:
        await end(dsn, connection, receiver.url)
        for tries in (1, 2, 3):
            await caller.work(connection)
            await caller.work(connection)  # it is not due
            assert len(receiver.calls) == tries
            assert await connection.fetchval("SELECT error FROM baton.webhook_call") is not None
            due = await connection.fetchval("SELECT due_at - clock_timestamp() FROM baton.webhook_call")
            assert due > timedelta(minutes=29)  # as the receiver has asked
            await pass_time(connection, hours=1)
        await caller.work(connection)
        assert (len(receiver.calls), await count(connection)) == (4, 0)
        assert (caller.count("failed"), caller.count("delivered")) == (3, 1)
    assert (len(set(receiver.ids)), len(set(receiver.bodies))) == (1, 1)
    assert len([item for item in caplog.records if item.levelno == logging.WARNING]) == 3


async def test_a_call_that_fails_for_a_day_is_given_up_and_one_that_is_gone_at_once(
    dsn: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 500, 410]
    async with connected(dsn) as connection, calling(dsn, receiver) as caller:
        await end(dsn, connection, receiver.url)
        await caller.work(connection)
        await pass_time(connection, hours=25)
        await caller.work(connection)
        assert (len(receiver.calls), await count(connection)) == (2, 0)
        await end(dsn, connection, receiver.url)
        await caller.work(connection)
        assert (len(receiver.calls), await count(connection), caller.count("given_up")) == (3, 0, 2)
    assert len([item for item in caplog.records if item.levelno == logging.ERROR]) == 2


async def test_a_receiver_that_is_down_or_hangs_holds_up_nothing(
    dsn: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.worker.webhooks.CALL_SECONDS", 0.3)
    monkeypatch.setattr("baton.worker.webhooks.MOST_OF_A_HOST", 2)
    with contextlib.closing(bind("127.0.0.1", 0)) as unused:
        down = f"http://127.0.0.1:{unused.getsockname()[1]}"
    hanging = Receiver(hangs=True)
    async with (
        served(Starlette(routes=[Route("/hook", hanging.answer, methods=["POST"])])) as url,
        connected(dsn) as connection,
        calling(dsn, receiver, webhook_hosts=f"{down},{url}") as caller,
    ):
        for _ in range(3):
            await end(dsn, connection, f"{url}/hook")
        await caller.begin(connection)
        await until(lambda: bool(hanging.calls))
        await end(dsn, connection, down)
        await end(dsn, connection, receiver.url)
        await caller.begin(connection)
        await until(lambda: len(receiver.calls) == 1)
        await until(lambda: not caller.webhooks.running)
        await caller.webhooks.work(connection)
        assert caller.count("failed") >= 3
        assert await count(connection) == 4


async def test_a_worker_that_dies_after_a_call_leaves_it_to_be_repeated_under_one_id(
    dsn: str, receiver: Receiver
) -> None:
    async with connected(dsn) as connection:
        await end(dsn, connection, receiver.url)
        async with calling(dsn, receiver) as dead:
            await dead.begin(connection)
            await dead.result.wait()  # and then nothing is written
        async with calling(dsn, receiver) as other:
            await other.work(connection)
            assert len(receiver.calls) == 1  # the lease of the dead one lasts
            await pass_time(connection, minutes=2)
            await other.work(connection)
        assert (len(receiver.calls), len(set(receiver.ids)), await count(connection)) == (2, 1, 0)


async def test_a_worker_that_leaves_puts_its_calls_back(dsn: str, receiver: Receiver) -> None:
    receiver.hangs = True
    async with connected(dsn) as connection:
        await end(dsn, connection, receiver.url)
        async with calling(dsn, receiver) as leaving:
            await leaving.begin(connection)
            await until(lambda: bool(receiver.calls))
            await leaving.webhooks.leave(connection, 0)
        receiver.hangs = False
        async with calling(dsn, receiver) as other:
            await other.work(connection)
        assert (len(receiver.calls), await count(connection)) == (2, 0)


async def test_a_long_text_and_an_erased_stream_are_left_out(dsn: str, receiver: Receiver) -> None:
    async with connected(dsn) as connection, calling(dsn, receiver) as caller:
        await end(dsn, connection, receiver.url, "x" * 70_000)
        erased = await end(dsn, connection, receiver.url)
        await connection.execute("DELETE FROM baton.stream WHERE id = $1", erased)
        await caller.work(connection)
        (call,) = receiver.calls
        assert (call["data"]["text"], call["data"]["text_bytes"]) == (None, 70_000)
        assert await count(connection) == 0


async def test_the_call_and_the_end_are_committed_together(dsn: str, receiver: Receiver) -> None:
    async with connected(dsn) as connection:
        await end(dsn, connection, receiver.url)
        assert await count(connection) == 1
        async with pool(dsn, size=1, timeout_seconds=10) as opened:
            stream, _ = await stream_creation.create(opened, NewStream("none", None, {}, "fail", webhook="x"))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE baton.stream SET status = 'failed' WHERE id = $1", stream.id)
        assert await count(connection) == 2
        await transaction.rollback()
        assert await count(connection) == 1


async def test_calls_that_no_worker_can_make_are_forgotten_after_a_week(
    dsn: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(dsn) as connection:
        await end(dsn, connection, receiver.url)
        assert await webhook_calls.delete_older(connection, 3600) == []
        async with calling(dsn, receiver, webhook_url=None, webhook_secrets=()) as caller:
            caller.webhooks._forget_pace.hurry()
            await caller.webhooks.work(connection)
            assert await count(connection) == 1
            await pass_time(connection, days=8)
            caller.webhooks._forget_pace.hurry()
            await caller.webhooks.work(connection)
            assert await count(connection) == 0
    assert "BATON_WEBHOOK_SECRETS" in caplog.text


def test_webhooks_need_a_secret(receiver: Receiver) -> None:
    with pytest.raises(ConfigurationError, match="baton keys webhook-secret"):
        Caller("postgresql://localhost/none", receiver, webhook_secrets=())


def test_another_secret_is_refused_by_receivers() -> None:
    headers = signed_headers([b"k" * 32], UUID(int=7), int(time.time()), b"{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(b"{}", headers)
