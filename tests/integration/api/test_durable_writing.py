"""Writing by the Durable Streams protocol: each of its statuses, on two pods at once, with and without a producer."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod
from tests.support.durable import OFFSET
from tests.support.external import CONTENT_TYPES
from tests.support.logbook import until

from baton.chaos.proxy import Proxy

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
EVENTS = {"content-type": CONTENT_TYPES["events"]}
CLOSE = {"stream-closed": "true"}
WAITS = """
SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'baton pod append' AND wait_event_type = 'Lock'
"""


def by(producer: str, epoch: int, seq: int) -> dict[str, str]:
    return {"producer-id": producer, "producer-epoch": str(epoch), "producer-seq": str(seq)}


class Writer:
    """Sends each request to a random pod."""

    def __init__(self, cluster: Cluster, *pods: RunningPod) -> None:
        self._cluster = cluster
        self._pods = pods

    async def __call__(self, method: str, path: str, body: str | bytes = b"", **headers: Any) -> httpx2.Response:
        return await self.send(method, path, body, headers)

    async def send(self, method: str, path: str, body: str | bytes, headers: Any) -> httpx2.Response:
        url = f"{random.choice(self._pods).url}/v1/stream/{path}"
        return await self._cluster.client.request(method, url, content=body, headers=headers)

    async def put(self, path: str, headers: dict[str, str], body: str | bytes = b"") -> httpx2.Response:
        return await self.send("PUT", path, body, headers)

    async def post(self, path: str, headers: dict[str, str], body: str | bytes = b"") -> httpx2.Response:
        return await self.send("POST", path, body, headers)

    async def read(self, path: str) -> bytes:
        found = await self.send("GET", path, b"", {})
        assert found.status_code == 200, found.text
        return found.content


@pytest.fixture
async def writer(cluster: Cluster) -> Writer:
    return Writer(cluster, await cluster.pod(), await cluster.pod())


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_stream_is_created_once_with_what_it_begins_with(writer: Writer) -> None:
    made = await writer.put("a/b c?", TEXT | {"stream-ttl": "3600"}, "hello")
    assert made.status_code == 201, made.text
    assert made.headers["content-type"] == "text/plain"
    assert made.headers["location"].startswith("http://127.0.0.1:")
    assert made.headers["location"].endswith("/v1/stream/a/b%20c")
    assert made.headers[OFFSET].endswith("_0000000001")
    again = await writer.put("a/b%20c", {"content-type": "TEXT/plain; charset=UTF-8", "stream-ttl": "3600"}, "other")
    assert (again.status_code, again.headers[OFFSET]) == (200, made.headers[OFFSET])
    assert await writer.read("a/b%20c") == b"hello"
    for headers in (JSON | {"stream-ttl": "3600"}, TEXT, TEXT | {"stream-ttl": "3600"} | CLOSE):
        refused(await writer.put("a/b%20c", headers), 409, "path_taken")
    described = await writer("HEAD", "a/b%20c")
    assert made.headers["x-baton-stream-id"] == again.headers["x-baton-stream-id"]
    assert described.headers["x-baton-stream-id"] == made.headers["x-baton-stream-id"]
    assert (await writer.put("none", {})).headers["content-type"] == "application/octet-stream"
    refused(await writer.put("018f0000-0000-7000-8000-000000000000", TEXT), 409, "path_taken")
    refused(await writer.put("x" * 1025, TEXT), 400, "invalid_request")


async def test_each_kind_is_stored_as_it_was_sent(writer: Writer) -> None:
    await writer.put("text", TEXT, "ä\u2028")
    half, rest = "é".encode()[:1], "é".encode()[1:]
    for part in (b"\r\n\0", half, rest):
        assert (await writer.post("text", TEXT, part)).status_code == 204
    assert await writer.read("text") == "ä\u2028\r\n\0é".encode()
    await writer.put("bytes", {"content-type": "image/png"}, bytes(range(256)))
    assert await writer.read("bytes") == bytes(range(256))
    await writer.put("json", JSON, "[1.10,\n[2]]")
    assert (await writer.post("json", JSON, '{"b":12345678901234567890123,"a":"\u2028"}')).status_code == 204
    assert await writer.read("json") == b'[1.10,[2],{"b":12345678901234567890123,"a":"\\u2028"}]'
    assert (await writer.put("empty", JSON, "[]")).status_code == 201
    assert await writer.read("empty") == b"[]"


async def test_what_cannot_be_appended_is_refused_with_the_protocols_status(writer: Writer) -> None:
    await writer.put("s", JSON)
    for headers, body in (
        (JSON, b""),
        ({}, "1"),
        (JSON, "[]"),
        (JSON, "{"),
        (JSON | {"producer-id": "p"}, "1"),
        (JSON | by("p", 0, 0) | {"producer-seq": "1e3"}, "1"),
        (JSON | {"stream-seq": ""}, "1"),
        ({"content-type": "json"}, "1"),
    ):
        refused(await writer.post("s", headers, body), 400, "invalid_request")
    refused(await writer.post("s", TEXT, "1"), 409, "content_type_mismatch")
    refused(await writer.post("none", JSON, "1"), 404, "stream_not_found")
    assert (await writer.post("s", JSON | {"stream-seq": "09"}, "1")).status_code == 204
    for seq in ("09", "0", "010"):
        refused(await writer.post("s", JSON | {"stream-seq": seq}, "2"), 409, "stream_seq_conflict")
    assert await writer.read("s") == b"[1]"
    refused(await writer.put("f", TEXT | {"stream-forked-from": "/v1/stream/s"}), 501, "forks_not_supported")
    for method in ("PUT", "POST", "DELETE", "GET"):
        answer = await writer.send(method, "__ds/subscriptions/x", b"", {})
        refused(answer, 501, "subscriptions_not_supported")


async def test_a_message_or_a_stream_that_is_too_large_is_refused(cluster: Cluster) -> None:
    writer = Writer(cluster, await cluster.pod(max_event_bytes=1024, max_external_bytes=2000, max_body_bytes=4096))
    await writer.put("s", TEXT)
    refused(await writer.post("s", TEXT, b"x" * 1100), 413, "message_too_large")
    refused(await writer.post("s", TEXT, b"x" * 5000), 413, "request_too_large")
    for _ in range(2):
        assert (await writer.post("s", TEXT, b"x" * 900)).status_code == 204
    refused(await writer.post("s", TEXT, b"x" * 900), 413, "stream_full")
    assert (await writer.post("s", CLOSE)).status_code == 204
    refused(await writer.put("t", JSON, f'["{"x" * 900}","{"x" * 900}","{"x" * 900}"]'), 413, "stream_full")


async def test_a_producer_is_fenced_and_may_repeat_each_append_on_any_pod(writer: Writer) -> None:
    await writer.put("s", TEXT)
    for seq in range(6):
        for attempt in range(3):
            answer = await writer.post("s", TEXT | by("p", 1, seq), f"{seq} ")
            assert answer.status_code == (204 if attempt else 200)
            assert (answer.headers["producer-epoch"], answer.headers["producer-seq"]) == ("1", str(seq))
    old = await writer.post("s", TEXT | by("p", 1, 2), "again")
    assert (old.status_code, old.headers["producer-seq"]) == (204, "5")
    gap = await writer.post("s", TEXT | by("p", 1, 8), "8")
    refused(gap, 409, "producer_gap")
    assert (gap.headers["producer-expected-seq"], gap.headers["producer-received-seq"]) == ("6", "8")
    refused(await writer.post("s", TEXT | by("p", 2, 1), "x"), 400, "invalid_request")
    assert (await writer.post("s", TEXT | by("p", 2, 0), "new")).status_code == 200
    zombie = await writer.post("s", TEXT | by("p", 1, 6), "zombie")
    refused(zombie, 403, "producer_fenced")
    assert zombie.headers["producer-epoch"] == "2"
    assert await writer.read("s") == b"0 1 2 3 4 5 new"


async def test_a_closed_stream_takes_nothing_and_its_end_may_be_repeated(writer: Writer) -> None:
    await writer.put("s", TEXT, "a")
    closed = await writer.post("s", TEXT | CLOSE | by("p", 0, 0), "z")
    assert (closed.status_code, closed.headers["stream-closed"]) == (200, "true")
    for headers, body in ((TEXT | CLOSE | by("p", 0, 0), "z"), (CLOSE, "")):
        again = await writer.post("s", headers, body)
        assert (again.status_code, again.headers["stream-closed"]) == (204, "true")
        assert again.headers[OFFSET] == closed.headers[OFFSET]
    for headers, body in ((TEXT, "x"), (TEXT | CLOSE, "x"), (CLOSE | by("q", 0, 0), ""), (TEXT | by("p", 0, 1), "x")):
        answer = await writer.post("s", headers, body)
        refused(answer, 409, "stream_closed")
        assert (answer.headers["stream-closed"], answer.headers[OFFSET]) == ("true", closed.headers[OFFSET])
        assert answer.json()["reason"] == "stop"
    assert await writer.read("s") == b"az"
    whole = await writer.put("t", JSON | CLOSE, "[1,2]")
    assert (whole.status_code, whole.headers["stream-closed"]) == (201, "true")
    assert (await writer.put("t", JSON | CLOSE)).status_code == 200
    refused(await writer.put("t", JSON), 409, "path_taken")


async def test_a_deleted_path_is_free_for_a_fresh_stream_on_every_pod(cluster: Cluster) -> None:
    one, other = Writer(cluster, await cluster.pod()), Writer(cluster, await cluster.pod())
    first = await one.put("s", TEXT, "old")
    for writer in (one, other):
        await writer.post("s", TEXT | by("p", 0, 0), "old")
    assert (await one.post("s", CLOSE)).status_code == 204
    refused(await other.post("s", TEXT, "x"), 409, "stream_closed")
    assert (await one("DELETE", "s")).status_code == 204
    refused(await other("DELETE", "s"), 404, "stream_not_found")
    refused(await other.post("s", TEXT, "x"), 404, "stream_not_found")
    assert (await one.put("s", JSON)).status_code == 201
    # What the other pod knows of the deleted stream does not count.
    refused(await other.post("s", TEXT, "x"), 409, "content_type_mismatch")
    assert (await other.post("s", JSON | by("p", 0, 0), "1")).status_code == 200
    assert await one.read("s") == b"[1]"
    assert (await other.post("s", CLOSE)).headers[OFFSET] != first.headers[OFFSET]
    assert "stream-closed" in (await one("HEAD", "s")).headers
    # It still remembers the stream before, which was JSON, and closed.
    await one("DELETE", "s")
    await one.put("s", TEXT)
    assert (await other.post("s", TEXT, "a")).status_code == 204
    await other.post("s", CLOSE)
    await one("DELETE", "s")
    await one.put("s", TEXT, "b")
    assert "stream-closed" in (await other.post("s", CLOSE)).headers
    refused(await one.post("s", TEXT, "c"), 409, "stream_closed")
    assert await one.read("s") == b"b"


async def test_a_producer_of_events_ends_a_stream_that_every_dialect_shows(cluster: Cluster, writer: Writer) -> None:
    made = await writer.put("s", EVENTS, '{"type":"text","delta":"Hi"}')
    assert made.status_code == 201
    refused(await writer.post("s", EVENTS, '{"type":"done"}'), 400, "invalid_request")
    usage = '{"type":"usage","input_tokens":1,"output_tokens":2}'
    ended = await writer.post("s", JSON | by("p", 0, 0), f'[{usage},{{"type":"finish","finish_reason":"length"}}]')
    assert (ended.status_code, ended.headers["stream-closed"]) == (200, "true")
    listed = (await cluster.client.get(f"{cluster.pods[0].url}/v1/streams")).json()["data"]
    found = (await cluster.client.get(f"{cluster.pods[1].url}/v1/streams/{listed[0]['id']}")).json()
    assert (found["status"], found["finish_reason"], found["text"]) == ("completed", "length", "Hi")
    assert found["usage"] == {"input_tokens": 1, "output_tokens": 2}
    await writer.put("t", EVENTS)
    failed = await writer.post("t", EVENTS, '{"type":"error","code":"rate_limited","message":"Later."}')
    assert (failed.status_code, failed.headers["stream-closed"]) == (204, "true")
    refused(await writer.post("t", EVENTS, '{"type":"text","delta":"x"}'), 409, "stream_closed")


async def test_the_answer_to_a_cancelled_producer_says_so(cluster: Cluster, writer: Writer) -> None:
    await writer.put("s", EVENTS, '{"type":"text","delta":"Hi"}')
    await writer.post("s", EVENTS, '{"type":"text","delta":"!"}')
    [stream] = (await cluster.client.get(f"{cluster.pods[0].url}/v1/streams")).json()["data"]
    await cluster.client.post(f"{cluster.pods[0].url}/v1/streams/{stream['id']}/cancel")
    for pod in cluster.pods:
        answer = await Writer(cluster, pod).post("s", EVENTS, '{"type":"text","delta":"x"}')
        refused(answer, 409, "cancelled")
        assert (answer.headers["stream-closed"], answer.json()["reason"]) == ("true", "cancelled")


@pytest.mark.parametrize("named", [True, False])
async def test_an_append_whose_commit_is_cut_off_is_stored_once(cluster: Cluster, named: bool) -> None:
    """The connection to Postgres is lost at the commit. A producer is told that it is stored; others, 503."""
    async with Proxy(cluster.dsn) as proxy:
        writer = Writer(cluster, await cluster.pod(database_url=proxy.dsn, listen_database_url=cluster.dsn))
        await writer.put("s", TEXT)
        headers = [TEXT | (by("p", 0, seq) if named else {}) for seq in range(3)]
        await writer.post("s", headers[0], "0")
        async with cluster.pool.acquire() as connection:
            async with connection.transaction():
                await connection.execute("SELECT FROM baton.external_stream FOR UPDATE")
                sent = asyncio.create_task(writer.post("s", headers[1], "1"))
                await until(lambda: connection.fetchval(WAITS))
                proxy.hold_replies()
            await until(lambda: connection.fetchval("SELECT count(*) = 2 FROM baton.batch"))
        proxy.cut()
        proxy.resume()
        answer = await sent
        assert answer.status_code == (204 if named else 503), answer.text
        assert (await writer.post("s", headers[2], "2")).status_code == (200 if named else 204)
        assert await writer.read("s") == b"012"


async def test_only_the_own_stream_is_open_to_a_token(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    _, foreign = await make_key(cluster, tenant="other")
    writer = Writer(cluster, await guarded_pod(cluster))
    for path in ("mine", "another"):
        assert (await writer.put(path, TEXT | bearer(key))).status_code == 201
    refused(await writer.post("mine", TEXT | bearer(foreign), "x"), 404, "stream_not_found")
    rows = await cluster.pool.fetch("SELECT path, stream_id FROM baton.external_stream")
    ids: dict[str, UUID] = {row["path"]: row["stream_id"] for row in rows}
    token = bearer(signed(ids["mine"], scopes=["produce"]))
    for _ in range(2):
        assert (await writer.post("mine", TEXT | token, "x")).status_code == 204
        assert (await writer.post(str(ids["mine"]), TEXT | token, "x")).status_code == 204
        refused(await writer.post("another", TEXT | token, "x"), 404, "stream_not_found")
        assert (await writer.post("another", TEXT | bearer(key), "x")).status_code == 204
    for answer in (await writer.put("new", TEXT | token), await writer.send("DELETE", "mine", b"", token)):
        refused(answer, 403, "forbidden")
    refused(await writer.post("mine", TEXT | bearer(signed(ids["mine"])), "x"), 403, "forbidden")


@pytest.mark.parametrize("lifetime", [{"stream-ttl": "0"}, {"stream-expires-at": "2020-01-01T00:00:00Z"}])
async def test_a_stream_may_have_no_time_at_all(writer: Writer, lifetime: dict[str, str]) -> None:
    for _ in range(2):
        made = await writer.put("gone", TEXT | lifetime, "hello")
        assert made.status_code == 201, made.text
        refused(await writer.send("GET", "gone", b"", {}), 404, "stream_not_found")


async def test_a_stream_that_is_created_whole_has_its_usage_and_tokens(cluster: Cluster, writer: Writer) -> None:
    body = b'[{"type":"text","delta":"a"},{"type":"usage","input_tokens":5},{"type":"finish","finish_reason":"length"}]'
    assert (await writer.put("whole", EVENTS, body)).status_code == 201
    done = orjson.loads(await writer.read("whole"))[-1]
    stream_id = await cluster.pool.fetchval("SELECT stream_id FROM baton.external_stream")
    row = (await cluster.client.get(f"{cluster.pods[0].url}/v1/streams/{stream_id}")).json()
    for found in (done, row):
        assert (found["finish_reason"], found["usage"]) == ("length", {"input_tokens": 5})
        assert found["timings"]["tokens"] == 1


async def test_a_token_does_not_learn_what_other_paths_there_are(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    write = Writer(cluster, pod)
    for path in ("own", "other"):
        assert (await write.put(path, TEXT | bearer(key))).status_code == 201
    own = await cluster.pool.fetchval("SELECT stream_id FROM baton.external_stream WHERE path = 'own'")
    token = bearer(signed(own, scopes=("read", "produce")))
    for method, body in (("GET", ""), ("POST", "x")):
        there, none = [await write.send(method, path, body, TEXT | token) for path in ("other", "never")]
        assert there.json()["detail"].replace("other", "never") == none.json()["detail"]
        refused(there, 404, "stream_not_found")


async def test_a_compressed_body_is_refused_and_not_stored(writer: Writer) -> None:
    coded = TEXT | {"content-encoding": "gzip"}
    refused(await writer.put("plain", coded, "x"), 400, "invalid_request")
    assert (await writer.put("plain", TEXT | {"content-encoding": "identity"}, "a")).status_code == 201
    refused(await writer.post("plain", coded, "x"), 400, "invalid_request")
    assert await writer.read("plain") == b"a"


async def test_a_path_that_is_not_utf_8_names_no_stream(writer: Writer) -> None:
    for path in ("%ff", "a/%ed%a0%80"):
        refused(await writer.put(path, TEXT), 400, "invalid_request")
    assert (await writer.put("%EF%BF%BD", TEXT, "a")).status_code == 201
    assert await writer.read("%EF%BF%BD") == b"a"
