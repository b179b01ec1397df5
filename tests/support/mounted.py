"""The application of docs/deploy.md that mounts Baton, as a process, under the servers that people use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from tests.support.logbook import until
from tests.support.processes import environment
from tests.support.readme import code_of

from baton.demo.cluster import reserved_port

MODULE = "site_with_baton"
SITE = code_of("In your own application", "docs/deploy.md")
START_SECONDS = 60

# What stands behind `python -m`, with the port to be added.
SERVERS = {
    "uvicorn": ("uvicorn", f"{MODULE}:app", "--port"),
    "uvicorn h11 asyncio": ("uvicorn", f"{MODULE}:app", "--http", "h11", "--loop", "asyncio", "--port"),
    "uvicorn workers": ("uvicorn", f"{MODULE}:app", "--workers", "2", "--port"),
    "uvicorn reload": ("uvicorn", f"{MODULE}:app", "--reload", "--port"),
    "gunicorn": ("gunicorn", f"{MODULE}:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b"),
    "hypercorn workers 0": ("hypercorn", f"{MODULE}:app", "--workers", "0", "-b"),
    "hypercorn workers 0 uvloop": ("hypercorn", f"{MODULE}:app", "--workers", "0", "-k", "uvloop", "-b"),
    "hypercorn": ("hypercorn", f"{MODULE}:app", "-b"),
    "granian": ("granian", f"{MODULE}:app", "--interface", "asgi", "--loop", "asyncio", "--port"),
    "granian uvloop": ("granian", f"{MODULE}:app", "--interface", "asgi", "--loop", "uvloop", "--port"),
}


@dataclass(slots=True)
class Site:
    """A process that serves the application; Baton is below `url`."""

    url: str
    process: Process

    def stop(self) -> float:
        """Signal the process to end, as a platform does; return the time by `time.monotonic`."""
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    async def ends(self, within_seconds: float) -> None:
        await asyncio.wait_for(self.process.wait(), within_seconds)


def command(server: str, port: int) -> Sequence[str]:
    *start, last = SERVERS[server]
    return [sys.executable, "-m", *start, last, f"127.0.0.1:{port}" if last == "-b" else str(port)]


@contextlib.asynccontextmanager
async def mounted(server: str, folder: Path, dsn: str, *, source: str = SITE, **settings: str) -> AsyncIterator[Site]:
    """Serve the application; kill the processes that are left at the end."""
    (folder / f"{MODULE}.py").write_text(source)
    given = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", **settings}
    with reserved_port() as port:
        process = await asyncio.create_subprocess_exec(
            *command(server, port), cwd=folder, env=environment(**given), start_new_session=True
        )
        url = f"http://127.0.0.1:{port}/baton"
        try:
            async with httpx2.AsyncClient(trust_env=False) as client:
                await until(lambda: answers(client, f"{url}/readyz"), START_SECONDS)
            yield Site(url, process)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its workers, too, which are of its group
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def answers(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False
