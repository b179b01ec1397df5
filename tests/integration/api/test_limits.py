"""Limits over HTTP: what is refused, in which form, and what is let in again."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod, Tap, echo, text
from tests.support.doors import DOORS
from tests.support.follower import Follower, following, frames_after
from tests.support.logbook import until

from baton.api.browser_builds import NEWEST
from baton.db import stream_creation

RETRY = re.compile(rb": baton\nretry: (\d+)\n\n")
PROBLEM = {"accept": "application/problem+json"}
CHAT: dict[str, Any] = {"model": "replay", "messages": [{"role": "user", "content": "Hello"}]}
UI = {"id": "42", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}


def refused(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def rejected(pod: RunningPod, limit: str) -> float:
    return pod.pod.metrics.registry.get_sample_value("baton_rejections_total", {"limit": limit}) or 0


async def count(cluster: Cluster) -> int:
    found: int = await cluster.pool.fetchval("SELECT count(*) FROM baton.stream")
    return found


async def test_an_input_that_is_too_large_is_refused_in_every_dialect(
    cluster: Cluster, subtests: pytest.Subtests
) -> None:
    pod = await cluster.pod(max_input_bytes=1024)
    long = "ü" * 600
    bodies: dict[str, Any] = {
        "/v1/streams": {"input": long},
        "/v1/responses": {"model": "replay", "input": long},
        "/v1/chat/completions": CHAT | {"messages": [{"role": "user", "content": long}]},
        "/v1/ai-sdk/chat": UI | {"note": long},
        **dict(door.creating(said=long) for door in DOORS.values()),
    }
    for path, body in bodies.items():
        with subtests.test(path):
            answer = await cluster.client.post(f"{pod.url}{path}", json=body)
            assert answer.status_code == 413
            assert "input_too_large" in answer.text
            assert "retry-after" not in answer.headers
    assert await count(cluster) == 0
    assert rejected(pod, "input_bytes") == len(bodies)
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "x" * 1022})
    assert answer.status_code == 201


async def test_a_burst_of_creates_on_two_pods_is_refused_beyond_the_callers_rate(cluster: Cluster) -> None:
    pods = [await cluster.pod(creates_per_second=0.1, creates_burst=10) for _ in range(2)]
    answers = await asyncio.gather(
        *(cluster.client.post(f"{pods[number % 2].url}/v1/streams", json={"input": 1}) for number in range(60))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 10, 429: 50}
    assert await count(cluster) == 10
    late = next(answer for answer in answers if answer.status_code == 429)
    assert refused(late) == (429, "create_rate_limited")
    assert 1 <= int(late.headers["retry-after"]) <= 10
    assert sum(rejected(pod, "creates_per_second") for pod in pods) == 50
    await cluster.pool.execute("UPDATE baton.token_bucket SET full_at = full_at - interval '10 s'")
    assert await cluster.create(pods[0])


async def test_a_tenant_with_too_many_streams_creates_another_when_one_has_ended(cluster: Cluster) -> None:
    pods = [await cluster.pod(max_tenant_streams=5) for _ in range(2)]
    headers = {"idempotency-key": "k"}
    first = await cluster.client.post(f"{pods[0].url}/v1/streams", json={"input": 1}, headers=headers)
    answers = await asyncio.gather(
        *(cluster.client.post(f"{pods[number % 2].url}/v1/streams", json={"input": 1}) for number in range(100))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 4, 429: 96}
    late = next(answer for answer in answers if answer.status_code == 429)
    assert refused(late) == (429, "too_many_streams")
    assert int(late.headers["retry-after"]) > 0
    again = await cluster.client.post(f"{pods[1].url}/v1/streams", json={"input": 1}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    await cluster.client.post(f"{pods[0].url}/v1/streams/{first.json()['id']}/cancel")
    assert await cluster.create(pods[1])
    assert await count(cluster) == 6


async def test_openais_clients_understand_limits_and_retry(cluster: Cluster) -> None:
    pod = await cluster.pod(creates_per_second=1, creates_burst=1)
    await cluster.worker({"replay": said})
    async with AsyncOpenAI(base_url=f"{pod.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        with pytest.raises(openai.RateLimitError) as told:
            # Faster than one in a second, however slow this is.
            await asyncio.gather(*(client.responses.create(model="replay", input="go") for _ in range(20)))
        assert (told.value.code, told.value.type) == ("rate_limit_exceeded", "requests")
        assert told.value.response.headers["retry-after"] == "1"
        assert "1 streams a second" in told.value.message
        patient = client.with_options(max_retries=3)
        completion = await patient.chat.completions.create(model="replay", messages=CHAT["messages"])
        assert completion.choices[0].message.content == "Hello"


async def said(_request: Any, /) -> Any:
    yield "Hello"


READS = (
    "/v1/streams",
    "/v1/streams/{id}",
    "/v1/streams/{id}?wait=1",
    "/v1/streams/{id}/events",
    "/v1/responses/{id}",
    "/v1/responses/{id}/input_items",
    "/v1/models",
    "/v1/models/replay",
    "/v1/ai-sdk/chat/run_{hex}/stream",
    "/v1/ai-sdk/chat/42/stream",
    "/console/streams",
    "/console/overview",
)
FREE = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/errors",
    "/openapi.json",
    "/console",
    "/assets/baton.css",
    f"/client/{NEWEST}",
)


async def test_a_caller_that_reads_too_fast_can_still_create(
    cluster: Cluster, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.caller_rates.REFUSAL_SECONDS", 0)
    pod, other = [await cluster.pod(reads_per_second=0.1, reads_burst=len(READS)) for _ in range(2)]
    author = await cluster.author()
    await author.write(text(1), end=True)
    addresses = [path.format(id=author.id, hex=author.id.hex) for path in READS]
    for address in addresses:
        assert (await cluster.client.get(f"{pod.url}{address}", headers=PROBLEM)).status_code in {200, 204}
    for address in addresses:
        with subtests.test(address):
            answer = await cluster.client.get(f"{pod.url}{address}", headers=PROBLEM)
            assert answer.status_code == 429, answer.text
            if "responses" in address or "models" in address:
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            else:
                assert refused(answer) == (429, "read_rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert rejected(pod, "reads_per_second") == len(READS)
    # Any status but 200 would stop an EventSource forever.
    async with following(cluster.client, pod.url, author.id, 1) as follower:
        assert await follower.rest() == []
        (milliseconds,) = RETRY.fullmatch(follower.comments[0]).groups()  # type: ignore[union-attr]
        assert 1000 <= int(milliseconds) <= 30_000
    for path in FREE:
        assert (await cluster.client.get(f"{pod.url}{path}")).status_code == 200
    assert await cluster.create(pod)
    assert await frames_after(cluster.client, other.url, author.id) == author.frames


async def test_a_list_that_scans_many_streams_counts_as_many_reads(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.pod.caller_rates.REFUSAL_SECONDS", 0)
    pod = await cluster.pod(reads_per_second=0.1, reads_burst=30)
    await cluster.pool.execute(MANY, "", 200)
    plain = f"{pod.url}/v1/streams?limit=10"
    for _ in range(3):
        assert (await cluster.client.get(plain)).status_code == 200
    # It costs 11 reads; so do two of them, which leaves 5.
    for _ in range(2):
        rare = await cluster.client.get(f"{pod.url}/v1/streams?status=cancelled")
        assert rare.json() == {"data": [], "next": None}
    answers = [(await cluster.client.get(plain)).status_code for _ in range(10)]
    assert Counter(answers) == {200: 5, 429: 5}


MANY = """
INSERT INTO baton.stream (tenant, generator, input, on_worker_lost, status)
SELECT $1, 'replay', '1', 'retry', 'completed' FROM generate_series(1, $2::integer)
"""


async def test_lists_of_one_tenant_do_not_block_creates_of_another(cluster: Cluster) -> None:
    """Twenty-four clients list as fast as they can what the tenant has none of, among 50,000 streams."""
    (_, large), (_, small) = [await make_key(cluster, tenant=tenant) for tenant in ("large", "small")]
    pod = await guarded_pod(cluster)
    await cluster.pool.execute(MANY, "large", 50_000)
    semaphore = pod.shard.pool.semaphore  # type: ignore[attr-defined]
    pages: list[dict[str, Any]] = []

    async def starve() -> None:
        while True:
            answer = await cluster.client.get(f"{pod.url}/v1/streams?status=cancelled", headers=bearer(large))
            pages.append(answer.json())

    tasks = [asyncio.create_task(starve()) for _ in range(24)]
    await until(lambda: semaphore.waiting("large") > 0)
    most = 0
    for number in range(20):
        answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=bearer(small))
        assert answer.status_code == 201
        if number == 0:  # what began while nobody else came may still run
            await until(lambda: semaphore.in_use["large"] <= 4)
        most = max(most, semaphore.in_use["large"]) if number else 0
    assert most <= 4
    assert pages
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(page["data"] == [] and page["next"] for page in pages)


async def test_a_tenant_whose_requests_are_stuck_is_refused_and_others_are_served(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its creates wait for a lock, near its limit; all connections but one may be its own, and then half of them."""
    (_, stuck), (_, other) = [await make_key(cluster, tenant=tenant) for tenant in ("stuck", "other")]
    pod = await guarded_pod(cluster, max_tenant_streams=5, database_pool_size=4)
    monkeypatch.setattr("baton.db.fair_semaphore.WAIT_SECONDS", 0.1)
    url = f"{pod.url}/v1/streams"

    async def create(key: str) -> httpx2.Response:
        return await cluster.client.post(url, json={"input": 1}, headers=bearer(key))

    async with cluster.pool.acquire() as holding, holding.transaction():
        await holding.execute(stream_creation._ONE_BY_ONE, "stuck")
        tasks = [asyncio.create_task(create(stuck)) for _ in range(24)]
        await until(lambda: sum(task.done() for task in tasks) == 21)
        assert (await create(other)).status_code == 201
        events = f"{url}/{(await create(other)).json()['id']}/events"
        assert refused(await cluster.client.get(url, headers=bearer(stuck))) == (429, "too_many_queries")
        async with cluster.client.stream("GET", events, headers=bearer(other)) as followed:
            assert followed.status_code == 200
        # One that follows is asked to come back.
        answer = await cluster.client.get(events, headers=bearer(stuck))
        assert (answer.status_code, bool(RETRY.fullmatch(answer.content))) == (200, True)
    answers = await asyncio.gather(*tasks)
    assert Counter(answer.status_code for answer in answers) == {201: 3, 429: 21}
    late = next(answer for answer in answers if answer.status_code == 429)
    assert (refused(late), late.headers["retry-after"]) == ((429, "too_many_queries"), "1")
    assert rejected(pod, "tenant_queries") == 23
    assert pod.pod.ready


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_create_whose_read_fails_is_not_repeated(
    cluster: Cluster, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.db.fair_semaphore.WAIT_SECONDS", 0)
    tap = Tap()
    pod = await cluster.pod()
    await cluster.worker({"replay": tap})
    semaphore = pod.shard.pool.semaphore  # type: ignore[attr-defined]
    asked = asyncio.create_task(cluster.client.post(f"{pod.url}{path}", json=CHAT | {"input": "go"}))
    await until(lambda: pod.metric("baton_subscribers") == 1 and semaphore.in_use == {} and tap.started.is_set())
    for _ in range(7):
        await semaphore.acquire("")
    tap.end()
    answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "still_running")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_subscriber_beyond_the_limit_gets_in_once_another_has_left(cluster: Cluster) -> None:
    pod, author = await cluster.pod(max_stream_subscribers=2), await cluster.author()
    await author.write(text(1))
    url = f"{pod.url}/v1/streams/{author.id}/events"
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        await stack.enter_async_context(first)
        follower = await first.enter_async_context(following(cluster.client, pod.url, author.id))
        await follower.next_event()
        second = await stack.enter_async_context(following(cluster.client, pod.url, author.id))
        async with following(cluster.client, pod.url, author.id) as third:
            assert await third.rest() == []
            (milliseconds,) = RETRY.fullmatch(third.comments[0]).groups()  # type: ignore[union-attr]
            assert 5000 <= int(milliseconds) <= 15_000
        told = await cluster.client.get(url, headers=PROBLEM)
        assert refused(told) == (429, "too_many_subscribers")
        assert told.headers["retry-after"] == "5"
        # Who waits for the end takes a place too, and a client of another dialect hears the status.
        waiting = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}?wait=5")
        assert refused(waiting) == (429, "too_many_subscribers")
        plain = await cluster.client.get(url, headers={"accept": "text/plain"})
        assert refused(plain) == (429, "too_many_subscribers")
        await first.aclose()
        await until(lambda: pod.metric("baton_subscribers") == 1)
        async with following(cluster.client, pod.url, author.id) as third:
            await author.write(end=True)
            assert await third.rest() == author.frames
        assert await second.rest() == author.frames
    assert rejected(pod, "stream_subscribers") == 4


async def test_a_full_pod_refuses_creates_that_it_cannot_stream(
    cluster: Cluster,
) -> None:
    pod, other = await cluster.pod(max_subscribers=2), await cluster.pod()
    author = await cluster.author()
    async with contextlib.AsyncExitStack() as stack:
        # One that nobody holds any more closes its connection.
        followers = [await stack.enter_async_context(following(cluster.client, pod.url, author.id)) for _ in range(2)]
        for follower in followers:
            await follower.next_block()
        ready = await cluster.client.get(f"{pod.url}/readyz")
        assert (ready.status_code, ready.json()["full"], ready.json()["draining"]) == (503, True, False)
        assert "baton_pod_full 1.0" in (await cluster.client.get(f"{pod.url}/metrics")).text
        before = await count(cluster)
        assert refused(await cluster.client.post(f"{pod.url}/v1/ai-sdk/chat", json=UI)) == (503, "pod_full")
        for path, body in (("chat/completions", CHAT), ("responses", {"model": "replay", "input": "go"})):
            for stream in (True, False):
                answer = await cluster.client.post(f"{pod.url}/v1/{path}", json=body | {"stream": stream})
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "pod_full")
                assert answer.headers["retry-after"] == "5"
                assert "x-should-retry" not in answer.headers
        accept = {"accept": "text/event-stream"}
        async with cluster.client.stream("POST", f"{pod.url}/v1/streams", json={"input": 1}, headers=accept) as sent:
            follower = Follower(sent)
            assert await follower.rest() == []
            assert RETRY.fullmatch(follower.comments[0])
        assert await count(cluster) == before
        # What needs no place is served, and so is everything elsewhere.
        assert await cluster.create(pod)
        assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")).status_code == 200
        await author.write(text(1), end=True)
        assert await frames_after(cluster.client, other.url, author.id) == author.frames
    await until(lambda: pod.pod.ready)
    assert await frames_after(cluster.client, pod.url, author.id) == author.frames


async def test_a_tenants_subscribers_are_limited_across_its_streams(cluster: Cluster) -> None:
    pod = await cluster.pod(max_tenant_subscribers=2)
    authors = [await cluster.author() for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(following(cluster.client, pod.url, author.id)) for author in authors[:2]
        ]
        for follower in followers:  # which are kept: whose iterator is forgotten, that connection is closed
            await follower.next_block()
        answer = await cluster.client.get(f"{pod.url}/v1/streams/{authors[2].id}/events", headers=PROBLEM)
        assert refused(answer) == (429, "too_many_subscribers")
        assert pod.pod.ready


async def test_concurrent_subscribers_are_admitted_up_to_the_limit(cluster: Cluster) -> None:
    pod, author = await cluster.pod(max_stream_subscribers=10), await cluster.author()
    await author.write(text(1))
    url = f"{pod.url}/v1/streams/{author.id}/events"
    tasks = [asyncio.create_task(cluster.client.get(url, headers=PROBLEM)) for _ in range(40)]
    await until(lambda: sum(task.done() for task in tasks) == 30)
    assert pod.metric("baton_subscribers") == 10
    await author.write(end=True)
    answers = Counter(answer.status_code for answer in await asyncio.gather(*tasks))
    assert answers == {200: 10, 429: 30}


async def test_viewers_see_why_a_stream_exceeded_its_limits(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo}, max_stream_events=2)
    stream_id = await cluster.create(pod, input=["a", "b", "c"])
    frames = await frames_after(cluster.client, pod.url, stream_id)
    assert len(frames) == 3
    assert b'"code":"too_many_events"' in frames[-1]
    told = (await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}")).json()
    assert (told["status"], told["text"], told["error"]["code"]) == ("failed", "ab", "too_many_events")


async def test_refusals_are_counted_by_limit(cluster: Cluster) -> None:
    pod = await cluster.pod(max_body_bytes=1024)
    answer = await cluster.client.post(f"{pod.url}/v1/streams", content=b"x" * 2000)
    assert refused(answer) == (413, "request_too_large")
    told = (await cluster.client.get(f"{pod.url}/metrics")).text
    assert 'baton_rejections_total{limit="body_bytes"} 1.0' in told
    assert told.count("baton_rejections_total{") == 17
