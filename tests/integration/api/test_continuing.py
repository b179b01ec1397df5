"""Answers that another worker continues: what their creators may ask for, and what clients see of the change."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from tests.support.cluster import Author, Cluster, RunningPod
from tests.support.logbook import until
from tests.support.wire import data

from baton.events import encode_text

MESSAGES = [{"role": "user", "content": "hi"}]
# How to create a stream in each dialect: the path, the body, and what it accepts.
CREATES: dict[str, tuple[str, dict[str, Any], str]] = {
    "native": ("/v1/streams", {"input": 1}, "application/json"),
    "text": ("/v1/streams", {"input": 1}, "text/plain"),
    "responses": ("/v1/responses", {"model": "replay", "input": "hi", "background": True}, "application/json"),
    "chat": ("/v1/chat/completions", {"model": "replay", "messages": MESSAGES, "stream": True}, "text/event-stream"),
    "aisdk": ("/v1/ai-sdk/chat", {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}, "*/*"),
}
NATIVE_ONLY = {"continue": (True, "retry"), "retry": (False, "retry"), "fail": (False, "fail")}
# Where a restart cannot be expressed.
OTHERS = {"continue": (True, "fail"), "retry": (False, "fail"), "fail": (False, "fail")}


class Created:
    """Creates streams, and reads what their rows say about a lost worker: whether to continue, and what otherwise."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: set[UUID] = set()

    async def policy(self, pod: RunningPod, dialect: str, **more: str) -> tuple[bool, str]:
        path, body, accept = CREATES[dialect]
        sent = self._cluster.client.stream("POST", f"{pod.url}{path}", json=body | more, headers={"accept": accept})
        async with sent as response:
            assert response.status_code in {200, 201}, await response.aread()
        rows = await self._cluster.pool.fetch("SELECT id, may_continue, on_worker_lost FROM baton.stream")
        [found] = [row for row in rows if row["id"] not in self._known]
        self._known.add(found["id"])
        return found["may_continue"], found["on_worker_lost"]


async def test_a_restart_is_chosen_only_where_clients_can_learn_of_it(
    cluster: Cluster,
) -> None:
    created = Created(cluster)
    pods = {"": await cluster.pod(), "retry": await cluster.pod(on_worker_lost="retry")}
    pods["fail"] = await cluster.pod(on_worker_lost="fail")
    for (setting, pod), dialect in itertools.product(pods.items(), CREATES):
        expected = (NATIVE_ONLY if dialect == "native" else OTHERS)[setting or "continue"]
        assert await created.policy(pod, dialect) == expected, (setting, dialect)
    for wanted, expected in NATIVE_ONLY.items():
        assert await created.policy(pods["fail"], "native", on_worker_lost=wanted) == expected
    assert await created.policy(pods["fail"], "text", on_worker_lost="continue") == (True, "fail")
    # Its creator accepts that the text is cut off. The new answer can be followed elsewhere.
    assert await created.policy(pods["fail"], "text", on_worker_lost="retry") == (False, "retry")


async def test_a_stream_shows_its_runs_and_its_interruption(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    seen = [await described(cluster, pod, author)]
    await author.interrupt("worker_left")
    seen.append(await described(cluster, pod, author))
    await author.resume()
    seen.append(await described(cluster, pod, author))
    assert seen == [(1, None, "running"), (1, "worker_left", "queued"), (2, "worker_left", "running")]
    queued = await cluster.create(pod)
    listed = (await cluster.client.get(f"{pod.url}/v1/streams")).json()["data"]
    assert {item["id"]: (item["run"], item["interruption"]) for item in listed} == {
        queued: (0, None),
        str(author.id): (2, "worker_left"),
    }
    [shown] = (await cluster.client.get(f"{pod.url}/console/streams?id={author.id}")).json()["data"]
    assert (shown["run"], shown["attempts"], shown["interruption"]) == (2, 2, "worker_left")


async def described(cluster: Cluster, pod: RunningPod, author: Author) -> tuple[int, str | None, str]:
    """What the API says about a stream."""
    found = (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")).json()
    return found["run"], found["interruption"], found["status"]


class Client:
    """Follows an answer over one connection, to its end."""

    def __init__(self, http: httpx2.AsyncClient, method: str, url: str, **sent: Any) -> None:
        self.body = b""
        self.headers: httpx2.Headers | None = None
        self.task = asyncio.create_task(self._read(http.stream(method, url, **sent)))

    async def _read(self, connecting: Any) -> bytes:
        async with connecting as response:
            self.headers = response.headers
            async for part in response.aiter_raw():
                self.body += part
        return self.body

    async def until(self, holds: Callable[[bytes], bool]) -> None:
        await until(lambda: holds(self.body) or self.task.done())
        assert holds(self.body), self.body


def frames(body: bytes) -> list[Any]:
    """The data of each frame, without keep-alives, which may stand alone or before a frame."""
    blocks = [b"\n".join(line for line in block.split(b"\n") if line[:1] != b":") for block in body.split(b"\n\n")]
    return data(b"".join(block + b"\n\n" for block in blocks if b"data: " in block))


@pytest.mark.parametrize("reason", ["worker_lost", "worker_left"])
async def test_in_every_dialect_a_continued_answer_is_a_pause_and_nothing_else(cluster: Cluster, reason: str) -> None:
    pod = await cluster.pod(sse_keep_alive_seconds=0.1)
    path, body, _ = CREATES["chat"]
    chat = Client(cluster.client, "POST", f"{pod.url}{path}", json=body)
    await until(lambda: chat.headers is not None)
    stream_id = await cluster.pool.fetchval("SELECT id FROM baton.stream")
    author = Author(cluster.pool, stream_id)
    await author.claim()

    def follow(path: str, **headers: str) -> Client:
        return Client(cluster.client, "GET", f"{pod.url}{path.format(stream_id.hex)}", headers=headers)

    native, answer = follow("/v1/streams/{}/events"), follow("/v1/streams/{}/events?view=answer")
    responses = follow("/v1/responses/resp_{}?stream=true")
    aisdk = follow("/v1/ai-sdk/chat/run_{}/stream")
    text = follow("/v1/streams/{}/events", accept="text/plain")
    waiting = follow("/v1/streams/{}?wait=60")
    streaming = (chat, native, answer, responses, aisdk)
    await author.write(encode_text("An answer surv"))
    for client in (*streaming, text):
        await client.until(lambda body: b"An answer surv" in body)
    await author.interrupt(reason)
    for client in streaming:
        # While no worker has it, a proxy and the client itself see that the connection is alive.
        begun = len(client.body)
        await client.until(lambda body, begun=begun: b":\n" in body[begun:])  # type: ignore[misc]
    await author.resume()
    await author.write(encode_text("ives its worker."), end=True)
    for client in (*streaming, text, waiting):
        await client.task

    whole = "An answer survives its worker."
    resumed = {"type": "resumed", "run": 2, "reason": reason}
    assert [frame["type"] for frame in frames(native.body)] == ["text", "resumed", "text", "done"]
    assert frames(native.body)[1] == resumed
    assert [frame["type"] for frame in frames(answer.body)] == ["text", "text", "done"]
    assert text.body.decode() == whole
    assert orjson.loads(waiting.body)["text"] == whole
    *chunks, last = frames(chat.body)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    found = frames(responses.body)
    assert [frame["sequence_number"] for frame in found] == list(range(len(found)))
    assert [part["text"] for part in found[-1]["response"]["output"][0]["content"]] == [whole]
    assert [frame["type"] for frame in frames(aisdk.body)[:-1]] == [
        *("start", "start-step", "text-start", "text-delta", "text-delta", "text-end", "finish-step", "finish"),
    ]
