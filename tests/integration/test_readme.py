"""The code of the README and of other pages, against a pod or a worker."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.cluster import Cluster, echo
from tests.support.logbook import connected, ended, events, queue, text, until_tail, working
from tests.support.processes import finished
from tests.support.readme import ROOT, code_of

import baton
from baton.generators.protocol import Yielded
from baton.generators.registry import load_generators


async def run_script(source: str) -> str:
    status, out, err = await finished("-c", source, env=os.environ, command=Path(sys.executable))
    assert status == 0, out + err
    return out + err


async def test_the_python_client_prints_the_answer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker(load_generators(cluster.settings(replay_speed=1000)))
    printed = await run_script(code_of("A Python client").replace("http://localhost:8001", pod.url))
    (stream,) = (await cluster.client.get(f"{pod.url}/v1/streams")).json()["data"]
    answer = (await cluster.client.get(f"{pod.url}/v1/streams/{stream['id']}")).json()
    assert answer["status"] == "completed"
    assert printed == answer["text"]


async def test_the_generator_that_continues_loses_and_repeats_nothing(dsn: str) -> None:
    example: dict[str, Any] = {}
    exec(code_of("A generator that continues", "docs/worker-loss.md"), example)
    agent, search = example["generate"], example["search"]
    searched: list[str] = []

    async def counted(topic: str) -> str:
        searched.append(topic)
        return str(await search(topic))

    example["search"] = counted
    topics = ["tides", "bees", "glass"]
    alone = [item async for item in agent(baton.GenerationRequest(UUID(int=1), {"topics": topics}, {}))]
    whole = "".join(item for item in alone if isinstance(item, str))
    searched.clear()
    items_by_run = {1: 5, 2: 21}  # in the first section, and after the state of the second one

    @baton.continues
    async def dying(request: baton.GenerationRequest) -> AsyncGenerator[Yielded, None]:
        left = items_by_run.get(request.run, len(alone))
        async for item in agent(request):
            yield item
            left -= 1
            if not left:
                await asyncio.Event().wait()

    async with connected(dsn) as connection:
        stream_id = await queue(dsn, given={"topics": topics}, may_continue=True, on_worker_lost="fail")
        for least in (4, 23):
            async with working(dsn, dying):
                await until_tail(connection, stream_id, least)
        async with working(dsn, dying):
            stream = await ended(connection, stream_id)
        found = await events(connection, stream_id)
    assert (stream.status, text(found)) == ("completed", whole)
    assert [event["type"] for event in found if event["type"] != "text"] == ["resumed", "resumed", "done"]
    assert searched == topics


async def test_the_client_of_the_page_about_python_follows_and_reads(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    monkeypatch.setenv("BATON_URL", pod.url)
    printed = await run_script(code_of("A client", "docs/python.md"))
    assert printed.splitlines() == ["1 text", "2 text", "3 done", "Hello again"]


async def test_the_transaction_of_the_page_about_python_creates_a_stream(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    page: dict[str, Any] = {}
    exec(code_of("A stream in your own transaction", "docs/python.md"), page)
    monkeypatch.setenv("DATABASE_URL", cluster.dsn)
    await cluster.pool.execute("CREATE TABLE message (chat_id integer, question text, stream_id uuid)")
    stream_id = await page["ask"](42, "Why?")
    assert await cluster.pool.fetchval("SELECT stream_id FROM message") == stream_id
    for statement in re.findall(r"```sql\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL):
        await cluster.pool.execute(statement.replace("019a5e2c-0000-7000-8000-000000000000", str(stream_id)))
    streams = await cluster.pool.fetch("SELECT tenant, metadata, inputs FROM baton.stream ORDER BY id")
    assert [tuple(row) for row in streams] == [("acme", '{"chat": 42}', 1), ("acme", '{"chat": 42}', 0)]
