"""Streams that a producer writes, as the native routes create, show and end them, and what bounds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod
from tests.support.doors import DOORS
from tests.support.durable import external
from tests.support.follower import following
from tests.support.logbook import until

from baton.api import content_types, signs_of_life
from baton.doctor.capacity_checks import POD_CONNECTIONS
from baton.events import encode_text

EVENTS = {"content-type": content_types.EVENTS}


async def create(cluster: Cluster, pod: RunningPod, headers: dict[str, str] | None = None, **body: Any) -> Any:
    """Create an external stream; return its description."""
    answer = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"generator": "external"} | body, headers=headers or {}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


async def append(cluster: Cluster, pod: RunningPod, url: str, *events: Any, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = orjson.dumps(list(events)) if events else b""
    return await cluster.client.post(pod.url + url, content=content, headers=EVENTS | named)


def text(delta: str) -> dict[str, str]:
    return {"type": "text", "delta": delta}


async def test_a_producer_writes_a_stream_that_was_created_natively(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "baton")
    pod = await cluster.pod()
    created = await create(cluster, pod, input={"question": "?"}, metadata={"chat": 42})
    assert (created["status"], created["generator"], created["metadata"]) == ("open", "external", {"chat": 42})
    assert created["started_at"] is not None
    assert created["producer"] == {"url": f"/v1/stream/{created['id']}", "token": None}
    async with following(cluster.client, pod.url, UUID(created["id"])) as follower:
        first = await append(cluster, pod, created["producer"]["url"], text("Hel"), text("lo"))
        assert first.status_code == 204, first.text
        assert (await follower.next_event())["delta"] == "Hel"
        finish = {"type": "finish", "finish_reason": "length"}
        assert (await append(cluster, pod, created["producer"]["url"], text("!"), finish)).is_success
        rest = b"".join(await follower.rest())
    assert b'"finish_reason":"length"' in rest
    shown = (await cluster.client.get(f"{pod.url}/v1/streams/{created['id']}")).json()
    assert (shown["text"], shown["status"], shown["timings"]["tokens"]) == ("Hello!", "completed", 3)
    (line,) = [record for record in caplog.records if "has ended" in record.getMessage()]
    fields = vars(line)
    assert (fields["generator"], fields["events"], fields["tokens"]) == ("external", 4, 3)


async def test_the_same_key_creates_a_stream_once(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    headers = bearer(key) | {"idempotency-key": "one"}
    first = await create(cluster, pod, headers)
    again = await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "external"}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    # A producer that starts again gets a token that works.
    url, token = again.json()["producer"]["url"], again.json()["producer"]["token"]
    assert (await append(cluster, pod, url, text("x"), authorization=f"Bearer {token}")).status_code == 204


async def test_a_producers_token_appends_and_closes_and_does_nothing_else(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    created, other = [await create(cluster, pod, bearer(key)) for _ in range(2)]
    stream, url, token = (
        f"{pod.url}/v1/streams/{created['id']}",
        created["producer"]["url"],
        created["producer"]["token"],
    )
    mine, viewer = bearer(token), bearer(created["token"])
    assert (await append(cluster, pod, url, text("x"), **mine)).status_code == 204
    for method, path, status in (
        ("GET", stream, 403),
        ("GET", f"{stream}/events", 403),
        ("POST", f"{stream}/cancel", 403),
        ("POST", f"{stream}/token", 403),
        ("GET", pod.url + url, 403),
        ("DELETE", pod.url + url, 403),
        ("PUT", f"{pod.url}/v1/stream/path", 403),
        ("GET", f"{stream}/end", 204),
    ):
        assert (await cluster.client.request(method, path, headers=mine)).status_code == status, (method, path)
    assert (await append(cluster, pod, other["producer"]["url"], text("x"), **mine)).status_code == 404
    assert (await append(cluster, pod, url, text("x"), **viewer)).status_code == 403
    narrow = {"authorization": f"Bearer {signed(created['id'], scopes=['produce'], tenant='other')}"}
    assert (await append(cluster, pod, url, text("x"), **narrow)).status_code == 404
    assert (await append(cluster, pod, url, **mine, stream_closed="true")).status_code == 204
    assert (await cluster.client.get(f"{stream}/end", headers=mine)).json()["status"] == "completed"


async def test_a_token_for_writing_is_made_on_request_only(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    _, reader = await make_key(cluster, "create", "read", "cancel")
    pod = await guarded_pod(cluster)
    created = await create(cluster, pod, bearer(key))
    url = f"{pod.url}/v1/streams/{created['id']}/token"
    for body, credential, status, can_append in (
        ({}, key, 201, False),
        ({"scopes": ["produce"]}, key, 201, True),
        ({"scopes": ["produce"]}, reader, 403, False),
    ):
        answer = await cluster.client.post(url, json=body, headers=bearer(credential))
        assert answer.status_code == status
        if answer.is_success:
            token = bearer(answer.json()["token"])
            appended = await append(cluster, pod, created["producer"]["url"], text("x"), **token)
            assert (appended.status_code == 204) == can_append
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "external"}, headers=bearer(reader))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"queue_timeout_seconds": 5}, "queue_timeout_seconds"),
        ({"on_worker_lost": "retry"}, "on_worker_lost"),
        ({"idle_timeout_seconds": 5}, "idle_timeout_seconds"),
        ({"cancel_when_unwatched_seconds": 0.01}, "cancel_when_unwatched_seconds"),
    ],
)
async def test_what_an_external_stream_cannot_have_is_refused(cluster: Cluster, body: Any, detail: str) -> None:
    pod = await cluster.pod()
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "external"} | body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert detail in answer.json()["detail"]
    followed = await cluster.client.post(
        f"{pod.url}/v1/streams", json={"generator": "external"}, headers={"accept": "text/event-stream"}
    )
    assert followed.status_code == 400


async def test_other_apis_refuse_the_reserved_name(cluster: Cluster) -> None:
    pod = await cluster.pod()
    messages = [{"role": "user", "content": "?"}]
    parts = [{"role": "user", "parts": [{"type": "text", "text": "?"}]}]
    for path, body in (
        ("/v1/responses", {"model": "external", "input": "?"}),
        ("/v1/chat/completions", {"model": "external", "messages": messages}),
        ("/v1/ai-sdk/chat", {"model": "external", "messages": parts}),
        *(door.creating("external") for door in DOORS.values()),
    ):
        answer = await cluster.client.post(pod.url + path, json=body)
        assert (answer.status_code, "reserved_generator" in answer.text) == (422, True), answer.text


async def test_older_code_keeps_streams_from_being_created(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    pod = await cluster.pod()
    await cluster.pool.execute("INSERT INTO baton.worker (name, generators, concurrency) VALUES ('old', '{}', 1)")
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "external"})
    assert (answer.status_code, answer.json()["code"]) == (503, "older_code_running")
    assert int(answer.headers["retry-after"]) > 1
    assert any("worker old" in record.getMessage() for record in caplog.records)
    await cluster.pool.execute("DELETE FROM baton.worker")
    await create(cluster, pod)


# Ending


async def test_a_cancel_ends_an_open_stream_at_once_and_its_producer_learns_it(cluster: Cluster) -> None:
    pods = [await cluster.pod() for _ in range(2)]
    created = await create(cluster, pods[0])
    stream, url = f"/v1/streams/{created['id']}", created["producer"]["url"]
    held = asyncio.create_task(cluster.client.get(f"{pods[1].url}{stream}/end?wait=20"))
    await until(lambda: pods[1].metric("baton_subscribers") == 1)
    cancelled = await cluster.client.post(f"{pods[0].url}{stream}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await held).json() == {"status": "cancelled", "finish_reason": "cancelled", "error": None}
    refused = await append(cluster, pods[1], url, text("late"))
    assert (refused.status_code, refused.headers["stream-closed"]) == (409, "true")
    assert refused.json()["code"] == "cancelled"
    assert (await cluster.client.post(f"{pods[0].url}{stream}/cancel")).status_code == 200


async def test_all_stop_routes_end_an_open_stream(cluster: Cluster) -> None:
    pod = await cluster.pod()
    for path in (
        "/v1/responses/resp_{hex}/cancel",
        "/v1/ai-sdk/chat/run_{hex}/stop",
        "/v1/ag-ui/x/runs/run_{hex}/stop",
        "/v1/langgraph/threads/c/runs/{id}/cancel",
    ):
        created = await create(cluster, pod, metadata={"chat": "c"})
        answer = await cluster.client.post(pod.url + path.format(hex=UUID(created["id"]).hex, id=created["id"]))
        assert answer.is_success, answer.text
        stopped = await cluster.client.get(f"{pod.url}/v1/streams/{created['id']}")
        assert stopped.json()["status"] == "cancelled"


async def test_an_open_stream_is_running_for_every_api(cluster: Cluster) -> None:
    pod = await cluster.pod()
    created = await create(cluster, pod, metadata={"chat": "c"})
    await append(cluster, pod, created["producer"]["url"], text("x"))
    response = await cluster.client.get(f"{pod.url}/v1/responses/resp_{UUID(created['id']).hex}")
    assert response.json()["status"] == "in_progress"
    listed = (await cluster.client.get(f"{pod.url}/v1/streams?status=open")).json()["data"]
    assert [item["id"] for item in listed] == [created["id"]]
    assert not (await cluster.client.get(f"{pod.url}/v1/streams?status=running")).json()["data"]
    async with cluster.client.stream("GET", f"{pod.url}/v1/ai-sdk/chat/c/stream") as resumed:
        assert resumed.status_code == 200
    overview = (await cluster.client.get(f"{pod.url}/console/overview")).json()
    assert (overview["live"]["running"], overview["needs_worker"]) == (1, False)
    await cluster.create(pod)
    await until(needs_worker(cluster, pod))


def needs_worker(cluster: Cluster, pod: RunningPod) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return bool((await cluster.client.get(f"{pod.url}/console/overview")).json()["needs_worker"])

    return found


async def test_a_pod_without_any_generator_serves_producers(cluster: Cluster) -> None:
    alone = {"default_generator": "", "enabled_generators": "none"}
    pod = await cluster.pod(**alone)
    created = await create(cluster, pod)
    assert (await append(cluster, pod, created["producer"]["url"], text("x"))).status_code in {200, 204}
    answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "x"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_generator")
    assert answer.json()["detail"] == "Name a generator: there is no default one."


async def test_a_held_request_for_the_end_is_a_sign_of_life_and_no_viewer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "SIGN_OF_LIFE_SECONDS", 0.05)
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster, watch_interval_seconds=0.05)
    created = await create(cluster, pod, bearer(key), cancel_when_unwatched_seconds=1000)
    stream = UUID(created["id"])
    await cluster.pool.execute("UPDATE baton.external_stream SET heard_at = 'epoch'")

    async def heard() -> float:
        found: float = await cluster.pool.fetchval("SELECT extract(epoch FROM heard_at) FROM baton.external_stream")
        return found

    async def hold(credential: str) -> httpx2.Response:
        url = f"{pod.url}/v1/streams/{stream}/end?wait=0.5"
        return await cluster.client.get(url, headers=bearer(credential))

    assert (await hold(created["token"])).status_code == 204
    assert await heard() == 0
    assert (await hold(created["producer"]["token"])).status_code == 204
    assert await heard() > 0
    # Half a second has many intervals at which pods record viewers.
    assert await cluster.pool.fetchval("SELECT watched_at FROM baton.stream") is None


async def test_the_end_of_a_generators_stream_can_be_awaited(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    held = asyncio.create_task(cluster.client.get(f"{pod.url}/v1/streams/{author.id}/end?wait=20"))
    await until(lambda: pod.metric("baton_subscribers") == 1)
    await author.write(encode_text("x"), end=True)
    assert (await held).json() == {"status": "completed", "finish_reason": "stop", "error": None}
    assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/end?wait=61")).status_code == 400


async def test_erasing_an_open_stream_deletes_all_its_rows(cluster: Cluster) -> None:
    pod = await cluster.pod()
    created = await create(cluster, pod)
    url = created["producer"]["url"]
    await append(cluster, pod, url, text("x"), producer_id="p", producer_epoch="0", producer_seq="0")
    assert (await cluster.client.delete(f"{pod.url}/v1/streams/{created['id']}")).status_code == 204
    for table in ("stream", "external_stream", "producer"):
        assert await cluster.pool.fetchval(f"SELECT count(*) FROM baton.{table}") == 0
    assert (await append(cluster, pod, url, text("late"))).status_code == 404


# Limits


async def test_a_caller_appends_only_so_fast(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.pod.caller_rates.REFUSAL_SECONDS", 0.0)
    pod = await cluster.pod(appends_per_second=0.001, appends_burst=2)
    url = (await create(cluster, pod))["producer"]["url"]
    statuses = [(await append(cluster, pod, url, text("x"))).status_code for _ in range(3)]
    assert statuses == [204, 204, 429]
    refused = await append(cluster, pod, url, text("x"))
    assert (refused.json()["code"], int(refused.headers["retry-after"]) > 100) == ("append_rate_limited", True)
    assert pod.metric("baton_rejections_total", limit="appends_per_second") == 2
    assert pod.metric("baton_appends_total", outcome="append_rate_limited") == 2
    # Reads have a rate of their own.
    assert (await cluster.client.get(f"{pod.url}{url}")).status_code == 200


async def test_a_stream_has_a_largest_number_of_producers(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.db.external_appends.MOST_PRODUCERS", 2)
    pod = await cluster.pod()
    url = (await create(cluster, pod))["producer"]["url"]
    answers = [
        await append(cluster, pod, url, text("x"), producer_id=name, producer_epoch="0", producer_seq="0")
        for name in "abc"
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert answers[-1].json()["code"] == "too_many_producers"


async def test_open_streams_count_against_the_limits_of_creates(cluster: Cluster) -> None:
    pod = await cluster.pod(max_tenant_streams=2)
    await create(cluster, pod)
    put = await cluster.client.put(f"{pod.url}/v1/stream/notes", headers={"content-type": "text/plain"})
    assert put.status_code == 201
    for answer in (
        await cluster.client.put(f"{pod.url}/v1/stream/more", headers={"content-type": "text/plain"}),
        await cluster.client.post(f"{pod.url}/v1/streams", json={"generator": "external"}),
        await cluster.client.post(f"{pod.url}/v1/streams", json={"input": "?"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
    slow = await cluster.pod(creates_per_second=0.001, creates_burst=1)
    await cluster.pool.execute("DELETE FROM baton.token_bucket")  # what the first pod took
    assert (await cluster.client.put(f"{slow.url}/v1/stream/notes", headers={"content-type": "text/plain"})).is_success
    refused = await cluster.client.post(f"{slow.url}/v1/streams", json={"generator": "external"})
    assert (refused.status_code, refused.json()["code"]) == (429, "create_rate_limited")


# What operators see


async def test_the_console_shows_who_writes_a_stream(cluster: Cluster) -> None:
    pod = await cluster.pod()
    created = await create(cluster, pod)
    await append(cluster, pod, created["producer"]["url"], text("x"))
    for name in ("b", "a"):
        headers = {"producer_id": name, "producer_epoch": "0", "producer_seq": "0"}
        await append(cluster, pod, created["producer"]["url"], text("x"), **headers)
    await external(cluster, "text", "notes/today")
    shown = (await cluster.client.get(f"{pod.url}/console/streams?status=live")).json()["data"]
    raw, events = (item["external"] for item in shown)
    assert (raw["kind"], raw["path"], raw["content_type"]) == ("text", "notes/today", "text/plain")
    assert raw["producer_ids"] == []
    assert (events["kind"], events["path"], events["producers"]) == ("events", None, 3)
    assert events["producer_ids"] == ["", "a", "b"]
    assert [item["time_to_first_token_seconds"] is None for item in shown] == [True, False]
    assert {item["status"] for item in shown} == {"open"}


async def test_appends_are_counted(cluster: Cluster) -> None:
    pod = await cluster.pod()
    url = (await create(cluster, pod))["producer"]["url"]
    claim = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    for _ in range(2):
        assert (await append(cluster, pod, url, text("x"), text("y"), **claim)).is_success
    stale = claim | {"producer_seq": "5"}
    assert (await append(cluster, pod, url, text("x"), **stale)).status_code == 409
    for outcome in ("written", "duplicate", "producer_gap"):
        assert pod.metric("baton_appends_total", outcome=outcome) == 1, outcome
    assert pod.metric("baton_appended_events_total") == 2
    assert pod.metric("baton_append_seconds_count") == pod.metric("baton_append_group_streams_count") == 1
    assert pod.metric("baton_appended_bytes_total") == 2 * len(encode_text("x"))


async def test_another_tenants_key_cannot_append(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    _, other = await make_key(cluster, tenant="other")
    pod = await guarded_pod(cluster)
    created = await create(cluster, pod, bearer(key))
    assert (await append(cluster, pod, created["producer"]["url"], text("x"), **bearer(other))).status_code == 404


async def test_a_pod_has_as_many_connections_as_the_doctor_counts(cluster: Cluster) -> None:
    pod = await cluster.pod()
    created = await create(cluster, pod)
    assert (await append(cluster, pod, created["producer"]["url"], text("x"))).is_success
    names = await cluster.pool.fetch(
        "SELECT application_name FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'baton pod %'"
    )
    assert len(names) == POD_CONNECTIONS, names
