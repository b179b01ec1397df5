"""Two pods on one database: whatever becomes of connections, pods and notifications, a client gets exactly the log."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from itertools import pairwise
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest
from tests.support.cluster import Cluster, RunningPod, Tap, echo, text
from tests.support.databases import execute
from tests.support.follower import Follower, following, frames_after, numbers, parse, texts
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.generators import GenerationRequest

BATCHES = (1, 3, 1, 5, 2, 8, 1, 4)


async def two_pods(cluster: Cluster, **settings: object) -> tuple[RunningPod, RunningPod]:
    return await cluster.pod(**settings), await cluster.pod(**settings)


async def test_every_cursor_of_an_ended_stream_gets_exactly_the_rest_on_any_pod(cluster: Cluster) -> None:
    one, two = await two_pods(cluster)
    author = await cluster.author()
    await author.write_texts(BATCHES)
    await author.write(end=True)
    tail = len(author.lines)
    for cursor in range(tail):
        expected = author.frames[cursor:]
        assert await frames_after(cluster.client, one.url, author.id, cursor) == expected
        assert await frames_after(cluster.client, two.url, author.id, cursor) == expected
    for pod in (one, two):
        answer = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events?last_event_id={tail}")
        assert (answer.status_code, answer.content) == (204, b"")


async def test_every_cursor_behind_the_window_continues_inside_its_batch(cluster: Cluster) -> None:
    pod = await cluster.pod(relay_window_bytes=4096)
    author = await cluster.author()
    await author.write_texts(BATCHES, padding=500)
    await author.write(end=True)
    for cursor in range(len(author.lines)):
        assert await frames_after(cluster.client, pod.url, author.id, cursor) == author.frames[cursor:]


async def test_a_client_that_changes_pods_after_every_event_misses_nothing(cluster: Cluster) -> None:
    pods = await two_pods(cluster)
    tap = Tap()
    await cluster.worker({"replay": tap}, flush_interval_milliseconds=1)
    stream_id = await cluster.create(pods[0])
    words = [f"word {number} " for number in range(40)]
    got: list[str] = []
    for cursor in range(len(words)):
        # Ahead of the client by one to three, so that it is cut off inside batches too.
        tap.let(*words[cursor + 2 : cursor + 3] if cursor else words[:3])
        async with following(cluster.client, pods[cursor % 2].url, stream_id, cursor) as follower:
            event = await follower.next_event()
        assert event["seq"] == cursor + 1
        got.append(event["delta"])
    tap.end()
    assert got == words
    last = await frames_after(cluster.client, pods[0].url, stream_id, len(words))
    assert [parse(frame)["type"] for frame in last] == ["done"]


async def test_subscribing_to_a_live_stream_at_any_time_has_no_gap_or_repeat(cluster: Cluster) -> None:
    pods = await two_pods(cluster, relay_window_bytes=4096)
    count = 400

    async def generate(request: GenerationRequest, /) -> AsyncGenerator[str, None]:
        for number in range(count):
            await asyncio.sleep(random.random() * 0.004)
            yield f"{number} " + "x" * random.choice((1, 30, 400))

    await cluster.worker({"replay": generate}, flush_interval_milliseconds=5)
    stream_id = await cluster.create(pods[0])

    async def client(number: int) -> list[int]:
        await asyncio.sleep(random.random() * 0.8)
        url = pods[number % 2].url
        snapshot = (await cluster.client.get(f"{url}/v1/streams/{stream_id}")).json()
        cursor = random.randint(0, snapshot["last_event_id"])
        frames = await frames_after(cluster.client, url, stream_id, cursor)
        return [cursor, *numbers(frames)]

    for received in await asyncio.gather(*(client(number) for number in range(60))):
        assert received == list(range(received[0], count + 2))


async def test_a_token_arrives_before_the_next_one_is_generated(cluster: Cluster) -> None:
    pods = await two_pods(cluster)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pods[0])
    async with (
        following(cluster.client, pods[0].url, stream_id) as here,
        following(cluster.client, pods[1].url, stream_id) as there,
    ):
        for number in range(5):
            tap.let(f"token {number}")
            for follower in (here, there):
                assert (await follower.next_event())["delta"] == f"token {number}"
        tap.end()
        assert await here.rest() == await there.rest()


@pytest.mark.parametrize("size", [20_000, 1_000_000])
async def test_a_token_larger_than_a_notification_arrives(cluster: Cluster, size: int) -> None:
    pods = await two_pods(cluster)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pods[0])
    large = "".join(chr(random.randrange(0x100, 0xD7FF)) for _ in range(size // 3))
    async with following(cluster.client, pods[1].url, stream_id) as follower:
        tap.let("before")
        assert (await follower.next_event())["delta"] == "before"
        tap.let(large, "after")
        assert [event["delta"] for event in await follower.events(2)] == [large, "after"]
        tap.end()
        assert parse((await follower.rest())[-1])["type"] == "done"
    assert texts(await frames_after(cluster.client, pods[0].url, stream_id)) == ["before", large, "after"]


UNICODE = {
    "NUL": ("a\0b", "a\0b"),
    "a lone high surrogate": ("\ud83da", "\ufffda"),
    "a lone low surrogate": ("\ude00b", "\ufffdb"),
    "a surrogate pair": ("\ud83d\ude00", "😀"),
    "line ends": ("\r \n \r\n \n\n", "\r \n \r\n \n\n"),
    "Unicode's line ends": ("\u0085\u2028\u2029\v\f\x1c", "\u0085\u2028\u2029\v\f\x1c"),
    "a frame inside": ('\n\nid: 99\ndata: {"type":"done"}\n\n', '\n\nid: 99\ndata: {"type":"done"}\n\n'),
    "a comment inside": ("\n: ping\nretry: 1\n", "\n: ping\nretry: 1\n"),
    "a byte order mark": ("\ufeff", "\ufeff"),
    "the last characters": ("\uffff\U0010ffff", "\uffff\U0010ffff"),
    "quotes and backslashes": ("\"\\\\u0000'$$\\x00", "\"\\\\u0000'$$\\x00"),
    "DONE": ("[DONE]", "[DONE]"),
}


async def test_any_text_arrives_unchanged(cluster: Cluster) -> None:
    pods = await two_pods(cluster)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(pods[0])
    async with cluster.client.sse(f"{pods[1].url}/v1/streams/{stream_id}/events") as source:
        blocks = aiter(source)
        assert (await anext(blocks)).retry == 1000
        for name, (given, expected) in UNICODE.items():
            tap.let(given)
            block = await anext(blocks)
            assert httpx2.Response(200, text=block.data).json() == {"type": "text", "delta": expected}, name
        tap.let({"type": "custom", "name": "x", "data": {"k\0": ["\ud800", "\u2028"]}})
        block = await anext(blocks)
        assert httpx2.Response(200, text=block.data).json()["data"] == {"k\0": ["\ufffd", "\u2028"]}
        tap.end()
    snapshot = (await cluster.client.get(f"{pods[0].url}/v1/streams/{stream_id}?wait=10")).json()
    assert snapshot["text"] == "".join(expected for _, expected in UNICODE.values())


async def test_a_setting_keeps_text_out_of_notifications(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    heard: list[str] = []
    connection = await asyncpg.connect(cluster.dsn)
    await connection.add_listener("baton_events", lambda *told: heard.append(str(told[3])))
    tap = Tap()
    await cluster.worker({"replay": tap}, notify_payloads=False)
    stream_id = await cluster.create(pod)
    async with following(cluster.client, pod.url, stream_id) as follower:
        for word in ("secret one", "secret two"):
            tap.let(word)
            assert (await follower.next_event())["delta"] == word
        tap.end()
        await follower.rest()
    await until(lambda: len(heard) == 3)
    assert not any("secret" in payload for payload in heard)
    await connection.close()


async def test_the_safety_poll_finds_events_without_a_notification(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=0.1)
    author = await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        for number in range(3):
            await author.write(text(number), notify=False)
            assert (await follower.next_event())["seq"] == number + 1
        await author.write(end=True, notify=False)
        assert await follower.rest() == author.frames


async def test_events_are_delivered_by_notifications_alone(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    author = await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        await follower.next_block()
        reads = pod.metric("baton_log_reads_total")
        for number in range(3):
            await author.write(text(number))
            assert (await follower.next_event())["seq"] == number + 1
        assert pod.metric("baton_log_reads_total") == reads


async def test_lost_repeated_and_reordered_notifications_change_nothing(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    author = await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        items = [await author.write(text(number), text(number), notify=False) for number in range(6)]
        await author.notify(items[4])
        await author.notify(items[1], items[0], items[4], items[5], items[5])
        await author.notify(items[0])
        assert [event["seq"] for event in await follower.events(12)] == list(range(1, 13))
        await author.write(end=True)
        await author.notify(*items)
        assert await follower.rest() == author.frames


LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'baton pod listen' AND datname = current_database()"
)


async def kill_listener(cluster: Cluster) -> None:
    """Kill the one LISTEN connection, and return when another one stands in its place."""
    (killed,) = await cluster.pool.fetch(LISTENERS)
    await cluster.pool.execute("SELECT pg_terminate_backend($1)", killed["pid"])

    async def replaced() -> bool:
        return [row for row in await cluster.pool.fetch(LISTENERS) if row != killed] != []

    await until(replaced)


async def test_a_killed_listen_connection_is_replaced_and_catches_up(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=60)
    author = await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        for _ in range(3):
            killing = asyncio.create_task(kill_listener(cluster))
            await author.write(text(1), notify=False)
            await killing
            await follower.next_event()
            # Only notifications can bring these.
            for _ in range(3):
                await author.write(text(2))
                await follower.next_event()
        await author.write(end=True)
        assert await follower.rest() == author.frames


async def test_erasing_a_stream_disconnects_its_clients_on_all_pods(cluster: Cluster) -> None:
    one, two = await two_pods(cluster, log_poll_seconds=60)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(one)
    async with (
        following(cluster.client, one.url, stream_id) as here,
        following(cluster.client, two.url, stream_id) as there,
    ):
        tap.let("a")
        assert (await here.next_event())["delta"] == (await there.next_event())["delta"] == "a"
        assert (await cluster.client.delete(f"{two.url}/v1/streams/{stream_id}")).status_code == 204
        assert len(await here.rest()) == len(await there.rest()) == 1
    async with asyncio.timeout(DEADLINE_SECONDS):
        await tap.cancelled.wait()
    for pod in (one, two):
        for path in ("", "/events"):
            answer = await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found")


async def test_an_erased_stream_is_noticed_without_its_notification(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=0.1)
    author = await cluster.author()
    async with following(cluster.client, pod.url, author.id) as follower:
        await author.write(text(1))
        await follower.next_event()
        await cluster.pool.execute("DELETE FROM baton.stream")
        assert await follower.rest() == author.frames


async def test_followers_of_a_queued_stream_see_its_cancellation(cluster: Cluster) -> None:
    one, two = await two_pods(cluster, log_poll_seconds=60)
    stream_id = await cluster.create(one)
    async with following(cluster.client, two.url, stream_id) as follower:
        await follower.next_block()
        answer = await cluster.client.post(f"{one.url}/v1/streams/{stream_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        frames = await follower.rest()
    assert [(item["seq"], item["type"], item["status"]) for item in map(parse, frames)] == [(1, "done", "cancelled")]


async def test_followers_of_a_running_stream_see_its_cancellation(cluster: Cluster) -> None:
    one, two = await two_pods(cluster)
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = await cluster.create(one)
    async with following(cluster.client, two.url, stream_id) as follower:
        tap.let("partial")
        await follower.next_event()
        answer = await cluster.client.post(f"{one.url}/v1/streams/{stream_id}/cancel")
        assert answer.status_code == 202
        frames = await follower.rest()
    assert [parse(frame)["type"] for frame in frames] == ["text", "done"]
    assert tap.cancelled.is_set()


async def test_a_client_that_does_not_read_misses_nothing_and_holds_no_window(cluster: Cluster) -> None:
    pod = await cluster.pod(relay_window_bytes=4096)
    author = await cluster.author()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pod.url.rpartition(":")[2]), limit=4096)
    writer.write(f"GET /v1/streams/{author.id}/events HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    # Ten times what the sockets on the way hold.
    for _ in range(10):
        await author.write_texts([40] * 10, padding=2000)
    await author.write(end=True)
    assert await frames_after(cluster.client, pod.url, author.id) == author.frames
    assert pod.metric("baton_events_sent_total", dialect="native.full") < len(author.lines) * 1.5
    body = await asyncio.wait_for(reader.read(-1), DEADLINE_SECONDS)
    writer.close()
    await writer.wait_closed()
    assert dechunked(body).partition(b"id: 1\n")[2] == b"".join(author.frames).partition(b"id: 1\n")[2]
    assert pod.metric("baton_log_reads_total") > 5


def dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


async def test_many_clients_that_replay_a_long_stream_share_the_reads(cluster: Cluster) -> None:
    pod = await cluster.pod(relay_window_bytes=4096)
    author = await cluster.author()
    await author.write_texts([1] * 900, padding=60, notify=False)
    await author.write(end=True)
    expected = b"".join(author.frames)
    followed = await asyncio.gather(*(frames_after(cluster.client, pod.url, author.id) for _ in range(200)))
    assert all(b"".join(frames) == expected for frames in followed)
    # One load, two pages of 512 batches; a page may be read again for those who come when it was dropped.
    assert pod.metric("baton_log_reads_total") <= 12


async def test_concurrent_first_subscribers_share_one_load(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write_texts(BATCHES)
    await author.write(end=True)
    followed = await asyncio.gather(*(frames_after(cluster.client, pod.url, author.id) for _ in range(50)))
    assert all(frames == author.frames for frames in followed)
    assert pod.metric("baton_log_reads_total") == 1


async def test_creating_and_following_takes_one_request(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    body = {"input": ["a", "b", {"type": "reasoning", "delta": "c"}]}
    headers = {"accept": "text/event-stream"}
    async with cluster.client.stream("POST", f"{pod.url}/v1/streams", json=body, headers=headers) as response:
        assert response.status_code == 200
        location = response.headers["location"]
        frames = await Follower(response).rest()
    assert [parse(frame)["type"] for frame in frames] == ["text", "text", "reasoning", "done"]
    assert await frames_after(cluster.client, pod.url, location.rpartition("/")[2]) == frames
    assert all(later == earlier + 1 for earlier, later in pairwise(numbers(frames)))


async def test_an_idle_pod_is_ready_while_the_database_answers(
    postgres: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.shard.READY_SILENCE_SECONDS", 0.5)
    pod = await cluster.pod(log_poll_seconds=0.05, pod_heartbeat_seconds=0.05)
    opened_at = pod.shard.relays.answered_at
    await until(lambda: time.monotonic() > opened_at + 1)
    assert pod.pod.ready
    assert pod.shard.relays.answered_at == opened_at, "it has polled for no stream"
    database = urlsplit(cluster.dsn).path[1:]
    await execute(postgres, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    await execute(postgres, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    await until(lambda: not pod.pod.ready)
    await execute(postgres, f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    await until(lambda: pod.pod.ready)
