"""The routes for the AI SDK over HTTP, as its transports ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.cluster import Cluster, RunningPod, Tap, echo, text
from tests.support.logbook import until_after

from baton.db import stream_lists
from baton.generators import GenerationRequest, Yielded

DONE = b"data: [DONE]\n\n"
MESSAGES = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]
WORDS = ["a", "b", "c"]
KINDS = ["start", "start-step", "text-start", *["text-delta"] * 3, "text-end", "finish-step", "finish"]
CHAT = "/v1/ai-sdk/chat"


def sent(chat: str = "42", **fields: Any) -> dict[str, Any]:
    return {"id": chat, "messages": MESSAGES, "trigger": "submit-message", **fields}


def kinds(body: bytes) -> list[str]:
    found = body.removesuffix(DONE).removesuffix(b"\n\n").split(b"\n\n")
    return [json.loads(frame.removeprefix(b"data: "))["type"] for frame in found if frame]


async def finished(cluster: Cluster, pod: RunningPod, chat: str = "42") -> httpx2.Response:
    """A chat with an answer that has ended."""
    tap = Tap()
    await cluster.worker({"replay": tap})
    tap.let(*WORDS)
    tap.end()
    return await cluster.client.post(f"{pod.url}{CHAT}", json=sent(chat))


async def test_a_message_is_answered_in_the_same_request_and_kept_as_a_chat(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"mine": echo, "replay": echo})
    body = sent("a/b ü", model="mine", messageId="x", temperature=0)
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["content-type"].startswith("text/event-stream")
    stream_id = UUID(answer.headers["x-workflow-run-id"].removeprefix("run_"))
    row = await cluster.pool.fetchrow("SELECT * FROM baton.stream WHERE id = $1", stream_id)
    assert row is not None
    assert (row["generator"], row["on_worker_lost"]) == ("mine", "fail")
    assert json.loads(row["metadata"]) == {"chat": "a/b ü"}
    assert json.loads(row["input"]) == {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}


async def test_an_active_stream_is_resumed_from_its_start_and_an_ended_one_is_not(cluster: Cluster) -> None:
    one, two = await cluster.pod(), await cluster.pod()
    assert (await cluster.client.get(f"{one.url}{CHAT}/42/stream")).status_code == 204
    tap = Tap()
    await cluster.worker({"replay": tap})
    sending = asyncio.create_task(cluster.client.post(f"{one.url}{CHAT}", json=sent()))
    tap.let(*WORDS)
    await tap.started.wait()
    async with cluster.client.stream("GET", f"{two.url}{CHAT}/42/stream") as resumed:
        assert resumed.status_code == 200
        tap.end()
        replay = await resumed.aread()
    whole = (await sending).content
    assert whole.endswith(DONE)
    assert kinds(whole) == KINDS
    assert replay == whole
    ended = await cluster.client.get(f"{two.url}{CHAT}/42/stream")
    assert (ended.status_code, ended.content) == (204, b"")


async def test_a_chat_with_thousands_of_streams_is_found_among_the_newest(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_lists, "MAX_SCANNED", 3)
    pod = await cluster.pod()
    author = newest = await cluster.author(chat="main")
    await author.write(text(1))
    for tenant, chat in [("other", "main")] * 4 + [("", "another")] * 10:
        await until_after(cluster.pool, newest.id)
        newest = await cluster.author(tenant=tenant, chat=chat)
    stopped = await cluster.client.post(f"{pod.url}{CHAT}/main/stop")
    assert (stopped.status_code, stopped.json()["id"]) == (202, str(author.id))
    for _ in range(5):
        await until_after(cluster.pool, newest.id)
        newest = await cluster.author(chat="another")
    # One request looks through five pages.
    assert (await cluster.client.post(f"{pod.url}{CHAT}/main/stop")).status_code == 204


async def test_each_start_index_returns_the_chunks_from_there(cluster: Cluster) -> None:
    pod = await cluster.pod()
    answer = await finished(cluster, pod)
    run, count = answer.headers["x-workflow-run-id"], len(KINDS)
    for place in ("42", run):
        url = f"{pod.url}{CHAT}/{place}/stream"
        for index in range(count):
            rest = await cluster.client.get(url, params={"startIndex": index})
            assert (rest.status_code, kinds(rest.content)) == (200, KINDS[index:])
            back = await cluster.client.get(url, params={"startIndex": -index})
            # The text is the only part: a client that has nothing can begin before it only.
            assert kinds(back.content) == KINDS
            assert back.headers.get("x-workflow-stream-tail-index") == (str(index - 1) if index else None)
        assert kinds((await cluster.client.get(url, params={"startIndex": -count - 5})).content) == KINDS
        # A client that asks until it has seen a `finish` would ask for ever.
        assert kinds((await cluster.client.get(url, params={"startIndex": count})).content) == ["finish"]
        beyond = await cluster.client.get(url, params={"startIndex": count + 1})
        assert (beyond.status_code, beyond.json()["code"]) == (409, "cursor_beyond_tail")
    assert kinds((await cluster.client.get(f"{pod.url}{CHAT}/{run}/stream")).content) == KINDS


async def test_a_negative_start_index_begins_at_the_start_of_its_part(cluster: Cluster) -> None:
    """The client adds its index to the header for the number of the first chunk that it gets."""

    async def two_parts(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "reasoning", "delta": "Hm. "}
        yield {"type": "reasoning", "delta": "Well."}
        yield "It "
        yield "is."

    pod = await cluster.pod()
    await cluster.worker({"replay": two_parts})
    whole = kinds((await cluster.client.post(f"{pod.url}{CHAT}", json=sent())).content)
    text_start = whole.index("text-start")
    for index in range(1, len(whole) + 3):
        url = f"{pod.url}{CHAT}/42/stream?startIndex=-{index}"
        answer = await cluster.client.get(url)
        first = max(0, int(answer.headers["x-workflow-stream-tail-index"]) + 1 - index)
        assert first == (text_start if index <= len(whole) - text_start else 0)
        assert kinds(answer.content) == whole[first:]


async def test_a_client_that_waits_for_a_finish_gets_one_if_there_is_no_answer(
    cluster: Cluster,
) -> None:
    pod = await cluster.pod()
    for index in ("0", "3", "-5"):
        url = f"{pod.url}{CHAT}/42/stream?startIndex={index}"
        answer = await cluster.client.get(url)
        assert answer.status_code == 200
        assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "x-workflow-run-id" not in answer.headers
        assert answer.content == b'data: {"type":"finish","finishReason":"other"}\n\n' + DONE
        head = await cluster.client.head(url)
        assert (head.status_code, head.headers["content-type"]) == (200, answer.headers["content-type"])
    await finished(cluster, pod)
    assert (await cluster.client.get(f"{pod.url}{CHAT}/42/stream")).status_code == 204
    stream_id = await cluster.pool.fetchval("SELECT id FROM baton.stream")
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{stream_id}")).status_code == 204
    erased = await cluster.client.get(f"{pod.url}{CHAT}/42/stream?startIndex=0")
    assert kinds(erased.content) == ["finish"]


async def test_stopping_a_chat_stops_its_newest_stream(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await finished(cluster, pod, "other")
    stop = f"{pod.url}{CHAT}/42/stop"
    assert (await cluster.client.post(stop)).status_code == 204
    tap = Tap()
    await cluster.worker({"waiting": tap})
    sending = asyncio.create_task(cluster.client.post(f"{pod.url}{CHAT}", json=sent(model="waiting")))
    await tap.started.wait()
    assert (await cluster.client.post(stop)).status_code == 202
    assert kinds((await sending).content) == ["start", "start-step", "abort", "finish"]
    assert tap.cancelled.is_set()
    assert (await cluster.client.post(stop)).status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 400, "messages: Field required"),
        ({"id": 42, "messages": []}, 400, "id: "),
        ({"id": "\0", "messages": []}, 400, "id: "),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.parts: Field required"),
        ({"messages": [{"role": "user", "content": "Hello"}]}, 400, "/v1/ai-sdk/v4/chat"),
        ({"messages": [{**MESSAGES[0], "content": "Hello"}]}, 400, "/v1/ai-sdk/v4/chat"),
        ({"messages": [{"role": "tool", "parts": []}]}, 400, "messages.0.role: "),
        ({"messages": [{"role": "user", "parts": [{"type": "file"}]}]}, 400, "of the type 'file' needs 'url'"),
        ({"messages": [{"role": "user", "parts": [{"type": "x"}]}]}, 400, "does not accept a part of the type 'x'"),
        ({"messages": [], "x": json.loads("[" * 300 + "]" * 300)}, 400, "cannot be stored as JSON"),
        ({"messages": [], "model": "nobody"}, 422, "no generator called 'nobody'"),
    ],
)
async def test_an_unanswerable_request_is_refused_with_a_reason(
    cluster: Cluster, body: dict[str, Any], status: int, sentence: str
) -> None:
    pod = await cluster.pod()
    answer = await cluster.client.post(f"{pod.url}{CHAT}", json=body)
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


@pytest.mark.parametrize("index", ["x", "1.0", "--1", "9" * 10])
async def test_a_malformed_start_index_is_refused(cluster: Cluster, index: str) -> None:
    pod = await cluster.pod()
    await finished(cluster, pod)
    answer = await cluster.client.get(f"{pod.url}{CHAT}/42/stream", params={"startIndex": index})
    assert answer.status_code == 400
    assert "startIndex must be the number of chunks" in answer.json()["detail"]


async def test_an_unknown_run_is_not_found_and_a_bad_chat_is_refused(cluster: Cluster) -> None:
    pod = await cluster.pod()
    unknown = await cluster.client.get(f"{pod.url}{CHAT}/run_{'0' * 32}/stream?startIndex=3")
    assert unknown.status_code == 404
    for method, path in (("GET", "stream"), ("POST", "stop")):
        assert (await cluster.client.request(method, f"{pod.url}{CHAT}/%00/{path}")).status_code == 400


async def test_http_1_0_requests_create_and_follow_nothing(cluster: Cluster) -> None:
    pod = await cluster.pod()
    url = httpx2.URL(pod.url)
    body = json.dumps(sent()).encode()
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    answer = await reader.read()
    writer.close()
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"http_1_1_required" in answer
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0
