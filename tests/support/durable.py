"""Readers of the Durable Streams protocol, and open streams whose log a test writes itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import httpx2
import orjson
from tests.support.cluster import Author, Cluster
from tests.support.external import create

from baton.db.external_streams import Kind

OFFSET = "stream-next-offset"


async def external(
    cluster: Cluster, kind: Kind, path: str | None, *, used_at: datetime | None = None, **rest: Any
) -> Author:
    """Create an open stream; return what writes its log. A raw stream's end is written as that of any stream."""
    stream = await create(cluster.pool, kind=kind, path=path, **rest)
    if used_at is not None:
        await cluster.pool.execute(
            "UPDATE baton.external_stream SET used_at = $1 WHERE stream_id = $2", used_at, stream.stream_id
        )
    return Author(cluster.pool, stream.stream_id)


def sse_events(body: bytes) -> list[tuple[str, str]]:
    """The types and the data of the events that a client dispatches (WHATWG HTML 9.2.6)."""
    found: list[tuple[str, str]] = []
    kind, data = "", list[str]()
    for line in re.split("\r\n|\r|\n", body.decode()):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((kind, "\n".join(data)))
            kind, data = "", []
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
    return found


class DurableReader:
    """Reads a JSON stream as the protocol's clients do: it continues from the last offset, on any pod."""

    def __init__(self, client: httpx2.AsyncClient, path: str) -> None:
        self.messages: list[Any] = []
        self.offset = "-1"
        self.closed = False
        self.statuses: list[int] = []
        self.connections = 0
        self._client = client
        self._path = path

    async def poll(self, url: str) -> None:
        """Ask once by long-poll. A refusal that may pass changes nothing."""
        given = {"offset": self.offset, "live": "long-poll"}
        answer = await self._client.get(f"{url}/v1/stream/{self._path}", params=given)
        self.statuses.append(answer.status_code)
        if answer.status_code == 503:
            return
        assert answer.status_code in {200, 204}, answer.text
        if answer.status_code == 200:
            self.messages += answer.json()
        self.offset = answer.headers[OFFSET]
        self.closed = answer.headers.get("stream-closed") == "true"

    async def follow(self, url: str) -> None:
        """Follow by SSE until the connection ends, which has to be a clean end."""
        given = {"offset": self.offset, "live": "sse"}
        async with self._client.stream("GET", f"{url}/v1/stream/{self._path}", params=given) as response:
            self.statuses.append(response.status_code)
            if response.status_code == 503:
                return
            assert response.status_code == 200, await response.aread()
            self.connections += 1
            pending = b""
            async for part in response.aiter_raw():
                *blocks, pending = (pending + part).split(b"\n\n")
                for block in blocks:
                    for kind, data in sse_events(block + b"\n\n"):
                        self._take(kind, orjson.loads(data))
            assert pending == b""

    def _take(self, kind: str, content: Any) -> None:
        if kind == "data":
            self.messages += content
        else:
            assert kind == "control"
            known: Mapping[str, Any] = content
            self.offset = known["streamNextOffset"]
            self.closed = known.get("streamClosed", False)
