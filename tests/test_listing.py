"""`baton streams` and `baton workers`: what they print is what the database has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.cluster import Cluster

from baton import streams
from baton.generators.registry import load_generators
from baton.listing import Wanted, list_streams, list_workers
from baton.streams import NewStream

ALL = Wanted(None, None, 20)


async def printed(
    capsys: pytest.CaptureFixture[str], show: Callable[..., None], *arguments: object, as_json: bool
) -> Any:
    await asyncio.to_thread(show, *arguments, as_json=as_json)
    out = capsys.readouterr().out
    return json.loads(out) if as_json else out


async def test_streams_are_listed_newest_first(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cluster.settings()
    assert await printed(capsys, list_streams, settings, ALL, as_json=False) == "No stream matches.\n"
    assert await printed(capsys, list_streams, settings, ALL, as_json=True) == []
    first, _ = await streams.create(cluster.pool, NewStream("one", None, {}, "fail", tenant="acme"))
    second, _ = await streams.create(cluster.pool, NewStream("two\t\x1b[2J", None, {}, "fail"))
    assert await streams.end_any(cluster.pool, first.id, streams.QUEUE_TIMEOUT)

    header, *rows = (await printed(capsys, list_streams, settings, ALL, as_json=False)).splitlines()
    assert header.split("\t")[:4] == ["stream", "tenant", "generator", "status"]
    assert [row.split("\t")[:4] for row in rows] == [
        [str(second.id), "-", r"two\t\x1b[2J", "queued"],
        [str(first.id), "acme", "one", "failed"],
    ]
    assert rows[1].endswith("\tqueue_timeout")

    for wanted, expected in (
        (Wanted("acme", None, 20), [first.id]),
        (Wanted(None, "queued", 20), [second.id]),
        (Wanted(None, None, 1), [second.id]),
        (Wanted("acme", "queued", 20), []),
    ):
        found = await printed(capsys, list_streams, settings, wanted, as_json=True)
        assert [item["id"] for item in found] == list(map(str, expected))


async def test_workers_are_listed_with_what_they_do(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cluster.settings()
    told = await printed(capsys, list_workers, settings, as_json=False)
    assert told == "No workers. Start one: `baton worker`.\n"
    await cluster.worker(load_generators(cluster.settings()), worker_name="first", worker_concurrency=3)
    header, row = (await printed(capsys, list_workers, settings, as_json=False)).splitlines()
    assert header.split("\t")[:2] == ["worker", "streams"]
    assert row.split("\t")[:2] == ["first", "0 of 3"]
    (found,) = await printed(capsys, list_workers, settings, as_json=True)
    assert (found["name"], found["generators"], found["running"]) == ("first", ["replay"], 0)
    assert 0 <= found["silent_seconds"] < 60
