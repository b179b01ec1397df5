"""The client that reconnects, against real servers that fail as pods and proxies do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx2
import pytest
from tests.support.logbook import DEADLINE_SECONDS

from baton.client import Connected, Disconnected, Follower, Received, Sighting
from baton.errors import FollowError

# How a connection ends: the body's proper end, the socket's end before it, a reset, or not at all.
Ending = Literal["end", "eof", "reset", "hold"]


def frame(seq: int, kind: str = "text", **fields: object) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"id: {seq}\ndata: {data}\n\n".encode()


DONE = frame(6, "done", status="completed")
FRAMES = [*(frame(seq, delta=f"word {seq}") for seq in range(1, 6)), DONE]


@dataclass
class Answer:
    """One connection's answer. `cut` events are sent whole, and of the next one `cut_bytes` bytes."""

    ending: Ending = "end"
    status: str = "200 OK"
    content_type: str = "text/event-stream; charset=utf-8"
    before: bytes = b": baton\nretry: 10\n\n"
    body: bytes | None = None
    cut: int = 99
    cut_bytes: int = 0

    def content(self, cursor: int) -> bytes:
        if self.body is not None:
            return self.body
        partial = FRAMES[self.cut][: self.cut_bytes] if self.cut < len(FRAMES) else b""
        return self.before + b"".join(FRAMES[cursor : self.cut]) + partial


@dataclass
class FaultyPod:
    """Gives its answers in order, the last one again and again; serves the frames after the cursor, as a pod does."""

    answers: Sequence[Answer]
    cursors: list[str | None] = field(default_factory=list)
    url: str = ""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, ConnectionError):
            # A client that gave up connecting, on a machine that is busy.
            writer.close()
            return
        cursor = next((line.split(": ")[1] for line in head.split("\r\n") if line.startswith("last-event-id:")), None)
        answer = self.answers[min(len(self.cursors), len(self.answers) - 1)]
        self.cursors.append(cursor)
        pod = f"pod-{len(self.cursors)}"
        writer.write(
            f"HTTP/1.1 {answer.status}\r\ncontent-type: {answer.content_type}\r\nx-baton-pod: {pod}\r\n".encode()
        )
        if answer.status.startswith("204"):
            writer.write(b"\r\n")
        else:
            content = answer.content(int(cursor or 0))
            writer.write(b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(content), content))
            if answer.ending == "end":
                writer.write(b"0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if answer.ending == "hold":
                await reader.read()
            if answer.ending == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def faulty_pod(*answers: Answer, port: int = 0) -> AsyncIterator[FaultyPod]:
    pod = FaultyPod(answers)
    async with await asyncio.start_server(pod.accept, "127.0.0.1", port) as server:
        pod.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/streams/x/events"
        yield pod
        await asyncio.gather(*pod.serving)


async def follow(url: str, *, cursor: int = 0, patience_seconds: float = 30) -> list[Sighting]:
    async with httpx2.AsyncClient(trust_env=False) as http:
        follower = Follower(http, url, cursor=cursor, patience_seconds=patience_seconds)
        return await all_of(follower)


async def all_of(follower: Follower) -> list[Sighting]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [sighting async for sighting in follower.run()]


def seqs(seen: Sequence[Sighting]) -> list[int]:
    return [item.seq for item in seen if isinstance(item, Received)]


def connections(seen: Sequence[Sighting]) -> list[tuple[str, int]]:
    return [(item.pod, item.cursor) for item in seen if isinstance(item, Connected)]


async def test_a_stream_is_followed_to_its_terminal_event() -> None:
    async with faulty_pod(Answer(ending="hold")) as pod:
        seen = await follow(pod.url)
    assert seqs(seen) == [1, 2, 3, 4, 5, 6]
    assert connections(seen) == [("pod-1", 0)]
    assert pod.cursors == [None]


async def test_a_follower_begins_after_the_given_cursor() -> None:
    async with faulty_pod(Answer()) as pod:
        seen = await follow(pod.url, cursor=4)
    assert seqs(seen) == [5, 6]
    assert pod.cursors == ["4"]


async def test_a_cut_at_any_byte_of_a_frame_loses_and_repeats_nothing() -> None:
    async def cut_at(http: httpx2.AsyncClient, cut_bytes: int) -> None:
        async with faulty_pod(Answer(ending="eof", cut=2, cut_bytes=cut_bytes), Answer()) as pod:
            seen = await all_of(Follower(http, pod.url))
        # Without the blank line there is no event.
        held = 3 if cut_bytes == len(FRAMES[2]) else 2
        assert seqs(seen) == [1, 2, 3, 4, 5, 6]
        assert connections(seen) == [("pod-1", 0), ("pod-2", held)]
        assert pod.cursors == [None, str(held)]

    async with httpx2.AsyncClient(trust_env=False) as http, asyncio.TaskGroup() as group:
        for count in range(len(FRAMES[2]) + 1):
            group.create_task(cut_at(http, count))


async def test_a_reset_in_the_middle_of_an_event() -> None:
    async with faulty_pod(Answer(ending="reset", cut=3, cut_bytes=9), Answer()) as pod:
        seen = await follow(pod.url)
    lost = next(item for item in seen if isinstance(item, Disconnected))
    assert seqs(seen) == [1, 2, 3, 4, 5, 6]
    assert pod.cursors == [None, str(lost.cursor) if lost.cursor else None]


async def test_a_temporary_refusal_is_retried() -> None:
    busy = Answer(status="503 Service Unavailable", content_type="text/plain", body=b"busy")
    async with faulty_pod(Answer(ending="eof", cut=1), busy, busy, Answer()) as pod:
        seen = await follow(pod.url)
    assert seqs(seen) == [1, 2, 3, 4, 5, 6]
    assert pod.cursors == [None, "1", "1", "1"]
    reasons = [item.reason for item in seen if isinstance(item, Disconnected)]
    assert reasons[1:] == ["503 Service Unavailable"] * 2


async def test_a_refused_connection_is_retried() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1/streams/x/events"
    seen: list[Sighting] = []
    async with (
        contextlib.AsyncExitStack() as stack,
        httpx2.AsyncClient(trust_env=False) as http,
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        async for sighting in Follower(http, url).run():
            if isinstance(sighting, Disconnected) and not seen:
                await stack.enter_async_context(faulty_pod(Answer(), port=port))
            seen.append(sighting)
    assert isinstance(seen[0], Disconnected)
    assert seqs(seen) == [1, 2, 3, 4, 5, 6]


async def test_204_is_the_end() -> None:
    async with faulty_pod(Answer(status="204 No Content")) as pod:
        assert await follow(pod.url, cursor=6) == []
    assert pod.cursors == ["6"]


async def test_204_after_a_lost_connection_is_the_end() -> None:
    async with faulty_pod(Answer(ending="eof", cut=5), Answer(status="204 No Content")) as pod:
        seen = await follow(pod.url)
    assert seqs(seen) == [1, 2, 3, 4, 5]
    assert connections(seen) == [("pod-1", 0)]


async def test_a_pod_that_ends_cleanly_sends_a_time_to_reconnect() -> None:
    async with faulty_pod(Answer(cut=2, before=b": baton\nretry: 400\n\n"), Answer()) as pod:
        seen = await follow(pod.url)
    assert seqs(seen) == [1, 2, 3, 4, 5, 6]
    left = next(item for item in seen if isinstance(item, Disconnected))
    assert left.cursor == 2
    assert left.pause_seconds >= 0.4


async def test_nothing_is_dropped_or_repaired() -> None:
    body = b"".join([FRAMES[0], FRAMES[1], FRAMES[1], FRAMES[3], FRAMES[2], DONE])
    async with faulty_pod(Answer(body=body)) as pod:
        assert seqs(await follow(pod.url)) == [1, 2, 2, 4, 3, 6]


async def test_any_text_arrives_as_it_was_sent() -> None:
    text = 'a\u2028b\u0085c\u2029 "d" \N{RUNNER} 駅伝 \\n'
    async with faulty_pod(Answer(body=frame(1, delta=text) + frame(2, "done"))) as pod:
        seen = await follow(pod.url)
    assert [item.event.get("delta") for item in seen if isinstance(item, Received)] == [text, None]


async def test_a_final_refusal_shows_the_servers_message() -> None:
    body = json.dumps({"detail": "There is no stream x."}).encode()
    refusal = Answer(status="404 Not Found", content_type="application/problem+json", body=body)
    async with faulty_pod(refusal) as pod:
        with pytest.raises(FollowError, match=r"404 There is no stream x\."):
            await follow(pod.url)
    assert len(pod.cursors) == 1


async def test_a_page_is_not_an_event_stream() -> None:
    async with faulty_pod(Answer(content_type="text/html", body=b"<p>Welcome")) as pod:
        with pytest.raises(FollowError, match="is not an event stream"):
            await follow(pod.url)


async def test_an_id_that_is_not_a_number_is_not_the_native_dialect() -> None:
    async with faulty_pod(Answer(body=b'id: a7\ndata: {"type":"text"}\n\n')) as pod:
        with pytest.raises(FollowError, match="a7"):
            await follow(pod.url)


async def test_a_follower_gives_up_if_no_pod_answers() -> None:
    busy = Answer(status="503 Service Unavailable", body=b"")
    async with faulty_pod(busy) as pod:
        with pytest.raises(FollowError, match="No pod has answered"):
            await follow(pod.url, patience_seconds=0)
