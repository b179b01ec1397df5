"""Resumable streams written by hand: a transaction with INSERT and NOTIFY for each token, and sse-starlette.

One process makes the tokens, and another one serves viewers. Each has one LISTEN connection. A new viewer first gets
what the table has.
"""

import asyncio
import contextlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
from bench.load import generate
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from baton.db.postgres import Pool
from baton.generators.protocol import GenerationRequest

TABLE = """
CREATE TABLE IF NOT EXISTS token (stream text, seq integer, data text NOT NULL, PRIMARY KEY (stream, seq))
"""
AFTER = "SELECT seq, data FROM token WHERE stream = $1 AND seq > $2 ORDER BY seq"
END = json.dumps({"type": "done"})


subscribers: dict[str, set[asyncio.Queue[tuple[int, str]]]] = defaultdict(set)
tasks: set[asyncio.Task[None]] = set()


def on_notify(_connection: object, _pid: int, _channel: str, payload: object) -> None:
    event = json.loads(str(payload))
    for queue in subscribers.get(event["stream"], ()):
        queue.put_nowait((event["seq"], event["data"]))


async def write(pool: Pool, stream: str, seq: int, data: str) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("INSERT INTO token VALUES ($1, $2, $3)", stream, seq, data)
        payload = json.dumps({"stream": stream, "seq": seq, "data": data})
        await connection.execute("SELECT pg_notify('token', $1)", payload)


async def produce(pool: Pool, stream: str, given: Any) -> None:
    seq = 0
    async for text in generate(GenerationRequest(uuid.uuid4(), given, {})):
        seq += 1
        await write(pool, stream, seq, json.dumps({"type": "text", "delta": text}))
    await write(pool, stream, seq + 1, END)


async def begin(request: Request) -> Response:
    task = asyncio.create_task(produce(request.app.state.pool, request.path_params["stream"], await request.json()))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return JSONResponse({}, status_code=201)


async def follow(request: Request) -> Response:
    last = int(request.headers.get("last-event-id", 0))
    answer: Response = EventSourceResponse(events(request.app.state.pool, request.path_params["stream"], last))
    return answer


async def events(pool: Pool, stream: str, last: int) -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    subscribers[stream].add(queue)
    try:
        for seq, data in await pool.fetch(AFTER, stream, last):
            last = seq
            yield {"id": str(seq), "data": data}
            if data == END:
                return
        while True:
            seq, data = await queue.get()
            if seq > last:
                last = seq
                yield {"id": str(seq), "data": data}
                if data == END:
                    return
    finally:
        subscribers[stream].discard(queue)
        if not subscribers[stream]:
            del subscribers[stream]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    dsn = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(dsn) as app.state.pool:
        await app.state.pool.execute(TABLE)
        listener = await asyncpg.connect(dsn)
        await listener.add_listener("token", on_notify)
        yield


routes = [Route("/{stream}", begin, methods=["POST"]), Route("/{stream}", follow)]
app = Starlette(routes=routes, lifespan=lifespan)
