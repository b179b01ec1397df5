"""Four databases, two pods and four workers under load: one database is lost, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.faults.servers import free_port
from tests.support.data_folder import data_folder
from tests.support.processes import SERVES, Running, environment, running

from baton.client import Follower, Received
from baton.demo.embedded import EmbeddedPostgres, embedded_server
from baton.pod import placement
from baton.stream_ids import number_of

logger = logging.getLogger(__name__)

STREAMS = 400
WATCHED = 48
SECONDS = 40
NAMES = "abcd"
LOST = 3


@contextlib.asynccontextmanager
async def deployment() -> AsyncIterator[tuple[list[EmbeddedPostgres], list[str]]]:
    """Run the databases, the pods and the workers; yield the servers, and the addresses of the pods."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [stack.enter_context(embedded_server(stack.enter_context(data_folder()))) for _ in NAMES]
        databases = {
            name: {"url": server.dsn, "number": number}
            for number, (name, server) in enumerate(zip(NAMES, servers, strict=True))
        }
        env = environment(
            BATON_DATABASES=json.dumps(databases),
            BATON_ALLOW_ANONYMOUS="true",
            BATON_GENERATORS="stamped=answers:stamped",
            BATON_DEFAULT_GENERATOR="stamped",
            BATON_WORKER_CONCURRENCY="150",
            BATON_DATABASE_TIMEOUT_SECONDS="4",
            BATON_DRAIN_SECONDS="0",
            BATON_LOG_FORMAT="text",
        )
        here = Path(__file__).parent
        async with running("migrate", env=env, cwd=here) as migrating:
            assert await migrating.ends(60) == 0, migrating.lines
        ports = [free_port(), free_port()]
        pods: list[Running] = [
            await stack.enter_async_context(running("serve", "--port", str(port), env=env, cwd=here)) for port in ports
        ]
        workers = [await stack.enter_async_context(running("worker", env=env, cwd=here)) for _ in range(4)]
        for pod in pods:
            await pod.said(SERVES)
        for worker in workers:
            await worker.said("is ready for")
        yield servers, [f"http://127.0.0.1:{port}" for port in ports]


class Watch:
    """A viewer of one stream, which notes how long each event was under way, and when it arrived."""

    def __init__(self, http: httpx2.AsyncClient, url: str, stream_id: str) -> None:
        self.number = number_of(UUID(stream_id))
        self.delays: list[tuple[float, float]] = []
        self.texts: list[str] = []
        self._follower = Follower(http, f"{url}/v1/streams/{stream_id}/events")
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> str:
        seq = 0
        async with contextlib.aclosing(self._follower.run()) as sightings:
            async for sighting in sightings:
                if not isinstance(sighting, Received):
                    continue
                assert sighting.seq == seq + 1, "an event is missing, repeated or out of order"
                seq = sighting.seq
                if sighting.event["type"] == "text":
                    index, _, stamp = sighting.event["delta"].partition("@")
                    self.texts.append(index)
                    self.delays.append((time.time(), time.time() - float(stamp)))
                elif sighting.event["type"] == "done":
                    status: str = sighting.event["status"]
                    return status
                else:
                    raise AssertionError(sighting.event)
        return "no end"


def p99(watches: Sequence[Watch], begin: float, end: float) -> float:
    """The 99th percentile of the delays of what arrived in this time, in seconds."""
    found = [delay for watch in watches for at, delay in watch.delays if begin <= at <= end]
    return quantiles(found, n=100)[98]


def key_at(number: int) -> str:
    weights = dict.fromkeys(range(len(NAMES)), 1.0)
    return next(
        key
        for key in (f"key-{index}" for index in range(1000))
        if placement.home(placement.name_of_key("", key), weights) == number
    )


@pytest.mark.slow
async def test_a_lost_database_pauses_its_streams_alone() -> None:
    limits = httpx2.Limits(max_connections=None)
    async with (
        deployment() as (servers, urls),
        httpx2.AsyncClient(timeout=30, limits=limits, trust_env=False) as http,
    ):

        async def create(url: str, **headers: str) -> httpx2.Response:
            return await http.post(f"{url}/v1/streams", json={"input": SECONDS}, headers=headers)

        created = [await create(urls[index % 2]) for index in range(STREAMS)]
        assert {answer.status_code for answer in created} == {201}
        ids = [answer.json()["id"] for answer in created]
        shares = Counter(number_of(UUID(stream_id)) for stream_id in ids)
        assert min(shares.values()) > STREAMS / len(NAMES) / 2, shares
        watches = [Watch(http, urls[index % 2], stream_id) for index, stream_id in enumerate(ids[:WATCHED])]
        begun = time.time()
        await asyncio.sleep(8)
        lost_at = time.time()
        await asyncio.to_thread(servers[LOST].stop)
        statuses: list[int] = []
        until = time.monotonic() + 8
        while time.monotonic() < until:
            statuses += [(await create(url)).status_code for url in urls]
            refused = await create(urls[0], **{"idempotency-key": key_at(LOST)})
            kept = await create(urls[1], **{"idempotency-key": key_at(0)})
            assert (refused.status_code, kept.status_code in {200, 201}) == (503, True)
            await asyncio.sleep(0.2)
        back_at = time.time()
        await asyncio.to_thread(servers[LOST].start)
        assert set(statuses) == {201}
        others = [watch for watch in watches if watch.number != LOST]
        own = [watch for watch in watches if watch.number == LOST]
        for watch in watches:
            assert await watch.task == "completed"
            assert watch.texts == [str(number) for number in range(SECONDS)]
        for stream_id in ids:
            answer = (await http.get(f"{urls[0]}/v1/streams/{stream_id}?wait=20")).json()
            assert answer["status"] == "completed"
            assert [part.partition("@")[0] for part in answer["text"].split()] == [str(n) for n in range(SECONDS)]
        spans = ((begun + 2, lost_at), (lost_at, back_at), (back_at, time.time()))
        figures: dict[str, Any] = {
            "streams of each database": dict(sorted(shares.items())),
            "p99 of the others before, during, after (ms)": [round(1000 * p99(others, *span)) for span in spans],
            "longest delay of the lost one (s)": round(max(delay for watch in own for _, delay in watch.delays), 1),
        }
        logger.info("%s", json.dumps(figures))
