"""How a viewer notices that its connection is dead, although nothing says so."""

from __future__ import annotations

import asyncio

from baton.chaos.viewers import EventSource


async def test_pauses_of_a_slow_viewer_neither_count_as_silence_nor_end_it() -> None:
    loop = asyncio.get_running_loop()
    source = EventSource(b"GET / HTTP/1.1\r\n\r\n", lambda _seq, _line: None, lambda _what: None)
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _reader, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    async with server:
        await loop.create_connection(lambda: source, *server.sockets[0].getsockname())
        writer = await accepted.get()
        received_at, paused = source.received_at, 0.0
        for _ in range(3):
            begin = loop.time()
            source.pause()
            await asyncio.sleep(0.01)
            source.resume()
            paused += loop.time() - begin
        # What is left is the time between the pauses.
        assert received_at < source.received_at <= received_at + paused
        source.abort()
        writer.close()
