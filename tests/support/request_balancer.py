"""One address for several pods, as a balancer gives them that knows no sessions: each request goes to a random pod.

A connection of a client stays open while its requests go to different pods, so two requests of one client meet on one
pod only by chance. Bodies of responses are passed on as they arrive; those of requests are read first. A pod that
refuses the connection is passed over. One that is lost before its answer begins gives 502 or a cut connection, at
random, as the balancers of different makers do; one that is lost later always cuts the connection. A request is never
sent twice. Part of the answers may be lost on purpose, after the pod has done what it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final

import h11

READ_BYTES: Final = 65_536


@dataclass(slots=True)
class Balancer:
    """The pods, which a test may change at any time, and what has happened so far."""

    url: str
    pods: list[str]
    chance: random.Random
    loses: float = 0  # this part of the answers
    requests: Counter[str] = field(default_factory=Counter)  # by pod
    lost: int = 0  # requests that got no answer of a pod, or not all of it
    connections: set[asyncio.Task[None]] = field(default_factory=set)  # of clients

    def order(self) -> list[str]:
        """The pods for a request. The first one that accepts the connection gets it."""
        return self.chance.sample(self.pods, len(self.pods))

    def cut(self) -> None:
        """Break the connections of all clients."""
        for task in self.connections:
            task.cancel()


@contextlib.asynccontextmanager
async def request_balancer(pods: Iterable[str], *, seed: int = 0) -> AsyncIterator[Balancer]:
    """Serve on a free port of loopback."""
    balancer = Balancer("", list(pods), random.Random(seed))
    connections = balancer.connections

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        try:
            with contextlib.suppress(OSError, h11.RemoteProtocolError, asyncio.CancelledError):
                await _Client(balancer, reader, writer).serve()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield balancer
    finally:
        server.close()
        balancer.cut()
        await asyncio.gather(*connections, return_exceptions=True)


class _Client:
    """The connection of one client."""

    def __init__(self, balancer: Balancer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._balancer = balancer
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Answer request after request, until one side ends the connection."""
        while isinstance(request := await self._event(), h11.Request):
            body = b"".join([part async for part in self._body()])
            answering = asyncio.create_task(self._answer(request, body))
            leaving = asyncio.create_task(self._leaves())
            try:
                await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
                if leaving.done() or self._http.our_state is not h11.DONE:
                    return
            finally:
                for task in (answering, leaving):
                    task.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
            self._http.start_next_cycle()

    async def _event(self) -> object:
        """Return the next event of the client."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def _leaves(self) -> None:
        """Wait for the client's end of the connection. What it sends before that belongs to its next request."""
        while data := await self._reader.read(READ_BYTES):
            self._http.receive_data(data)

    async def _answer(self, request: h11.Request, body: bytes) -> None:
        balancer = self._balancer
        for pod in balancer.order():
            host, port = pod.removeprefix("http://").split(":")
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                continue
            balancer.requests[pod] += 1
            try:
                await self._exchange(request, body, reader, writer)
            except (OSError, h11.RemoteProtocolError):
                await self._lose()
            finally:
                writer.transport.abort()
            return
        await self._lose()

    async def _exchange(
        self, request: h11.Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream = h11.Connection(h11.CLIENT)
        sent = h11.Request(method=request.method, target=request.target, headers=request.headers.raw_items())
        loses = self._balancer.chance.random() < self._balancer.loses
        for part in (sent, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(upstream.send(part) or b"")
        await writer.drain()
        while not isinstance(event := upstream.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                upstream.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                if loses:
                    raise ConnectionError
                await self._send(h11.Response(status_code=event.status_code, headers=event.headers.raw_items()))
            elif isinstance(event, h11.Data):
                await self._send(h11.Data(data=event.data))
        await self._send(h11.EndOfMessage())

    async def _lose(self) -> None:
        """Let the client know that its pod was lost."""
        self._balancer.lost += 1
        if self._http.our_state is h11.SEND_RESPONSE and self._balancer.chance.random() < 0.5:
            await self._send(h11.Response(status_code=502, headers=[("content-length", "0")]))
            await self._send(h11.EndOfMessage())
        else:
            self._writer.transport.abort()

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
