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
            sent = bytearray()
            for url in urls:
                with contextlib.suppress(ConnectionError):
                    if await _exchange(reader, writer, url, sent, lost=trouble == LOSES_THE_ANSWER):
                        break
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


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str, sent: bytearray, *, lost: bool
) -> bool:
    """Pass a connection on to a pod until both sides have ended; return whether the pod answered.

    `sent` has what another pod was sent before, and gets what this one is sent. With `lost`, the answer is dropped.
    """
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
    upstream_writer.write(bytes(sent))
    sending = asyncio.create_task(_pass_on(reader, upstream_writer, sent))
    try:
        first = await upstream_reader.read(65_536)
        if first and not lost:
            writer.write(first)
            await _pass_on(upstream_reader, writer)
            await sending
        return bool(first)
    finally:
        upstream_writer.transport.abort()
        sending.cancel()
        await asyncio.wait([sending])


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray | None = None) -> None:
    """Pass on what arrives, and the end as an end: what is cut in mid-response stays recognizable as such."""
    with contextlib.suppress(OSError):
        while part := await reader.read(65_536):
            if copy is not None:
                copy += part
            writer.write(part)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
