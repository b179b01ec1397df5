"""Streams that wait for an input, as the native routes, the console and the metrics show them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Author, Cluster, RunningPod
from tests.support.follower import Follower, following
from tests.support.logbook import until

from baton.db import inputs
from baton.events import encode_text

REASON = {"type": "approval", "calls": ["call_1"]}


async def get(cluster: Cluster, pod: RunningPod, path: str, **headers: str) -> Any:
    answer = await cluster.client.get(f"{pod.url}/{path}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def waiting(cluster: Cluster, **about: Any) -> Author:
    author = await cluster.author(**about)
    await author.write(encode_text("May I?"))
    await author.wait(REASON)
    return author


async def test_a_stream_shows_what_it_waits_for_and_until_when(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await waiting(cluster)
    row = await cluster.pool.fetchrow("SELECT waiting_since, wait_until FROM baton.stream")
    assert row is not None
    shown = await get(cluster, pod, f"v1/streams/{author.id}")
    assert (shown["status"], shown["text"], shown["waiting"]["for"]) == ("waiting", "May I?", REASON)
    assert [datetime.fromisoformat(shown["waiting"][name]) for name in ("since", "until")] == list(row)
    (listed,) = (await get(cluster, pod, "v1/streams?status=waiting"))["data"]
    # A list reads rows only.
    assert listed["waiting"] == {name: shown["waiting"][name] for name in ("since", "until")}
    assert (await get(cluster, pod, "v1/streams?status=running"))["data"] == []
    assert (await inputs.add(cluster.pool, author.id, b'"yes"')).result == "woken"
    shown = await get(cluster, pod, f"v1/streams/{author.id}")
    assert (shown["status"], shown["interruption"], shown["waiting"]) == ("queued", "input", None)
    await author.resume()
    shown = await get(cluster, pod, f"v1/streams/{author.id}")
    assert (shown["status"], shown["waiting"], shown["text"]) == ("running", None, "May I?")


async def test_followers_stay_through_a_wait(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await waiting(cluster)
    async with following(cluster.client, pod.url, author.id) as follower:
        assert (await follower.next_event())["delta"] == "May I?"
        event = await follower.next_event()
        assert (event["type"], event["for"]) == ("waiting", REASON)
        await inputs.add(cluster.pool, author.id, b'"yes"')
        await author.resume()
        assert await follower.next_event() == {"seq": 3, "type": "resumed", "run": 2, "reason": "input"}
        await author.write(encode_text(" Thank you."), end=True)
        assert (await follower.next_event())["delta"] == " Thank you."


async def test_the_answer_so_far_says_that_the_stream_waits(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await waiting(cluster)

    async def first(query: str) -> Any:
        url = f"{pod.url}/v1/streams/{author.id}/events?{query}"
        async with cluster.client.stream("GET", url) as response:
            return await Follower(response).next_event()

    snapshot = await first("snapshot=true")
    assert (snapshot["type"], snapshot["text"], snapshot["waiting"]["for"]) == ("snapshot", "May I?", REASON)
    assert await first("snapshot=true&view=answer") == {"seq": 2, "type": "snapshot", "text": "May I?"}
    await inputs.add(cluster.pool, author.id, b'"yes"')
    await author.resume()
    assert "waiting" not in await first("snapshot=true")


async def test_the_answer_view_shows_that_a_stream_waits_and_not_what_for(cluster: Cluster) -> None:
    await make_key(cluster)
    pod = await guarded_pod(cluster)
    author = await waiting(cluster, tenant="acme")
    narrow = bearer(signed(author.id, view="answer"))
    shown = await get(cluster, pod, f"v1/streams/{author.id}", **narrow)
    assert (shown["status"], shown["text"], "waiting" in shown) == ("waiting", "May I?", False)
    assert "call_1" not in json.dumps(shown)
    url = f"{pod.url}/v1/streams/{author.id}/events?view=answer"
    async with cluster.client.stream("GET", url, headers=narrow) as response:
        follower = Follower(response)
        assert (await follower.next_event())["delta"] == "May I?"
        await author.write(encode_text("!"), end=True)
        assert (await follower.next_event())["delta"] == "!"


async def test_the_console_shows_waits_without_what_they_are_for(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await waiting(cluster)
    await cluster.author()
    for status in ("waiting", "live"):
        shown = await get(cluster, pod, f"console/streams?status={status}&id={author.id}")
        (item,) = shown["data"]
        assert (item["status"], sorted(item["waiting"])) == ("waiting", ["since", "until"])
        assert "call_1" not in json.dumps(shown)
    live = (await get(cluster, pod, "console/overview"))["live"]
    assert (live["queued"], live["waiting"], live["running"]) == (0, 1, 1)


async def test_waiting_streams_are_counted(cluster: Cluster) -> None:
    await waiting(cluster)
    pod = await cluster.pod()
    await until(lambda: pod.shard.metrics.waiting is not None)
    assert pod.metric("baton_waiting_streams") == 1
