"""One address for several pods, as clients see them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final

# What a balancer does that knows of no pod, or loses the one that it knows.
HANGS_UP: Final = b""
LOSES_THE_ANSWER: Final = b"lost"
SAYS_503: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def balancer(*urls: str, troubles: list[bytes] | None = None) -> AsyncIterator[str]:
    """Yield one address for several: a connection goes to the first of them that answers it.

    A process that is being killed may still accept a connection and close it without a byte. Then the next pod gets
    it, as with nginx's `proxy_next_upstream`.

    As long as there are `troubles`, the next connection takes the first of them, and gets it instead of an answer.
    """
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            trouble = troubles.pop(0) if troubles else None
            if trouble is not None and trouble != LOSES_THE_ANSWER:
                await _refuse(reader, writer, trouble)
                return
            upstream_reader, upstream_writer, first = await _connect(urls, await reader.read(65_536))
            try:
                if trouble != LOSES_THE_ANSWER:
                    writer.write(first)
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pass_on(reader, upstream_writer))
                        both.create_task(_pass_on(upstream_reader, writer))
            finally:
                upstream_writer.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
    writer.close()
    await writer.wait_closed()


async def _connect(urls: tuple[str, ...], request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Connect to the first pod that answers; return the connection, and the first bytes of the answer."""
    for url in urls:
        host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            first = b""
            try:
                writer.write(request)
                first = await reader.read(65_536)
            finally:
                if not first:
                    writer.transport.abort()
            if first:
                return reader, writer, first
    raise ConnectionRefusedError


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what arrives, and the end as an end: what is cut in mid-response stays recognizable as such."""
    with contextlib.suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
