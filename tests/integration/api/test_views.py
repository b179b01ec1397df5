"""Views, snapshots, windows and plain text: the same stream, told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import httpx2
import pytest
from tests.support.cluster import Author, Cluster, RunningPod, event, text
from tests.support.follower import Follower, parse
from tests.support.logbook import until

from baton.events import encode_text

LINES = (
    event(type="reasoning", delta="hm"),
    encode_text("Hello"),
    event(type="tool_call", index=0, id="c0", name="f", arguments_delta="{}"),
    encode_text(" there"),
)


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    return await cluster.pod()


@pytest.fixture
async def author(cluster: Cluster) -> Author:
    return await cluster.author()


async def frames(cluster: Cluster, pod: RunningPod, author: Author, query: str, cursor: int = 0) -> list[bytes]:
    url = f"{pod.url}/v1/streams/{author.id}/events?{query}"
    headers = {"last-event-id": str(cursor)} if cursor else {}
    async with cluster.client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        return await Follower(response).rest()


async def test_the_answer_view_keeps_the_events_numbers(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    await author.write(*LINES, end=True)
    end = b'id: 5\ndata: {"type":"done","status":"completed","finish_reason":"stop"}\n\n'
    shown = [author.frames[1], author.frames[3], end]
    assert await frames(cluster, pod, author, "view=answer") == shown
    assert await frames(cluster, pod, author, "view=answer", cursor=2) == shown[1:]
    assert await frames(cluster, pod, author, "view=full") == author.frames


async def test_a_snapshot_comes_before_later_events(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    await author.write(*LINES)
    await author.write(encode_text("!"))
    url = f"{pod.url}/v1/streams/{author.id}/events?snapshot=1"
    async with cluster.client.stream("GET", url) as response:
        follower = Follower(response)
        first = await follower.next_event()
        assert (first["seq"], first["type"], first["text"], first["reasoning"]) == (5, "snapshot", "Hello there!", "hm")
        assert first["tool_calls"] == [{"id": "c0", "name": "f", "arguments": "{}"}]
        await author.write(encode_text("?"), end=True)
        assert (await follower.rest())[1:] == author.frames[5:]


async def test_a_reconnecting_client_gets_no_snapshot(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    await author.write(*LINES, end=True)
    assert await frames(cluster, pod, author, "snapshot=1", cursor=2) == author.frames[2:]


async def test_a_snapshot_is_followed_by_the_end(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    await author.write(*LINES, end=True)
    snapshot, end = await frames(cluster, pod, author, "snapshot=1&view=answer")
    assert parse(snapshot) == {"seq": 4, "type": "snapshot", "text": "Hello there"}
    assert parse(end) == {"seq": 5, "type": "done", "status": "completed", "finish_reason": "stop"}
    assert (await frames(cluster, pod, author, "snapshot=1"))[1] == author.frames[-1]


async def test_a_stream_without_events_has_no_snapshot(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    following = asyncio.create_task(frames(cluster, pod, author, "snapshot=1"))
    await until(lambda: pod.metric("baton_subscribers") == 1)
    await author.write(*LINES, end=True)
    assert await following == author.frames


async def test_a_window_collects_the_events_within_it(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    url = f"{pod.url}/v1/streams/{author.id}/events?batch_window_ms=1000"
    await author.write(text(0))
    async with cluster.client.stream("GET", url) as response:
        parts = response.aiter_raw()
        first = await anext(parts)
        assert first.endswith(author.frames[0])
        for number in range(1, 20):
            await author.write(text(number))
        second = await anext(parts)
        await author.write(text(20), end=True)
        rest = second + b"".join([part async for part in parts])
    assert second.count(b"id: ") >= 3
    assert rest == b"".join(author.frames[1:])


@pytest.mark.parametrize("query", ["view=other", "batch_window_ms=-1", "batch_window_ms=20000", "snapshot=maybe"])
async def test_an_invalid_view_is_refused(cluster: Cluster, pod: RunningPod, author: Author, query: str) -> None:
    answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert query.partition("=")[0] in answer.json()["detail"]


async def plain(cluster: Cluster, pod: RunningPod, author: Author) -> AsyncIterator[bytes]:
    url = f"{pod.url}/v1/streams/{author.id}/events"
    async with cluster.client.stream("GET", url, headers={"accept": "text/plain"}) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        async for part in response.aiter_raw():
            yield part


async def test_plain_text_is_the_text_as_it_arrives(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    parts = plain(cluster, pod, author)
    await author.write(*LINES)
    assert await anext(parts) == b"Hello there"
    await author.write(encode_text("!"), end=True)
    assert [part async for part in parts] == [b"!"]


async def test_incomplete_plain_text_is_cut_off(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    parts = plain(cluster, pod, author)
    await author.write(*LINES)
    assert await anext(parts) == b"Hello there"
    await pod.pod.drain()
    with pytest.raises(httpx2.RemoteProtocolError):
        await anext(parts)


async def test_a_stream_is_created_and_read_as_plain_text(cluster: Cluster, pod: RunningPod) -> None:
    await cluster.worker({"echo": echo})
    headers = {"accept": "text/plain"}
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "echo", "input": 1}, headers=headers)
    assert (answer.status_code, answer.text) == (200, "one two")
    row = await cluster.pool.fetchrow("SELECT id, on_worker_lost FROM baton.stream")
    assert row is not None
    assert answer.headers["location"] == f"/v1/streams/{row['id']}"
    assert row["on_worker_lost"] == "fail"


async def echo(request: object, /) -> AsyncGenerator[str, None]:
    yield "one"
    yield " two"


async def test_a_window_delays_neither_the_end_nor_a_drain(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    url = f"{pod.url}/v1/streams/{author.id}/events?batch_window_ms=10000"
    other = await cluster.author()
    await author.write(text(0))
    await other.write(text(0))
    loop = asyncio.get_running_loop()
    async with (
        cluster.client.stream("GET", url) as ending,
        cluster.client.stream("GET", url.replace(str(author.id), str(other.id))) as leaving,
    ):
        one, two = Follower(ending), Follower(leaving)
        await one.next_event()
        await two.next_event()
        began = loop.time()
        await author.write(text(1), end=True)
        assert await one.rest() == author.frames
        await pod.pod.drain()
        assert await two.rest() == other.frames
        # Less than the window, by the clock that it is measured with.
        assert loop.time() - began < 10


@pytest.mark.parametrize("accept", ["application/json, text/plain, */*", "*/*", "text/*"])
async def test_clients_that_accept_plain_text_among_others_get_json(
    cluster: Cluster, pod: RunningPod, accept: str
) -> None:
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers={"accept": accept})
    assert (answer.status_code, answer.json()["status"]) == (201, "queued")


async def test_a_create_that_follows_can_choose_a_view(cluster: Cluster, pod: RunningPod) -> None:
    await cluster.worker({"echo": echo})
    headers = {"accept": "text/event-stream"}
    body = {"generator": "echo", "input": 1}
    for query, status in (("view=answer", 200), ("view=other", 400)):
        answer = await cluster.client.post(f"{pod.url}/v1/streams?{query}", json=body, headers=headers)
        assert answer.status_code == status
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_a_draining_pod_refuses_creates_that_follow(cluster: Cluster, pod: RunningPod) -> None:
    pod.pod.draining = True
    for accept, status in (("text/event-stream", 200), ("text/plain", 503)):
        answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers={"accept": accept})
        assert (answer.status_code, answer.headers["connection"]) == (status, "close")
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


@pytest.mark.parametrize(
    ("path", "accept"), [("v1/streams/{}/events", "text/plain"), ("v1/responses/{}?stream=true", "*/*")]
)
async def test_head_returns_the_headers_and_follows_nothing(
    cluster: Cluster, pod: RunningPod, author: Author, path: str, accept: str
) -> None:
    answer = await cluster.client.head(f"{pod.url}/{path.format(author.id)}", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/")
    assert pod.metric("baton_subscribers") == 0


async def test_a_gap_in_the_log_is_not_an_answer(cluster: Cluster, pod: RunningPod, author: Author) -> None:
    await author.write(text(0))
    author.lose(text(1))
    await author.write(text(2), end=True)
    for path in (f"v1/streams/{author.id}", f"v1/responses/{author.id}"):
        answer = await cluster.client.get(f"{pod.url}/{path}")
        assert answer.status_code == 500
        assert "log_damaged" in answer.text
