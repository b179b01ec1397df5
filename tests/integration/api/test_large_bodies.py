"""Conversations with images: they go through on the defaults, and many at once stay within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
import orjson
import pytest
from tests.support.cluster import Cluster, RunningPod, Tap
from tests.support.doors import DOORS
from tests.support.logbook import until

from baton.generators import GenerationRequest
from baton.generators.conversation import messages
from baton.generators.protocol import Yielded
from baton.pod.request_bodies import FREE_BYTES
from baton.settings import Settings

MIB = 1 << 20
PICTURE = "data:image/jpeg;base64," + "A1b2" * (10 * MIB // 4)

QUESTION = {
    "id": "m1",
    "role": "user",
    "parts": [
        {"type": "text", "text": "What is this?"},
        {"type": "file", "mediaType": "image/jpeg", "url": PICTURE},
    ],
}
UI = {"id": "chat", "messages": [QUESTION]}
CHAT = {
    "model": "replay",
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}],
}
RESPONSE = {
    "model": "replay",
    "input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}],
}


async def seen(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Say how much of a picture has come."""
    text = orjson.dumps(messages(request.input)).decode()
    yield f"{text.count(PICTURE)} whole picture"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/ai-sdk/chat", UI),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/responses", RESPONSE),
        ("/v1/responses", RESPONSE | {"stream": True}),
        ("/v1/streams", {"input": CHAT}),
    ],
)
async def test_a_conversation_of_ten_mebibytes_is_answered_on_the_defaults(
    cluster: Cluster, path: str, body: dict[str, Any]
) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": seen})
    headers = {"accept": "text/plain"} if path == "/v1/streams" else {}
    answer = await cluster.client.post(f"{pod.url}{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text[:500]
    assert "1 whole picture" in answer.text
    assert pod.metric("baton_request_body_bytes") == 0


async def test_the_next_message_of_a_chat_is_added_to_its_images(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": seen})
    url = f"{pod.url}/v1/ai-sdk/chat"
    assert (await cluster.client.post(url, json=UI)).status_code == 200
    question = {"id": "m2", "role": "user", "parts": [{"type": "text", "text": "And who made it?"}]}
    answer = await cluster.client.post(url, json={"id": "chat", "message": question})
    assert "1 whole picture" in answer.text
    assert not pod.pod.bodies.turn.locked()


async def test_many_large_bodies_at_once_stay_within_the_bound(cluster: Cluster) -> None:
    pod = await cluster.pod(max_body_bytes=2 * MIB, max_total_body_bytes=8 * MIB)
    arrived, highest = asyncio.Event(), 0
    body = orjson.dumps({"input": "x" * (2 * MIB - 100)})

    async def slowly() -> AsyncIterator[bytes]:
        yield body[: 3 * MIB // 2]
        await arrived.wait()
        yield body[3 * MIB // 2 :]

    async def send() -> httpx2.Response:
        return await cluster.client.post(f"{pod.url}/v1/streams", content=slowly())

    def is_held() -> bool:
        nonlocal highest
        highest = max(highest, pod.pod.bodies.size_bytes)
        return pod.metric("baton_rejections_total", limit="total_body_bytes") >= 6

    sending = [asyncio.create_task(send()) for _ in range(10)]
    await until(is_held)
    # Ordinary requests are taken meanwhile.
    small = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "x" * 50_000})
    assert small.status_code == 201
    arrived.set()
    answers = await asyncio.gather(*sending)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) >= 6
    assert len(refused) + sum(answer.status_code == 201 for answer in answers) == 10
    for answer in refused:
        assert answer.json()["code"] == "request_memory_full"
        assert answer.headers["retry-after"] == "2"
    assert 0 < highest <= 8 * MIB
    assert pod.metric("baton_request_body_bytes") == 0


async def test_a_body_that_waits_too_long_for_its_turn_gets_503(cluster: Cluster) -> None:
    pod = await cluster.pod()
    created = (await cluster.client.post(f"{pod.url}/v1/responses", json=RESPONSE | {"background": True})).json()
    pod.pod.bodies.turn_seconds = 0
    async with pod.pod.bodies.turn:
        refused = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "x" * 2 * MIB})
        assert (refused.status_code, refused.json()["code"]) == (503, "request_memory_full")
        # To read a large input back takes a turn, too.
        unread = await cluster.client.get(f"{pod.url}/v1/responses/{created['id']}")
        assert (unread.status_code, unread.json()["error"]["code"]) == (503, "request_memory_full")
    for answer in (refused, unread):
        assert answer.headers["retry-after"] == "2"
    assert pod.metric("baton_rejections_total", limit="bodies_turn") == 2
    assert (await cluster.client.get(f"{pod.url}/v1/responses/{created['id']}")).status_code == 200
    assert not pod.pod.bodies.turn.locked()


async def test_a_request_that_waits_for_an_answer_holds_no_body(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    await cluster.worker({"replay": tap})
    doors = [door.creating() for door in DOORS.values()]
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSE), *doors):
        waiting = asyncio.create_task(cluster.client.post(f"{pod.url}{path}", json=body))
        await until(lambda: pod.metric("baton_subscribers") == 1)
        assert pod.metric("baton_request_body_bytes") == 0
        assert not pod.pod.bodies.turn.locked()
        waiting.cancel()
        await until(lambda: pod.metric("baton_subscribers") == 0)


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/ai-sdk/chat", "/v1/chat/completions", "/v1/responses"])
async def test_a_client_that_sends_too_much_gets_advice(
    cluster: Cluster, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads only once it has sent all, as browsers do; a connection that is closed before would be an error."""
    pod = await cluster.pod(max_body_bytes=MIB)
    answer = await said_last(pod, path, b"x" * (8 * MIB))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"This message is larger than 1 MiB and cannot be sent. Images and files of earlier messages count" in answer
    assert b"BATON_" not in answer
    assert "BATON_MAX_BODY_BYTES" in caplog.text


async def test_an_oversized_body_is_not_sent_again(cluster: Cluster) -> None:
    """Where all bodies together may have as much as one of them, both bounds are exceeded."""
    pod = await cluster.pod(max_body_bytes=MIB, max_total_body_bytes=MIB)
    answer = await said_last(pod, "/v1/streams", b"x" * (8 * MIB))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"retry-after" not in answer
    assert pod.metric("baton_request_body_bytes") == 0


class Stubborn:
    """A generator that goes on for a while when it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.may_stop = asyncio.Event()

    async def __call__(self, _request: GenerationRequest, /) -> AsyncGenerator[Yielded, None]:
        yield "Half"
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            await self.may_stop.wait()


async def test_a_message_waiting_for_a_stopping_answer_lets_other_bodies_pass(cluster: Cluster) -> None:
    pod = await cluster.pod()
    stubborn = Stubborn()
    await cluster.worker({"replay": stubborn})
    url = f"{pod.url}/v1/ai-sdk/chat"
    first = asyncio.create_task(cluster.client.post(url, json=UI))
    await until(lambda: pod.metric("baton_subscribers") == 1)
    assert (await cluster.client.post(f"{url}/chat/stop")).status_code == 202
    await stubborn.cancelled.wait()
    body = orjson.dumps({"id": "chat", "message": {**QUESTION, "id": "m2"}})
    second = asyncio.create_task(cluster.client.post(url, content=body))
    await until(lambda: pod.pod.bodies.size_bytes == len(body) - FREE_BYTES)
    other = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": PICTURE})
    assert other.status_code == 201
    assert not second.done()
    second.cancel()
    stubborn.may_stop.set()
    await first


async def said_last(pod: RunningPod, path: str, body: bytes) -> bytes:
    """Send a request to its end, and only then read."""
    host, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


async def test_the_body_timeout_grows_with_each_mebibyte(cluster: Cluster) -> None:
    """The first connection of the queue is the next one to be late: what keeps arriving goes to its end."""
    pod = await cluster.pod()
    host, port = pod.url.removeprefix("http://").split(":")
    head = f"POST /v1/streams HTTP/1.1\r\nhost: {host}\r\ncontent-length: {4 * MIB}\r\n\r\n".encode()
    queue = pod.pod.tcp_limits._since["body"]
    writers = []
    for count in (1, 2):
        _, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        writer.write(head)
        await until(lambda count=count: len(queue) == count)  # type: ignore[misc]
    first = next(iter(queue))
    writers[0].write(b"x" * (MIB - 1))
    await writers[0].drain()
    assert next(iter(queue)) is first
    writers[0].write(b"x" * 10)
    await until(lambda: next(iter(queue)) is not first)
    for writer in writers:
        writer.close()


def test_the_defaults_hold_a_chat_with_images() -> None:
    settings = Settings.load()
    assert settings.max_body_bytes >= 24 * MIB
    assert settings.max_input_bytes >= 24 * MIB
