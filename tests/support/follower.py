"""Clients of an event stream: one that keeps the bytes as received, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import orjson


class Follower:
    """One connection. `comments` are the blocks without an event, `frames` the ones with an event, as received."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.comments: list[bytes] = []
        self.frames: list[bytes] = []
        self._blocks = self._split()

    async def next_block(self) -> bytes:
        """The next block; raises StopAsyncIteration at the end."""
        block = await anext(self._blocks)
        (self.frames if block.startswith(b"id: ") else self.comments).append(block)
        return block

    async def next_event(self) -> dict[str, Any]:
        while not (block := await self.next_block()).startswith(b"id: "):
            pass
        return parse(block)

    async def events(self, count: int) -> list[dict[str, Any]]:
        return [await self.next_event() for _ in range(count)]

    async def rest(self) -> list[bytes]:
        """Read to the end; return all frames of this connection."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await self.next_block()
        return self.frames

    async def _split(self) -> AsyncIterator[bytes]:
        pending = b""
        async for part in self.response.aiter_raw():
            *blocks, pending = (pending + part).split(b"\n\n")
            for block in blocks:
                yield block + b"\n\n"
        assert pending == b"", f"the connection ended inside a block: {pending!r:.100}"


@contextlib.asynccontextmanager
async def following(
    client: httpx2.AsyncClient, url: str, stream_id: object, cursor: int = 0, **headers: str
) -> AsyncIterator[Follower]:
    if cursor:
        headers["last-event-id"] = str(cursor)
    async with client.stream("GET", f"{url}/v1/streams/{stream_id}/events", headers=headers) as response:
        assert response.status_code == 200, (response.status_code, await response.aread())
        yield Follower(response)


async def frames_after(client: httpx2.AsyncClient, url: str, stream_id: object, cursor: int = 0) -> list[bytes]:
    """Follow a stream to the end of the connection."""
    async with following(client, url, stream_id, cursor) as follower:
        return await follower.rest()


def parse(frame: bytes) -> dict[str, Any]:
    """An event with its number, which is its `id`."""
    head, _, data = frame.partition(b"\ndata: ")
    return {"seq": int(head.removeprefix(b"id: ")), **orjson.loads(data)}


def texts(frames: list[bytes]) -> list[str]:
    return [event["delta"] for event in map(parse, frames) if event["type"] == "text"]


def numbers(frames: list[bytes]) -> list[int]:
    return [parse(frame)["seq"] for frame in frames]
