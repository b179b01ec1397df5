"""Applications that are no pods, served in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from tests.support.logbook import until

from baton.server.listening_socket import bind


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """Serve an application on a free port; yield its address. Requests in progress are cut at the end."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=0)
    server = _Server(config)
    with contextlib.closing(bind("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started or task.done())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
