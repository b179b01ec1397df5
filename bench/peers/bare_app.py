"""Baton's design and nothing else: a producer that INSERTs batches and NOTIFYs, and a pod that relays them.

It has the numbering, the flush window and the order of Baton (commit, then announce), on one loop for each process. It
has no queue, no claims or fences, no limits, no signatures, no metrics, no middleware, no second attempt. So it
is the least that such a design costs in Python with the same driver and the same loop, and nothing to run.
"""

import asyncio
import sys
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, cast

import asyncpg
import orjson
import uvloop
from bench.load import generate

from baton.generators.protocol import GenerationRequest

WINDOW_SECONDS = 0.04
PAYLOAD_BYTES = 7999
TABLE = """
CREATE TABLE IF NOT EXISTS batch (
    stream uuid, first integer, last integer NOT NULL, events bytea NOT NULL, PRIMARY KEY (stream, first)
)
"""
INSERT = "INSERT INTO batch SELECT * FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::bytea[])"
NOTIFY = "SELECT pg_notify('batch', payload) FROM unnest($1::text[]) AS payload"
READ = "SELECT first, last, events FROM batch WHERE stream = $1 AND last > $2 ORDER BY first"
END = b'{"type":"done"}'

Batch = tuple[uuid.UUID, int, int, bytes]
Respond = Callable[[asyncio.Transport, str, bytes], Awaitable[None]]


class Producer:
    """Makes tokens, and writes those of all streams in one statement after each window."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: dict[uuid.UUID, list[bytes]] = {}
        self._tails: dict[uuid.UUID, int] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def respond(self, transport: asyncio.Transport, path: str, body: bytes) -> None:
        task = asyncio.create_task(self._produce(uuid.UUID(path[1:]), orjson.loads(body)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")

    async def _produce(self, stream: uuid.UUID, given: Any) -> None:
        async for text in generate(GenerationRequest(stream, given, {})):
            self._put(stream, b'{"type":"text","delta":' + orjson.dumps(text) + b"}")
        self._put(stream, END)

    def _put(self, stream: uuid.UUID, line: bytes) -> None:
        self._waiting.setdefault(stream, []).append(line)
        self._wake.set()

    async def flush(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, {}
            batches = [self._numbered(stream, lines) for stream, lines in waiting.items()]
            await self._connection.execute(INSERT, *map(list, zip(*batches, strict=True)))
            await self._connection.execute(NOTIFY, payloads(batches))
            await asyncio.sleep(WINDOW_SECONDS)

    def _numbered(self, stream: uuid.UUID, lines: list[bytes]) -> Batch:
        first = self._tails.get(stream, 0) + 1
        last = self._tails[stream] = first + len(lines) - 1
        if lines[-1] is END:
            del self._tails[stream]
        return stream, first, last, b"\n".join(lines)


def payloads(batches: list[Batch]) -> list[str]:
    made: list[str] = []
    current: list[str] = []
    size = 0
    for stream, first, last, events in batches:
        record = f"{stream.hex} {first} {last} {len(events)}\n{events.decode()}"
        if current and size + len(record) > PAYLOAD_BYTES:
            made.append("\n".join(current))
            current, size = [], 0
        current.append(record)
        size += len(record) + 1
    return [*made, "\n".join(current)]


class Pod:
    """Writes each batch that it hears to the viewers of its stream, who begin with what the table has."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._viewers: dict[str, dict[asyncio.Transport, int]] = defaultdict(dict)

    async def respond(self, transport: asyncio.Transport, path: str, _body: bytes) -> None:
        transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        stream = uuid.UUID(path[1:])
        viewers = self._viewers[stream.hex]
        viewers[transport] = 0
        for first, last, events in await self._pool.fetch(READ, stream, 0):
            self._give(viewers, transport, first, last, encode(first, events.decode()), ends=events.endswith(END))

    def hear(self, _connection: object, _pid: int, _channel: str, content: object) -> None:
        payload = str(content)
        at = 0
        while at < len(payload):
            stream, first, last, length = payload[at : (end := payload.index("\n", at))].split(" ")
            at = end + 2 + int(length)
            viewers = self._viewers.get(stream)
            if viewers:
                events = payload[end + 1 : at - 1]
                body, ends = encode(int(first), events), events.endswith('{"type":"done"}')
                for transport in list(viewers):
                    self._give(viewers, transport, int(first), int(last), body, ends=ends)
                if not viewers:
                    del self._viewers[stream]

    def _give(
        self,
        viewers: dict[asyncio.Transport, int],
        transport: asyncio.Transport,
        first: int,
        last: int,
        body: bytes,
        *,
        ends: bool,
    ) -> None:
        if viewers.get(transport) == first - 1:
            viewers[transport] = last
            transport.write(body)
            if ends:
                del viewers[transport]
                transport.close()


def encode(first: int, events: str) -> bytes:
    lines = events.split("\n")
    return "".join([f"id: {seq}\ndata: {line}\n\n" for seq, line in enumerate(lines, first)]).encode()


class Http(asyncio.Protocol):
    """As much of HTTP as the benchmark's clients need."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._request = b""
        self._task: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, complete, body = self._request.partition(b"\r\n\r\n")
        if not complete:
            return
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if len(body) >= length:
            self._request = b""
            path = head.split(b" ", 2)[1].decode()
            self._task = asyncio.ensure_future(self._respond(self._transport, path, body))


async def main(role: str, port: int, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLE)
    if role == "producer":
        app = Producer(connection)
        respond: Respond = app.respond
        task: asyncio.Future[Any] = asyncio.ensure_future(app.flush())
    else:
        pod = Pod(await asyncpg.create_pool(dsn))
        respond = pod.respond
        await connection.add_listener("batch", pod.hear)
        task = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Http(respond), "127.0.0.1", port, backlog=1024):
        await task


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
