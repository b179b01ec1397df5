"""A site of the test's own, whose pages use pods of another origin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from tests.support.logbook import until

from baton.server.listening_socket import bind


class Server(uvicorn.Server):
    """Leaves the test process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """Serve an application; yield its origin."""
    with contextlib.closing(bind("127.0.0.1", 0)) as listening:
        server = Server(uvicorn.Config(app, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started or task.done())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
