"""An application with Baton in it that is told to stop while answers run, under the servers that people use."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from tests.support.cluster import Author, Cluster, text
from tests.support.follower import frames_after
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.mounted import Site, mounted

# What platforms leave between SIGTERM and SIGKILL is 10 s. The answers here have no end.
GRACE_SECONDS = 9
SERVERS = [
    "uvicorn",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "uvicorn h11 asyncio",
            "uvicorn workers",
            "uvicorn reload",
            "gunicorn",
            "hypercorn workers 0",
            "hypercorn workers 0 uvloop",
            "granian",
            "granian uvloop",
        )
    ),
]


@dataclass(slots=True)
class Ending:
    """How a connection ended, and when."""

    body: bytes
    clean: bool
    at: float

    @property
    def frames(self) -> list[bytes]:
        return [block + b"\n\n" for block in self.body.split(b"\n\n")[:-1] if block.startswith(b"id: ")]


class Viewers:
    """Clients of one process, each in a task of its own that reads to the end of its connection."""

    def __init__(self, client: httpx2.AsyncClient, site: Site, author: Author) -> None:
        self._client = client
        self._site = site
        self._author = author
        self._reached = asyncio.Semaphore(0)
        self.tasks: list[asyncio.Task[Ending]] = []

    def native(self, cursor: int = 0) -> asyncio.Task[Ending]:
        return self._read(f"streams/{self._author.id}/events?last_event_id={cursor}")

    def others(self) -> list[asyncio.Task[Ending]]:
        """One in each way to follow in which a clean end would pass for the end of the answer."""
        return [
            self._read(f"responses/resp_{self._author.id.hex}?stream=true"),
            self._read("ai-sdk/chat/chat/stream"),
            self._read("ai-sdk/v4/chat?chatId=chat"),
            self._read(f"langgraph/threads/chat/runs/{self._author.id}/stream?stream_mode=messages-tuple"),
            self._read(f"langgraph/threads/chat/runs/{self._author.id}/join"),
            self._read(f"streams/{self._author.id}/events", accept="text/plain"),
        ]

    def waiting(self) -> asyncio.Task[httpx2.Response]:
        url = f"{self._site.url}/v1/streams/{self._author.id}?wait=60"
        return asyncio.create_task(self._client.get(url))

    async def reached(self) -> None:
        """Wait until each of them has got something."""
        for _ in self.tasks:
            await asyncio.wait_for(self._reached.acquire(), DEADLINE_SECONDS)

    def _read(self, path: str, **headers: str) -> asyncio.Task[Ending]:
        self.tasks.append(asyncio.create_task(self._to_the_end(f"{self._site.url}/v1/{path}", headers)))
        return self.tasks[-1]

    async def _to_the_end(self, url: str, headers: dict[str, str]) -> Ending:
        body, clean = b"", False
        async with self._client.stream("GET", url, headers=headers) as response:
            assert response.status_code == 200, (url, await response.aread())
            with contextlib.suppress(httpx2.TransportError):
                async for part in response.aiter_raw():
                    if not body:
                        self._reached.release()
                    body += part
                clean = True
        return Ending(body, clean, time.monotonic())


async def stopped(site: Site, viewers: Viewers, record: Callable[[str, object], None]) -> None:
    """Tell the process to stop, and wait until it has. Of the times in docs/deploy.md this is the source."""
    at = site.stop()
    await site.ends(GRACE_SECONDS)
    record("exit_seconds", round(time.monotonic() - at, 1))
    endings = await asyncio.gather(*viewers.tasks)
    record("last_client_seconds", round(max((ending.at for ending in endings), default=at) - at, 1))


@pytest.mark.parametrize("server", SERVERS)
async def test_clients_are_sent_away_before_the_process_ends_and_miss_nothing(
    server: str, cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    author = await cluster.author(chat="chat")
    await author.write_texts([2, 1, 3])
    async with mounted(server, tmp_path, cluster.dsn, BATON_DRAIN_SECONDS="1") as site:
        viewers = Viewers(cluster.client, site, author)
        natives = [viewers.native(cursor) for cursor in range(4)]
        others = viewers.others()
        waiting = viewers.waiting()
        await viewers.reached()
        writing = asyncio.create_task(author.write_texts([1] * 20))
        await stopped(site, viewers, record_property)
        await writing
        assert (await waiting).json()["status"] == "running"
    pod = await cluster.pod()
    await author.write(text(0), end=True)
    for cursor, native in enumerate(natives):
        ending = await native
        assert ending.clean
        assert ending.body.split(b"\n\n")[-2].startswith(b": baton\nretry: ")
        missed = await frames_after(cluster.client, pod.url, author.id, cursor + len(ending.frames))
        assert ending.frames + missed == author.frames[cursor:]
    assert not any([(await other).clean for other in others])


@pytest.mark.slow
async def test_a_draining_pod_accepts_clients_and_sends_them_away(cluster: Cluster, tmp_path: Path) -> None:
    author = await cluster.author()
    await author.write_texts([2])
    async with mounted("uvicorn", tmp_path, cluster.dsn, BATON_DRAIN_SECONDS="60") as site:

        async def leaves() -> bool:
            return (await cluster.client.get(f"{site.url}/readyz")).status_code == 503

        viewers = Viewers(cluster.client, site, author)
        for _ in range(2):
            viewers.native()
        await viewers.reached()
        site.stop()
        await until(leaves)
        sent_on = await viewers.native()
        assert sent_on.clean
        assert site.process.returncode is None
        # After a second signal the rest leave at once.
        site.stop()
        await site.ends(GRACE_SECONDS)
        assert all(ending.clean for ending in await asyncio.gather(*viewers.tasks))


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_does_not_delay_the_exit_of_a_process(
    server: str, cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    author = await cluster.author()
    await author.write_texts([2])
    async with mounted(server, tmp_path, cluster.dsn) as site:
        viewers = Viewers(cluster.client, site, author)
        ending = viewers.native()
        await viewers.reached()
        await stopped(site, viewers, record_property)
    assert (await ending).clean


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_waiting_for_an_end_does_not_delay_the_exit(
    server: str, cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    author = await cluster.author()
    await author.write_texts([2])

    async def waits() -> bool:
        return bool(await cluster.pool.fetchval("SELECT sum(subscribers) > 0 FROM baton.pod"))

    async with mounted(server, tmp_path, cluster.dsn, BATON_POD_HEARTBEAT_SECONDS="0.1") as site:
        viewers = Viewers(cluster.client, site, author)
        waiting = viewers.waiting()
        await until(waits)
        await stopped(site, viewers, record_property)
    assert (await waiting).json()["status"] == "running"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from Python 3.12 on it waits for the answers' ends instead")
async def test_hypercorn_with_worker_processes_cuts_its_clients_and_they_can_resume(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its workers get no signal: docs/deploy.md says so."""
    author = await cluster.author()
    await author.write_texts([2, 1, 3])
    async with mounted("hypercorn", tmp_path, cluster.dsn) as site:
        viewers = Viewers(cluster.client, site, author)
        endings = [viewers.native(), viewers.native()]
        await viewers.reached()
        await stopped(site, viewers, record_property)
    pod = await cluster.pod()
    await author.write(text(0), end=True)
    for ending in await asyncio.gather(*endings):
        assert not ending.clean
        missed = await frames_after(cluster.client, pod.url, author.id, len(ending.frames))
        assert ending.frames + missed == author.frames
