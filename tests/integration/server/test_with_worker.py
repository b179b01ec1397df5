"""A pod and a worker in one process: both work, both leave in order, and neither survives the other's failure."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.cluster import Cluster, serving
from tests.support.processes import SERVES, Running, environment, running

from baton import Client, create_app

STAGED = ",".join(f"{name}=tests.support.staged:{name}" for name in ("alone", "handed_over", "fatal"))
ROOT = Path(__file__).parents[3]
QUICK = {"worker_heartbeat_seconds": "0.1", "lease_seconds": "0.8", "queue_poll_seconds": "0.1", "drain_seconds": "0.1"}


@contextlib.asynccontextmanager
async def service(dsn: str, **given: str) -> AsyncIterator[tuple[Running, str]]:
    """Run `baton serve --with-worker`; yield the process and its address."""
    variables = {f"BATON_{name.upper()}": value for name, value in (QUICK | given).items()}
    env = environment(
        BATON_DATABASE_URL=dsn, BATON_ALLOW_ANONYMOUS="true", BATON_GENERATORS=STAGED, PYTHONPATH=str(ROOT), **variables
    )
    async with running("serve", "--with-worker", "--port", "0", env=env) as process:
        yield process, (await process.said(SERVES))[2]


async def answer_of(client: Client, stream: Any) -> list[str]:
    return [seen.event.get("delta", seen.event["type"]) async for seen in client.follow(stream)]


async def test_a_mounted_application_is_the_whole_deployment(cluster: Cluster, tmp_path: Path) -> None:
    baton_app = create_app(cluster.settings(generators={"alone": "tests.support.staged:alone"}), with_worker=True)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with baton_app.router.lifespan_context(baton_app):
            yield

    app = Starlette(routes=[Mount("/ai", baton_app)], lifespan=lifespan)
    go = tmp_path / "go"
    async with serving(app, baton_app=baton_app) as url, Client(f"{url}/ai") as client:
        assert (await cluster.client.get(f"{url}/ai/readyz")).json()["worker"] == "ready"
        metrics = (await cluster.client.get(f"{url}/ai/metrics")).text
        assert {"baton_subscribers", "baton_worker_streams"} <= set(
            re.findall(r"^# TYPE (\w+) ", metrics, re.MULTILINE)
        )
        families = re.findall(r"^# HELP (\w+) ", metrics, re.MULTILINE)
        assert len(families) == len(set(families))
        stream = await client.create(str(go), generator="alone")
        viewer = asyncio.create_task(answer_of(client, stream))
        async for seen in client.follow(stream):
            if seen.seq == 1:
                break
        # It leaves: the worker first, with its viewers, and the pod when the answer has ended.
        leaving = asyncio.create_task(baton_app.drain())
        await asyncio.sleep(0)
        while (ready := await cluster.client.get(f"{url}/ai/readyz")).is_success:
            pass
        assert (ready.json()["worker"], ready.json()["draining"]) == ("not ready", False)
        go.touch()
        assert await viewer == ["one ", "two", "done"]
        await leaving
        assert (await cluster.client.get(f"{url}/ai/readyz")).json()["draining"]
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.worker") == 0


async def test_an_application_without_a_worker_loads_none(cluster: Cluster) -> None:
    app = create_app(cluster.settings())
    async with serving(app) as url:
        assert "worker" not in (await cluster.client.get(f"{url}/readyz")).json()
        assert "baton_worker_streams" not in (await cluster.client.get(f"{url}/metrics")).text


@pytest.mark.slow
async def test_a_service_that_is_stopped_ends_its_answers_for_their_viewers(cluster: Cluster, tmp_path: Path) -> None:
    async with service(cluster.dsn) as (process, url), Client(url) as client:
        stream = await client.create(str(tmp_path / "go"), generator="alone")
        viewer = asyncio.create_task(answer_of(client, stream))
        await anext(client.follow(stream))
        process.process.terminate()
        async for _ in _until_not_ready(cluster, url):
            pass
        (tmp_path / "go").touch()
        assert await viewer == ["one ", "two", "done"]
        assert await process.ends() == 0
    assert await cluster.pool.fetchval("SELECT status FROM baton.stream") == "completed"


async def _until_not_ready(cluster: Cluster, url: str) -> AsyncIterator[None]:
    while (await cluster.client.get(f"{url}/readyz")).is_success:
        yield


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminate", "kill"])
async def test_another_service_continues_the_answer(cluster: Cluster, tmp_path: Path, how: str) -> None:
    async with service(cluster.dsn) as (first, url), service(cluster.dsn) as (_, other):
        async with Client(url) as client:
            streams = [await client.create(str(tmp_path / "go"), generator="handed_over") for _ in range(4)]
            for stream in streams:
                await anext(client.follow(stream))
        getattr(first.process, how)()
        assert await first.process.wait() == (0 if how == "terminate" else -9)
        (tmp_path / "go").touch()
        async with Client(other) as client:
            assert [await client.text(stream) for stream in streams] == ["one two"] * 4


@pytest.mark.slow
async def test_a_worker_that_fails_ends_the_process_with_a_message(cluster: Cluster) -> None:
    async with service(cluster.dsn) as (process, url), Client(url) as client:
        await client.create(None, generator="fatal")
        await process.said("The worker in this process has failed")
        assert await process.ends() == 1


async def test_a_service_whose_generators_cannot_be_loaded_does_not_start(cluster: Cluster) -> None:
    settings = cluster.settings(generators={"gone": "tests.support.staged:gone"})
    app = create_app(settings, with_worker=True)
    with pytest.raises(Exception, match="gone"):
        async with app.router.lifespan_context(app):
            pass
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.pod") == 0
