"""Inputs over HTTP: who may send one to which streams, once for each key, and how a producer reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import until

from baton.api import content_types, native_inputs, signs_of_life
from baton.db import inputs
from baton.db.notifications import CANCEL_CHANNEL, HELD, INPUT_CHANNEL, QUEUE_CHANNEL


async def send(
    cluster: Cluster, pod: RunningPod, stream_id: str, data: Any, headers: dict[str, str] | None = None
) -> httpx2.Response:
    url = f"{pod.url}/v1/streams/{stream_id}/inputs"
    return await cluster.client.post(url, json={"data": data}, headers=headers or {})


async def read(cluster: Cluster, pod: RunningPod, stream_id: str, query: str = "", **headers: str) -> Any:
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}/inputs{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def opened(cluster: Cluster, pod: RunningPod, headers: dict[str, str] | None = None, **body: Any) -> Any:
    answer = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"generator": "external"} | body, headers=headers or {}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_inputs_are_numbered_and_kept_as_they_were_sent(cluster: Cluster) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    stream = await cluster.create(pods[0])
    sent = ["a", {"b": ["\0", 1.5, None]}, 0, False]
    for number, data in enumerate(sent, 1):
        answer = await send(cluster, pods[number % 2], stream, data)
        assert (answer.status_code, answer.json()) == (201, {"number": number})
    page = await read(cluster, pods[0], stream)
    assert [(item["number"], item["data"]) for item in page["data"]] == list(enumerate(sent, 1))
    assert page["status"] == "queued"
    assert [item["number"] for item in (await read(cluster, pods[1], stream, "?after=2"))["data"]] == [3, 4]
    assert pods[0].metric("baton_inputs_total", outcome="added") == 2


async def test_a_key_adds_an_input_once_to_each_stream(cluster: Cluster) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    stream, other = [await cluster.create(pods[0]) for _ in range(2)]
    key = {"idempotency-key": "one"}
    answers = [await send(cluster, pod, stream, {"a": 1}, key) for pod in pods]
    assert [(answer.status_code, answer.json()["number"]) for answer in answers] == [(201, 1), (200, 1)]
    assert code(await send(cluster, pods[0], stream, {"a": 2}, key)) == (422, "idempotency_conflict")
    assert (await send(cluster, pods[0], other, {"a": 2}, key)).json() == {"number": 1}
    assert (await send(cluster, pods[0], stream, "next")).json() == {"number": 2}
    assert [item["data"] for item in (await read(cluster, pods[0], stream))["data"]] == [{"a": 1}, "next"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"data":null}', "data: it is null"),
        (b"{}", "data: Field required"),
        (b'{"data":1,"key":"x"}', "key: Extra inputs"),
        (b'{"data":' + b"[" * 300 + b"]" * 300 + b"}", "data: cannot be stored"),
        (b"[1]", "body:"),
        (b"", "not JSON"),
    ],
)
async def test_what_is_no_input_is_refused(cluster: Cluster, body: bytes, detail: str) -> None:
    pod = await cluster.pod()
    stream = await cluster.create(pod)
    answer = await cluster.client.post(f"{pod.url}/v1/streams/{stream}/inputs", content=body)
    assert code(answer) == (400, "invalid_request")
    assert detail in answer.json()["detail"]
    assert (await read(cluster, pod, stream))["data"] == []


async def test_an_input_has_the_size_of_an_event_at_most(cluster: Cluster) -> None:
    pod = await cluster.pod(max_event_bytes=1024)
    stream = await cluster.create(pod)
    assert (await send(cluster, pod, stream, "x" * 1022)).status_code == 201
    assert code(await send(cluster, pod, stream, "x" * 1023)) == (413, "message_too_large")
    assert pod.metric("baton_rejections_total", limit="message_bytes") == 1
    assert pod.metric("baton_inputs_total", outcome="message_too_large") == 1


async def test_a_stream_takes_a_largest_number_of_inputs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST", 2)
    pod = await cluster.pod()
    stream = await cluster.create(pod)
    answers = [await send(cluster, pod, stream, "x", {"idempotency-key": name}) for name in "abca"]
    assert [answer.status_code for answer in answers] == [201, 201, 409, 200]
    assert code(answers[2]) == (409, "inbox_full")


async def test_the_inputs_of_a_stream_have_a_largest_size(cluster: Cluster) -> None:
    pod = await cluster.pod(max_input_bytes=1000)
    stream = await cluster.create(pod)
    large = "x" * 600
    answers = [await send(cluster, pod, stream, large, {"idempotency-key": name}) for name in "aba"]
    assert [answer.status_code for answer in answers] == [201, 409, 200]
    assert code(answers[1]) == (409, "inbox_full")
    assert pod.metric("baton_inputs_total", outcome="inbox_full") == 1
    assert (await send(cluster, pod, stream, "x" * 100)).status_code == 201


@pytest.mark.parametrize("status", ["cancelled", "completed"])
async def test_a_stream_that_has_ended_takes_no_input_and_says_how_it_ended(cluster: Cluster, status: str) -> None:
    pod = await cluster.pod()
    created = await opened(cluster, pod)
    stream = created["id"]
    assert (await send(cluster, pod, stream, "x")).status_code == 201
    if status == "cancelled":
        await cluster.client.post(f"{pod.url}/v1/streams/{stream}/cancel")
    else:
        closing = {"content-type": content_types.EVENTS, "stream-closed": "true"}
        assert (await cluster.client.post(pod.url + created["producer"]["url"], headers=closing)).is_success
    refused = await send(cluster, pod, stream, "x")
    assert code(refused) == (409, "stream_ended")
    assert status in refused.json()["detail"]
    # The inputs have served their purpose.
    assert await read(cluster, pod, stream, "?wait=20") == {"data": [], "status": status}
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.input") == 0


async def test_an_input_queues_a_stream_that_waits(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.wait("an approval")
    stream = str(author.id)
    heard: list[str] = []
    async with cluster.pool.acquire() as connection:
        for channel in (INPUT_CHANNEL, QUEUE_CHANNEL, CANCEL_CHANNEL):
            await connection.add_listener(channel, lambda *given: heard.append(f"{given[2]} {given[3]}"))
        for _ in range(2):
            assert (await send(cluster, pod, stream, "go on")).status_code == 201
        await until(lambda: len(heard) >= 2)
        await connection.reset()
    # The second one finds a queued stream. If a worker has it already, that worker must hear of the input.
    assert heard == [f"{QUEUE_CHANNEL} {HELD}", f"{INPUT_CHANNEL} {UUID(stream).hex}"]
    shown = (await cluster.client.get(f"{pod.url}/v1/streams/{stream}")).json()
    assert (shown["status"], shown["interruption"]) == ("queued", "input")
    assert pod.metric("baton_inputs_total", outcome="woken") == 1


@pytest.mark.parametrize("status", ["queued", "running", "waiting"])
async def test_an_erased_stream_leaves_no_inputs(cluster: Cluster, status: str) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    if status == "waiting":
        await author.wait("an approval")
    elif status == "queued":
        await author.interrupt("worker_left")
    await inputs.add(cluster.pool, author.id, b'"my address"')
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{author.id}")).status_code == 204
    for table in ("stream", "input"):
        assert await cluster.pool.fetchval(f"SELECT count(*) FROM baton.{table}") == 0
    assert code(await send(cluster, pod, str(author.id), "x")) == (404, "stream_not_found")


# Who may


async def test_a_token_sends_inputs_to_its_own_stream_if_it_was_made_for_that(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    _, reader = await make_key(cluster, "create", "read", "cancel")
    _, sender = await make_key(cluster, "input")
    pod = await guarded_pod(cluster)
    mine, other = [await opened(cluster, pod, bearer(key)) for _ in range(2)]
    stream = mine["id"]

    async def token(credential: str, **wish: Any) -> str:
        url = f"{pod.url}/v1/streams/{stream}/token"
        made = await cluster.client.post(url, json=wish, headers=bearer(credential))
        return str(made.json().get("token", made.status_code))

    narrow = await token(key, scopes=["input"], view="answer")
    for credential, status in (
        (key, 201),
        (sender, 201),
        (reader, 403),
        (narrow, 201),
        (signed(stream, scopes=["input"]), 201),
        (mine["token"], 403),  # a viewer's token does not steer
        (mine["producer"]["token"], 403),
        (await token(key), 403),
    ):
        assert (await send(cluster, pod, stream, "x", bearer(credential))).status_code == status, credential
    assert await token(reader, scopes=["input"]) == "403"
    assert (await send(cluster, pod, other["id"], "x", bearer(narrow))).status_code == 404
    _, stranger = await make_key(cluster, tenant="other")
    assert code(await send(cluster, pod, stream, "x", bearer(stranger))) == (404, "stream_not_found")
    # What it has sent is not for it to read.
    for credential, status in ((narrow, 403), (sender, 403), (reader, 200), (mine["producer"]["token"], 200)):
        url = f"{pod.url}/v1/streams/{stream}/inputs"
        assert (await cluster.client.get(url, headers=bearer(credential))).status_code == status, credential


# Reading


async def test_a_producer_is_steered_through_any_pod(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_inputs, "POLL_SECONDS", 1000)
    monkeypatch.setattr(signs_of_life, "SIGN_OF_LIFE_SECONDS", 1000)
    pods = [await cluster.pod(idle_timeout_seconds=5000) for _ in range(2)]
    stream = (await opened(cluster, pods[0]))["id"]
    for number in (1, 2):
        held = asyncio.create_task(read(cluster, pods[0], stream, f"?after={number - 1}&wait=20"))
        await until(lambda: pods[0].metric("baton_subscribers") == 1)
        assert (await send(cluster, pods[1], stream, number)).status_code == 201
        assert [item["data"] for item in (await held)["data"]] == [number]
        await until(lambda: pods[0].metric("baton_subscribers") == 0)


async def test_an_input_whose_notification_is_lost_is_found(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_inputs, "POLL_SECONDS", 0.05)
    pod = await cluster.pod()
    stream = await cluster.create(pod)
    held = asyncio.create_task(read(cluster, pod, stream, "?wait=20"))
    await until(lambda: pod.metric("baton_subscribers") == 1)
    await inputs.add(cluster.pool, UUID(stream), b'"x"')
    assert [item["data"] for item in (await held)["data"]] == ["x"]


async def test_a_held_request_ends_with_the_stream_and_when_the_pod_leaves(cluster: Cluster) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    streams = [(await opened(cluster, pods[0]))["id"] for _ in range(2)]
    held = [asyncio.create_task(read(cluster, pods[0], stream, "?wait=20")) for stream in streams]
    await until(lambda: pods[0].metric("baton_subscribers") == 2)
    await cluster.client.post(f"{pods[1].url}/v1/streams/{streams[0]}/cancel")
    assert await held[0] == {"data": [], "status": "cancelled"}
    await cluster.stop_pod(pods[0])
    assert await held[1] == {"data": [], "status": "open"}


async def test_a_held_request_is_a_sign_of_life_and_no_viewer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "SIGN_OF_LIFE_SECONDS", 0.05)
    _, key = await make_key(cluster)
    _, reader = await make_key(cluster, "read")
    pod = await guarded_pod(cluster, watch_interval_seconds=0.05)
    created = await opened(cluster, pod, bearer(key), cancel_when_unwatched_seconds=1000)
    await cluster.pool.execute("UPDATE baton.external_stream SET heard_at = 'epoch'")

    def heard_after(moment: float) -> Callable[[], Awaitable[bool]]:
        async def heard() -> bool:
            query = "SELECT extract(epoch FROM heard_at) > $1 FROM baton.external_stream"
            return bool(await cluster.pool.fetchval(query, moment))

        return heard

    assert (await read(cluster, pod, created["id"], "?wait=0.2", **bearer(reader)))["data"] == []
    assert not await heard_after(0)()
    held = asyncio.create_task(read(cluster, pod, created["id"], "?wait=20", **bearer(created["producer"]["token"])))
    await until(heard_after(0))
    await cluster.pool.execute("UPDATE baton.external_stream SET heard_at = 'epoch'")
    await until(heard_after(0))
    assert (await send(cluster, pod, created["id"], "x", bearer(key))).status_code == 201
    assert (await held)["data"][0]["data"] == "x"
    assert await cluster.pool.fetchval("SELECT watched_at FROM baton.stream") is None
