"""A server on loopback that answers byte for byte like a model provider, with the faults that tests ask for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Self

# What happens to the connection after the last frame: a proper end of the body, a reset, or silence.
Ending = Literal["end", "abort", "hang"]


@dataclass(frozen=True, slots=True)
class Reply:
    frames: Sequence[bytes] = ()
    ending: Ending = "end"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    silent: bool = False


# A stream that ends with its connection, and the end of its body.
CLOSING: Final = Reply(headers={"connection": "close"})
LAST_FRAME: Final = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def refusal(status: int, error: dict[str, Any], **headers: str) -> Reply:
    """Answer with an error object, as both providers shape it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps({"type": "error", "error": error}).encode()
    return Reply([content], status=status, headers=named, content_type="application/json")


def data_frames(*objects: dict[str, Any], done: bool = False) -> list[bytes]:
    """Frame objects as Chat Completions does."""
    frames = [b"data: " + json.dumps(item, ensure_ascii=False).encode() + b"\n\n" for item in objects]
    return [*frames, b"data: [DONE]\n\n"] if done else frames


def event_frames(*objects: dict[str, Any]) -> list[bytes]:
    """Frame objects as Responses and Messages do: their type is the event's name too."""
    return [f"event: {item['type']}\n".encode() + data_frames(item)[0] for item in objects]


class ProviderServer:
    """Sends its replies in order, and then repeats the last one."""

    def __init__(self, *replies: Reply) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self.requested = asyncio.Event()
        self.disconnected = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._replies = replies

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        # A task that was cancelled before its first step has closed nothing.
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until the kernel has everything
        self._writers.append(writer)
        self._serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.disconnected.set()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        self.requests.append(request)
        self.requested.set()
        return await self.respond(request, reader, writer)

    async def respond(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection stays open for another."""
        reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        return await self.send(reply, reader, writer)

    async def send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send a reply and end as it says; return whether the connection stays open for another."""
        if not reply.silent:
            await self.begin(reply, writer)
        for frame in reply.frames:
            await self.send_frame(frame, writer)
        if reply.ending == "end":
            writer.write(LAST_FRAME)
            return True
        if reply.ending == "abort":
            # The frames are in the kernel, which sends them before the end of the connection.
            writer.transport.abort()
        else:
            await reader.read()
        return False

    async def begin(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        """Send a reply's head."""
        writer.write(_head(reply))
        await writer.drain()

    async def send_frame(self, frame: bytes, writer: asyncio.StreamWriter) -> None:
        """Send a frame, and wait until the kernel has it."""
        writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
        await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split()[1], headers, json.loads(body or b"{}"))


def _head(reply: Reply) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} Status",
        f"content-type: {reply.content_type}",
        "transfer-encoding: chunked",
    ]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
