"""The two sinks of an event stream: by plain ASGI, and by the socket that a server offers."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message
from tests.support.logbook import DEADLINE_SECONDS

from baton.pod.sinks import DIRECT_EXTENSION, AsgiSink, DirectSink, OnLost, sink_of


class Asgi:
    """A server's `receive` and `send`."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.broken = False

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.broken:
            raise ConnectionResetError
        self.sent.append(message)


class Socket:
    """The client's socket, as a server offers it."""

    def __init__(self, *, whole: bool = True) -> None:
        self.ready = True
        self.done: list[object] = []
        self.lose: OnLost | None = None
        self._whole = whole  # all of the request has arrived

    def write(self, body: bytes) -> bool:
        if self.ready:
            self.done.append(body)
        return self.ready

    def on_lost(self, on_lost: OnLost) -> bool:
        if self._whole:
            self.lose = on_lost
        return self._whole

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")


class Lost:
    """Counts the calls of `on_lost`."""

    def __init__(self) -> None:
        self.count = 0
        self.called = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.called.set()


async def test_a_server_that_offers_its_socket_gets_a_direct_sink() -> None:
    asgi, socket = Asgi(), Socket()
    assert type(sink_of({"type": "http"}, asgi.receive, asgi.send)) is AsgiSink
    offered = {"type": "http", "extensions": {DIRECT_EXTENSION: socket}}
    assert type(sink_of(offered, asgi.receive, asgi.send)) is DirectSink


@pytest.mark.parametrize("direct", [False, True])
async def test_a_sink_sends_chunks_by_asgi_and_the_last_one_ends_the_response(direct: bool) -> None:
    asgi = Asgi()
    sink = DirectSink(Socket(), asgi.receive, asgi.send) if direct else AsgiSink(asgi.receive, asgi.send)
    await sink.send(b"a")
    await sink.send(b"b", last=True)
    assert asgi.sent == [
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b", "more_body": False},
    ]


async def test_a_plain_sink_never_writes_at_once_and_cuts_no_connection() -> None:
    asgi = Asgi()
    sink = AsgiSink(asgi.receive, asgi.send)
    assert (sink.write(b"a"), sink.cuts, asgi.sent) == (False, False, [])


async def test_a_plain_sink_notices_by_receive_that_the_client_has_left() -> None:
    asgi, lost = Asgi(), Lost()
    sink = AsgiSink(asgi.receive, asgi.send)
    sink.on_lost(lost)
    asgi.gone.set()
    await asyncio.wait_for(lost.called.wait(), DEADLINE_SECONDS)
    await sink.release()


async def test_a_send_that_fails_is_a_client_that_has_left() -> None:
    asgi, lost = Asgi(), Lost()
    sink = AsgiSink(asgi.receive, asgi.send)
    sink.on_lost(lost)
    asgi.broken = True
    await sink.send(b"a")
    assert lost.count == 1
    await sink.release()


async def test_a_released_sink_leaves_no_task_and_calls_nothing() -> None:
    asgi, lost, before = Asgi(), Lost(), asyncio.all_tasks()
    sink = AsgiSink(asgi.receive, asgi.send)
    sink.on_lost(lost)
    assert len(asyncio.all_tasks()) == len(before) + 1
    await sink.release()
    assert asyncio.all_tasks() == before
    asgi.broken = True
    await sink.send(b"a")
    assert lost.count == 0


async def test_a_plain_sink_aborts_by_cancelling_the_task_that_made_it() -> None:
    asgi = Asgi()
    made = list[AsgiSink]()

    async def response() -> None:
        made.append(AsgiSink(asgi.receive, asgi.send))
        await asyncio.Event().wait()

    task = asyncio.create_task(response())
    await asyncio.sleep(0)
    made[0].abort()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_direct_sink_uses_what_its_socket_can_do() -> None:
    asgi, socket = Asgi(), Socket()
    sink = DirectSink(socket, asgi.receive, asgi.send)
    assert sink.cuts
    assert sink.write(b"a")
    socket.ready = False
    assert not sink.write(b"b")
    sink.close()
    sink.abort()
    assert socket.done == [b"a", "close", "abort"]
    assert asgi.sent == []


@pytest.mark.parametrize("whole", [True, False])
async def test_a_direct_sink_needs_a_task_only_while_a_request_is_incomplete(whole: bool) -> None:
    asgi, socket, lost, before = Asgi(), Socket(whole=whole), Lost(), asyncio.all_tasks()
    sink = DirectSink(socket, asgi.receive, asgi.send)
    sink.on_lost(lost)
    assert len(asyncio.all_tasks() - before) == (0 if whole else 1)
    if whole:
        assert socket.lose is not None
        socket.lose()
    else:
        asgi.gone.set()
    await asyncio.wait_for(lost.called.wait(), DEADLINE_SECONDS)
    assert lost.count == 1
    await sink.release()
