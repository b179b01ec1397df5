"""The native API over HTTP: what it takes, what it refuses and how, and what it gives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cluster import Cluster, RunningPod, Tap, echo, text
from tests.support.follower import Follower, following, frames_after, parse
from tests.support.logbook import DEADLINE_SECONDS, until

from baton.api.aisdk_bodies import SendMessages, UIMessage
from baton.api.chat import CreateCompletion
from baton.api.models import CreateStream, TokenOptions
from baton.api.request_body import parse_json
from baton.api.validation import validated
from baton.db import stream_lists
from baton.demo.embedded import embedded_postgres
from baton.errors import InvalidRequest
from baton.events import without_surrogates
from baton.schema.migrate import migrate


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    return await cluster.pod()


@pytest.fixture
async def api(pod: RunningPod) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of one pod that checks what is true of every answer."""

    async def check(response: httpx2.Response) -> None:
        assert response.headers["x-baton-pod"] == pod.name
        if response.status_code >= 400 and response.request.url.path != "/readyz":
            await response.aread()
            assert_problem(response)

    hooks = {"response": [check]}
    async with httpx2.AsyncClient(base_url=pod.url, timeout=20, trust_env=False, event_hooks=hooks) as client:
        yield client


def assert_problem(response: httpx2.Response) -> None:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["code"].replace("_", "").isalpha()
    assert problem["title"]
    assert problem["detail"]


def refused(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


# Creating


async def test_a_stream_is_created_queued(api: httpx2.AsyncClient, pod: RunningPod) -> None:
    answer = await api.post("/v1/streams", json={"input": {"q": "?"}, "metadata": {"chat": 42, "a": True, "b": "x"}})
    assert answer.status_code == 201
    body = answer.json()
    assert body["status"] == "queued"
    assert body["generator"] == "replay"
    assert body["metadata"] == {"chat": 42, "a": True, "b": "x"}
    assert body["events_url"] == f"/v1/streams/{body['id']}/events"
    assert answer.headers["location"] == f"/v1/streams/{body['id']}"
    assert (await api.get(answer.headers["location"])).json()["id"] == body["id"]


LONG = "x" * 513
BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "two values": (b"{}{}", "not JSON"),
    "no UTF-8": (b'{"input":"\xff"}', "not JSON"),
    "endless nesting": (b'{"input":' + b"[" * 100_000, "not JSON"),
    "more nesting than can be written": (
        b'{"input":' + b"[" * 300 + b"]" * 300 + b"}",
        "input: cannot be stored as JSON: Recursion limit reached.",
    ),
    "a cut emoji, and more nesting than can be written": (
        b'{"input":["\\ud83d",' + b"[" * 300 + b"]" * 300 + b"]}",
        "input: cannot be stored as JSON: Recursion limit reached.",
    ),
    "a cut emoji, and no JSON": (b'{"input":"\\ud83d\\x"}', "not JSON: invalid escape"),
    "NaN": (b'{"input":NaN}', "not JSON"),
    "infinity": (b'{"input":[-Infinity]}', "not JSON"),
    "a number that is too large": (b'{"input":1e999}', "not JSON"),
    "a number that is too large in metadata": (b'{"input":1,"metadata":{"a":1e999}}', "not JSON"),
    "a whole number that is too large": (b'{"input":1' + b"0" * 400 + b"}", "not JSON"),
    "a list": (b"[]", "body:"),
    "no input": (b"{}", "input: Field required"),
    "an unknown field": (b'{"input":1,"model":"x"}', "model: Extra inputs are not permitted"),
    "a generator that is no name": (b'{"input":1,"generator":5}', "generator:"),
    "an empty generator": (b'{"input":1,"generator":""}', "generator:"),
    "metadata that is no object": (b'{"input":1,"metadata":[]}', "metadata:"),
    "nested metadata": (b'{"input":1,"metadata":{"a":{"b":1}}}', "metadata.a"),
    "null metadata": (b'{"input":1,"metadata":{"a":null}}', "metadata.a"),
    "NUL in metadata": (b'{"input":1,"metadata":{"a":"\\u0000"}}', "metadata.a"),
    "NUL in a metadata name": (b'{"input":1,"metadata":{"\\u0000":"a"}}', "metadata."),
    "long metadata": (b'{"input":1,"metadata":{"a":"%b"}}' % LONG.encode(), "metadata.a"),
    "too much metadata": (
        b'{"input":1,"metadata":{%b}}' % b",".join(b'"%d":1' % number for number in range(33)),
        "metadata: it may have at most 32 entries",
    ),
    "more faults than can be told": (
        b'{"input":1,%b}' % b",".join(b'"%d":1' % number for number in range(100)),
        "The request has 100 invalid values",
    ),
    "an unknown policy": (b'{"input":1,"on_worker_lost":"maybe"}', "on_worker_lost:"),
}


async def test_a_bad_body_is_refused_with_the_reason(api: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for name, (content, reason) in BAD_BODIES.items():
        with subtests.test(name):
            answer = await api.post("/v1/streams", content=content)
            assert refused(answer) == (400, "invalid_request")
            assert reason in answer.json()["detail"]


@pytest.mark.parametrize(
    ("model", "content"),
    [
        (TokenOptions, {"scopes": [1, 1]}),
        (SendMessages, {"messages": [1, 1]}),
        (UIMessage, {"role": "user", "parts": [1, 1]}),
        (CreateCompletion, {"messages": [1, 1]}),
    ],
)
def test_only_the_first_fault_in_a_list_is_reported(model: type[Any], content: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"\.0: ") as told:
        validated(model, content)
    assert ".1" not in str(told.value)


@given(st.lists(st.sampled_from(["\\", '"', "u", "d83d", "\ud83d", "\ude00", "\U0001f600", "a", "\n"])).map("".join))
def test_only_lone_surrogates_are_replaced(content: str) -> None:
    assert parse_json(json.dumps({content: [content]}).encode()) == {
        without_surrogates(content): [without_surrogates(content)]
    }


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_nan_and_infinity_are_refused_in_metadata(number: float) -> None:
    with pytest.raises(InvalidRequest, match="finite number"):
        validated(CreateStream, {"input": 1, "metadata": {"a": number}})


async def test_any_json_is_an_input(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    seen: list[Any] = []

    async def keep(request: Any, /) -> Any:
        seen.append((request.input, request.metadata))
        yield "ok"

    await cluster.worker({"replay": keep})
    for content in (
        b'{"input":null}',
        b'{"input":"\\u0000 \\ud83d \\u2028"}',
        b'{"input":[1,2.5,{"a":[]}],"metadata":{"n":1.5}}',
        b'{"input":123456789012345678901234567890}',
    ):
        stream = (await api.post("/v1/streams", content=content)).json()
        assert (await api.get(f"/v1/streams/{stream['id']}?wait=10")).json()["status"] == "completed"
    assert seen[:3] == [(None, {}), ("\0 \ufffd \u2028", {}), ([1, 2.5, {"a": []}], {"n": 1.5})]


@pytest.mark.slow
async def test_a_body_that_is_too_large_is_refused(cluster: Cluster) -> None:
    pod = await cluster.pod(max_body_bytes=2000)
    url = f"{pod.url}/v1/streams"
    assert (await cluster.client.post(url, json={"input": "x" * 1900})).status_code == 201
    answer = await cluster.client.post(url, json={"input": "x" * 2000})
    assert refused(answer) == (413, "request_too_large")
    assert_problem(answer)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000
            await asyncio.sleep(0)

    # The pod closes on a client that goes on writing, which may not have read the answer by then.
    with contextlib.suppress(httpx2.TransportError):
        answer = await asyncio.wait_for(cluster.client.post(url, content=endless()), DEADLINE_SECONDS)
        assert answer.status_code == 413
    assert (await cluster.client.get(f"{pod.url}/healthz")).status_code == 200


async def test_an_unknown_generator_is_refused_and_the_log_lists_known_ones(
    cluster: Cluster, api: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.worker({"mine": echo})
    answer = await api.post("/v1/streams", json={"input": 1, "generator": "nosuch"})
    assert refused(answer) == (422, "unknown_generator")
    assert answer.json()["detail"] == "There is no generator called 'nosuch'."
    assert "Known are: mine, replay." in caplog.text
    answer = await api.post("/v1/streams", json={"input": ["a"], "generator": "mine"})
    assert answer.status_code == 201


async def test_the_same_idempotency_key_creates_one_stream(api: httpx2.AsyncClient) -> None:
    headers = {"idempotency-key": "k" * 255}
    first = await api.post("/v1/streams", json={"input": 1}, headers=headers)
    again = await api.post("/v1/streams", json={"input": 1}, headers=headers)
    other = await api.post("/v1/streams", json={"input": 2}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert refused(other) == (422, "idempotency_conflict")
    assert len((await api.get("/v1/streams")).json()["data"]) == 1


async def test_concurrent_creations_with_one_key_create_one_stream(cluster: Cluster) -> None:
    pods = [await cluster.pod(), await cluster.pod()]
    answers = await asyncio.gather(
        *(
            cluster.client.post(
                f"{pods[number % 2].url}/v1/streams", json={"input": 1}, headers={"idempotency-key": "k"}
            )
            for number in range(20)
        )
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 19}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_key_can_be_reused_after_it_expires(cluster: Cluster) -> None:
    pod = await cluster.pod()
    url, headers = f"{pod.url}/v1/streams", {"idempotency-key": "k"}
    first = await cluster.client.post(url, json={"input": 1}, headers=headers)
    await cluster.pool.execute("UPDATE baton.idempotency_key SET expires_at = clock_timestamp() - interval '1 s'")
    second = await cluster.client.post(url, json={"input": 2}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)


async def test_a_malformed_idempotency_key_is_refused(api: httpx2.AsyncClient) -> None:
    for key in ("", "k" * 256):
        answer = await api.post("/v1/streams", json={"input": 1}, headers={"idempotency-key": key})
        assert refused(answer) == (400, "invalid_request"), key


async def test_creating_and_following_again_with_the_same_key_follows_the_same_stream(
    cluster: Cluster, api: httpx2.AsyncClient
) -> None:
    await cluster.worker({"replay": echo})
    headers = {"idempotency-key": "k", "accept": "text/event-stream"}
    frames = []
    for _ in range(2):
        async with api.stream("POST", "/v1/streams", json={"input": ["a", "b"]}, headers=headers) as response:
            assert response.status_code == 200
            frames.append(await Follower(response).rest())
    assert frames[0] == frames[1]
    assert len(frames[0]) == 3
    onward = headers | {"last-event-id": "2"}
    async with api.stream("POST", "/v1/streams", json={"input": ["a", "b"]}, headers=onward) as response:
        assert await Follower(response).rest() == frames[0][2:]
    again = "/v1/streams?last_event_id=1&lastEventId=2"
    async with api.stream("POST", again, json={"input": ["a", "b"]}, headers=headers) as response:
        assert await Follower(response).rest() == frames[0][2:]


async def test_a_new_stream_is_followed_from_its_start_despite_a_last_event_id(
    cluster: Cluster, api: httpx2.AsyncClient
) -> None:
    await cluster.worker({"replay": echo})
    headers = {"last-event-id": "2", "accept": "text/event-stream"}
    async with api.stream("POST", "/v1/streams", json={"input": ["a"]}, headers=headers) as response:
        assert len(await Follower(response).rest()) == 2


# Following


async def test_an_unknown_stream_and_a_malformed_id_are_not_found(api: httpx2.AsyncClient) -> None:
    for stream_id in (uuid4(), "x", "123", "..%2f", "é", "0" * 33):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/cancel")):
            answer = await api.request(method, f"/v1/streams/{stream_id}{path}")
            assert answer.status_code == 404, (stream_id, path)
    assert (await api.get("/v1/streams/")).status_code == 404


async def test_a_malformed_cursor_is_refused(
    cluster: Cluster, api: httpx2.AsyncClient, subtests: pytest.Subtests
) -> None:
    author = await cluster.author()
    for cursor in ("x", "-1", "+1", "1.0", " ", "0x1", "1e3", "9" * 19, "٣"):
        with subtests.test(cursor):
            answer = await api.get(f"/v1/streams/{author.id}/events", params={"last_event_id": cursor})
            assert refused(answer) == (400, "malformed_cursor")


async def test_a_cursor_beyond_the_tail_is_refused(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    path = f"/v1/streams/{author.id}/events"
    assert refused(await api.get(path, headers={"last-event-id": "1"})) == (409, "cursor_beyond_tail")
    await author.write(text(1), text(2), end=True, notify=False)
    assert (await api.get(path, headers={"last-event-id": "3"})).status_code == 204
    for cursor in ("4", "2147483648", "9" * 18):
        assert refused(await api.get(path, headers={"last-event-id": cursor})) == (409, "cursor_beyond_tail")


async def test_the_newest_of_several_cursors_counts(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    await author.write(text(1), text(2), text(3), end=True)
    path = f"/v1/streams/{author.id}/events"
    for query, headers, cursor in (
        ("", {}, 0),
        ("?last_event_id=1", {}, 1),
        ("?lastEventId=2", {}, 2),
        ("?last_event_id=1&lastEventId=2", {}, 2),
        ("?last_event_id=2&lastEventId=1", {}, 2),
        ("?last_event_id=1&lastEventId=2", {"last-event-id": "3"}, 3),
        ("?last_event_id=3", {"last-event-id": "2"}, 3),
        ("?lastEventId=3&last_event_id=", {"last-event-id": "1"}, 3),
        ("?last_event_id=2&lastEventId=10&snapshot=1", {"last-event-id": ""}, None),
        ("?last_event_id=", {}, 0),
    ):
        async with api.stream("GET", path + query, headers=headers) as response:
            if cursor is None:
                assert response.status_code == 409, query
            else:
                assert await Follower(response).rest() == author.frames[cursor:], query
    for query, headers in (
        ("?last_event_id=x", {"last-event-id": "3"}),
        ("?last_event_id=1&lastEventId=undefined", {}),
        ("?last_event_id=1", {"last-event-id": "x"}),
    ):
        assert refused(await api.get(path + query, headers=headers)) == (400, "malformed_cursor")


# Looking, waiting, listing


async def test_a_snapshot_grows_with_its_stream_and_waits_for_its_end(
    cluster: Cluster, api: httpx2.AsyncClient
) -> None:
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = (await api.post("/v1/streams", json={"input": 1})).json()["id"]
    path = f"/v1/streams/{stream_id}"
    tap.let("Hel", {"type": "reasoning", "delta": "hm"}, "lo", {"type": "usage", "total_tokens": 3})

    async def has_text() -> bool:
        return bool((await api.get(path)).json()["text"] == "Hello")

    await until(has_text)
    running = (await api.get(f"{path}?wait=0.01")).json()
    assert (running["status"], running["reasoning"], running["timings"]) == ("running", "hm", None)
    waiting = asyncio.create_task(api.get(f"{path}?wait=20"))
    await until(lambda: cluster.pods[0].metric("baton_subscribers") == 1)
    tap.end()
    ended = (await waiting).json()
    assert (ended["status"], ended["text"], ended["last_event_id"]) == ("completed", "Hello", 5)
    assert ended["usage"] == {"total_tokens": 3}
    assert ended["timings"]["tokens"] == 3
    assert cluster.pods[0].metric("baton_subscribers") == 0


async def test_a_bad_wait_is_refused(cluster: Cluster, api: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    author = await cluster.author()
    for query in ("wait=x", "wait=-1", "wait=61", "wait=nan", "wait=inf", "other=1"):
        with subtests.test(query):
            assert refused(await api.get(f"/v1/streams/{author.id}?{query}")) == (400, "invalid_request")


async def test_waiting_ends_when_the_stream_is_erased(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    waiting = asyncio.create_task(api.get(f"/v1/streams/{author.id}?wait=20"))
    await until(lambda: cluster.pods[0].metric("baton_subscribers") == 1)
    await api.delete(f"/v1/streams/{author.id}")
    assert (await waiting).status_code == 404


async def test_streams_are_listed_newest_first_in_pages(api: httpx2.AsyncClient) -> None:
    created = [(await api.post("/v1/streams", json={"input": n})).json()["id"] for n in range(7)]
    found, following = [], "/v1/streams?limit=3"
    while following:
        page = (await api.get(following)).json()
        assert len(page["data"]) <= 3
        found += [item["id"] for item in page["data"]]
        following = page["next"]
    assert sorted(found) == sorted(created)
    assert all(newer > older for newer, older in pairwise(found))


async def test_rare_streams_are_found_by_following_next(
    api: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_lists, "MAX_SCANNED", 3)
    created = [(await api.post("/v1/streams", json={"input": n, "metadata": {"a": 1}})).json()["id"] for n in range(8)]
    for number in (0, 1, 4):
        await api.post(f"/v1/streams/{created[number]}/cancel")
    for query in ("status=cancelled", "status=cancelled&metadata.a=1"):
        pages, following = [], f"/v1/streams?limit=2&{query}"
        while following:
            page = (await api.get(following)).json()
            pages.append(sorted(item["id"] for item in page["data"]))
            following = page["next"]
            assert not following or query in following
        assert [item for page in pages for item in page] == [created[4], *sorted(created[:2])]
        assert pages[0] == []


async def test_streams_are_found_by_metadata_and_status(api: httpx2.AsyncClient) -> None:
    for metadata in ({"chat": 42}, {"chat": "42", "user": "u"}, {"chat": 43}, {"chat": "a b"}, {"flag": True}):
        await api.post("/v1/streams", json={"input": 1, "metadata": metadata})

    async def found(query: str) -> list[dict[str, Any]]:
        return [item["metadata"] for item in (await api.get(f"/v1/streams?{query}")).json()["data"]]

    assert await found("metadata.chat=42") == [{"chat": "42", "user": "u"}, {"chat": 42}]
    assert await found("metadata.chat=42&metadata.user=u") == [{"chat": "42", "user": "u"}]
    assert await found("metadata.chat=a%20b") == [{"chat": "a b"}]
    # As generated clients write it, with the brackets encoded or not.
    assert await found("metadata[chat]=42&metadata%5Buser%5D=u") == [{"chat": "42", "user": "u"}]
    assert await found("metadata.chat=44") == []
    assert len(await found("status=queued")) == 5
    assert await found("status=completed") == []


async def test_a_bad_list_query_is_refused(api: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for query in (
        "limit=0",
        "limit=101",
        "limit=x",
        "before=x",
        "status=odd",
        "chat=42",
        "metadata.a=%00",
        "metadata.a=1&metadata.b=1&metadata.c=1&metadata.d=1&metadata.e=1",
    ):
        with subtests.test(query):
            assert refused(await api.get(f"/v1/streams?{query}")) == (400, "invalid_request")


async def test_any_text_can_be_searched_for(api: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for value in ("%ED%A0%80", "%FF", "1" * 400, "1e999", "NaN", "{", '"', "\\", "'"):
        with subtests.test(value):
            assert (await api.get(f"/v1/streams?metadata.a={value}")).json()["data"] == []


# Cancelling and erasing


async def test_cancelling_a_queued_stream_ends_it_at_once(api: httpx2.AsyncClient) -> None:
    stream_id = (await api.post("/v1/streams", json={"input": 1})).json()["id"]
    for _ in range(2):
        answer = await api.post(f"/v1/streams/{stream_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (await api.get(f"/v1/streams/{stream_id}")).json()["finish_reason"] == "cancelled"


async def test_cancelling_a_running_stream_stops_its_generator_and_keeps_the_text(
    cluster: Cluster, api: httpx2.AsyncClient
) -> None:
    tap = Tap()
    await cluster.worker({"replay": tap})
    stream_id = (await api.post("/v1/streams", json={"input": 1})).json()["id"]
    tap.let("partial")
    async with following(cluster.client, cluster.pods[0].url, stream_id) as follower:
        await follower.next_event()
    answers = [await api.post(f"/v1/streams/{stream_id}/cancel") for _ in range(2)]
    assert answers[0].status_code == 202
    assert answers[0].json()["cancel_requested_at"]
    ended = (await api.get(f"/v1/streams/{stream_id}?wait=10")).json()
    assert (ended["status"], ended["text"], ended["error"]) == ("cancelled", "partial", None)
    assert tap.cancelled.is_set()


async def test_cancelling_after_the_end_changes_nothing(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    await author.write(text(1), end=True)
    before = (await api.get(f"/v1/streams/{author.id}")).json()
    answer = await api.post(f"/v1/streams/{author.id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert (await api.get(f"/v1/streams/{author.id}")).json() == before
    assert len(await frames_after(cluster.client, cluster.pods[0].url, author.id)) == 2


async def test_an_erased_stream_leaves_nothing_in_the_database(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    created = await api.post("/v1/streams", json={"input": 1}, headers={"idempotency-key": "k"})
    path = f"/v1/streams/{created.json()['id']}"
    await api.post(f"{path}/cancel")
    assert (await api.delete(path)).status_code == 204
    assert refused(await api.delete(path)) == (404, "stream_not_found")
    for table in ("stream", "batch", "idempotency_key"):
        assert await cluster.pool.fetchval(f"SELECT count(*) FROM baton.{table}") == 0


async def test_a_failed_stream_has_its_reason(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    await cluster.worker({"replay": echo})
    stream_id = (await api.post("/v1/streams", json={"input": ["a", {"type": "odd"}]})).json()["id"]
    ended = (await api.get(f"/v1/streams/{stream_id}?wait=10")).json()
    assert (ended["status"], ended["text"]) == ("failed", "a")
    assert ended["error"]["code"] == "invalid_event"
    frames = await frames_after(cluster.client, cluster.pods[0].url, stream_id)
    assert parse(frames[-1])["error"] == ended["error"]


# The rest


async def test_wrong_paths_and_methods_are_problems(api: httpx2.AsyncClient) -> None:
    assert refused(await api.get("/nowhere")) == (404, "not_found")
    answer = await api.put("/v1/streams", json={})
    assert refused(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"]


async def test_head_answers_like_get_without_a_body(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    for path in ("/healthz", "/v1/streams", f"/v1/streams/{author.id}"):
        answer = await api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    answer = await asyncio.wait_for(api.head(f"/v1/streams/{author.id}/events"), DEADLINE_SECONDS)
    assert answer.content == b""
    await until(lambda: cluster.pods[0].metric("baton_subscribers") == 0)


async def test_health_readiness_and_metrics(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    assert (await api.get("/healthz")).json() == {"status": "alive"}
    ready = await api.get("/readyz")
    state = {"status": "ready", "draining": False, "full": False, "disk_full": False, "listener": "listening"}
    assert (ready.status_code, ready.json()) == (200, state)
    told = await api.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    assert "baton_subscribers 0.0" in told.text


async def test_a_draining_pod_sends_its_clients_away(cluster: Cluster, api: httpx2.AsyncClient) -> None:
    author = await cluster.author()
    await cluster.pods[0].pod.drain()
    assert (await api.get("/readyz")).status_code == 503
    async with api.stream("GET", f"/v1/streams/{author.id}/events") as response:
        assert response.status_code == 200
        follower = Follower(response)
        assert await follower.rest() == []
        assert follower.comments[0].startswith(b": baton\nretry: ")
    answer = await api.get(f"/v1/streams/{author.id}/events", headers={"accept": "application/problem+json"})
    assert refused(answer) == (503, "unavailable")


async def test_without_its_database_a_pod_sends_event_sources_away_and_others_503() -> None:
    with embedded_postgres() as dsn:
        await migrate(dsn, days_ahead=1)
        cluster = await Cluster(dsn).__aenter__()
        pod = await cluster.pod(database_timeout_seconds=2)
        author = await cluster.author()
        await cluster.pool.close()
    try:
        events = f"{pod.url}/v1/streams/{author.id}/events"
        async with following(cluster.client, pod.url, author.id) as follower:
            assert await follower.rest() == []
            assert b"retry: " in follower.comments[0]
        requests = [
            ("GET", events, {"accept": "application/problem+json"}),
            ("GET", f"{pod.url}/v1/streams/{author.id}", {}),
            ("GET", f"{pod.url}/v1/streams/{author.id}?wait=1", {}),
            ("GET", f"{pod.url}/v1/streams", {}),
            ("POST", f"{pod.url}/v1/streams/{author.id}/cancel", {}),
            ("DELETE", f"{pod.url}/v1/streams/{author.id}", {}),
        ]
        for method, url, headers in requests:
            answer = await cluster.client.request(method, url, headers=headers)
            assert refused(answer) == (503, "unavailable"), url
            assert answer.headers["retry-after"]
            assert_problem(answer)
        answer = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1})
        assert refused(answer) == (503, "unavailable")
        assert (await cluster.client.get(f"{pod.url}/healthz")).status_code == 200
    finally:
        await cluster.__aexit__(None, None, None)
