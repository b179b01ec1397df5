"""What comes from outside and is not what it should be: refused in words, and never the pod's trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest
from tests.support.cluster import Cluster, RunningPod, echo
from tests.support.logbook import DEADLINE_SECONDS

NUL = "%00"
LONG = "9" * 5000
OK, BAD, LOST, BEYOND = 200, (400, "invalid_request"), (404, "stream_not_found"), (409, "cursor_beyond_tail")
CURSOR = (400, "malformed_cursor")


@pytest.fixture
async def pod(cluster: Cluster) -> RunningPod:
    await cluster.worker({"replay": echo})
    return await cluster.pod()


@pytest.fixture
async def stream_id(cluster: Cluster, pod: RunningPod) -> str:
    stream_id = await cluster.create(pod, input=["a"])
    await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=10")
    return stream_id


@pytest.fixture
async def api(pod: RunningPod) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=pod.url, timeout=20, trust_env=False) as client:
        yield client


def told(answer: httpx2.Response) -> Any:
    if answer.status_code < 400:
        return answer.status_code
    content = answer.json()
    return answer.status_code, (content.get("error") or content)["code"]


PATHS: list[Any] = [
    ("/v1/streams?limit=5&limit=6", BAD),
    ("/v1/streams?limit=5&limit=5", OK),
    ("/v1/streams?limit=0", BAD),
    (f"/v1/streams?limit={LONG}", BAD),
    ("/v1/streams?limit=5&unknown=1", BAD),
    ("/v1/streams?before=x", BAD),
    (f"/v1/streams?before={NUL}", BAD),
    ("/v1/streams?status=lost", BAD),
    (f"/v1/streams?metadata.a={NUL}", BAD),
    (f"/v1/streams?metadata.{NUL}=a", BAD),
    ("/v1/streams?metadata.a=1&metadata.a=2", BAD),
    ("/v1/streams?metadata.a=1&metadata.b=1&metadata.c=1&metadata.d=1&metadata.e=1", BAD),
    ("/v1/streams?metadata.a=1&metadata[a]=2", BAD),
    (f"/v1/streams?metadata[{NUL}]=a", BAD),
    ("/v1/streams?metadata[a=1", BAD),
    ("/v1/streams?metadata=1", BAD),
    ("/v1/streams?metadata[]=", OK),
    ("/v1/streams?metadata[a][b]=%0A", OK),
    (f"/v1/streams?metadata.a={LONG}", OK),
    ("/v1/streams?metadata.a=1e999", OK),
    ("/v1/streams?metadata.=", OK),
    ("/v1/streams?metadata.a=%ED%A0%80", OK),
    ("/v1/streams?metadata.a=%FF%FE", OK),
    ("/v1/streams/{id}?wait=nan", BAD),
    ("/v1/streams/{id}?wait=-1", BAD),
    ("/v1/streams/{id}?wait=1&wait=2", BAD),
    ("/v1/streams/{id}?wait=1e400", BAD),
    ("/v1/streams/{{id}}", LOST),
    ("/v1/streams/urn:uuid:{id}", LOST),
    (f"/v1/streams/{NUL}", LOST),
    (f"/v1/streams/{LONG}", LOST),
    ("/v1/streams/%D9%A1" + "1" * 31, LOST),
    ("/v1/streams/1_" + "1" * 31, LOST),
    ("/v1/streams/%0d%0aSet-Cookie:%20a=b", LOST),
    ("/v1/streams/{id}/events?last_event_id=1&last_event_id=2", BAD),
    ("/v1/streams/{id}/events?last_event_id=2147483648&last_event_id=2147483648&tag=a&tag=b", BEYOND),
    ("/v1/streams/{id}/events?last_event_id=1&lastEventId=2147483648", BEYOND),
    ("/v1/streams/{id}/events?view=full&view=answer", BAD),
    ("/v1/streams/{id}/events?last_event_id=-1", CURSOR),
    ("/v1/streams/{id}/events?last_event_id=%D9%A1", CURSOR),
    ("/v1/streams/{id}/events?last_event_id=1%00", CURSOR),
    (f"/v1/streams/{{id}}/events?last_event_id={LONG}", CURSOR),
    ("/v1/streams/{id}/events?last_event_id=999999999999999999", BEYOND),
    ("/v1/streams/{id}/events?lastEventId=2147483648", BEYOND),
    ("/v1/streams/{id}/events?view=all", BAD),
    ("/v1/streams/{id}/events?batch_window_ms=10001", BAD),
    ("/v1/streams/{id}/events?snapshot=perhaps", BAD),
    ("/v1/responses/resp_{id}", OK),
    ("/v1/responses/resp_{id}?include=message.output_text.logprobs&include=reasoning.encrypted_content", OK),
    ("/v1/responses/resp_{id}?include%5B%5D=a&include%5B%5D=b&stream=true&stream=true", OK),
    ("/v1/responses/{id}?stream=true&starting_after=1&starting_after=2", BAD),
    ("/v1/responses/{id}/input_items?include=a&include=b", OK),
    ("/v1/responses/{id}/input_items?limit=1&limit=2", BAD),
    ("/v1/responses/resp_resp_{id}", LOST),
    ("/v1/responses/{id}?stream=true&stream=false", BAD),
    ("/v1/responses/{id}?stream=true&starting_after=9007199254740993", BAD),
    ("/v1/responses/{id}?stream=true&starting_after=9007199254740992", BEYOND),
    (f"/v1/responses/{{id}}/input_items?after={NUL}", BAD),
    (f"/v1/models/{NUL}", (404, "model_not_found")),
    ("/v1/models/%0a%0d%1b%5b31m", (404, "model_not_found")),
    (f"/v1/ai-sdk/chat/{NUL}/stream", BAD),
    ("/v1/ai-sdk/chat/{id}/stream", 204),
    ("/v1/ai-sdk/chat/run_" + "0" * 32 + "/stream", LOST),
    ("/v1/ai-sdk/chat/run_" + "z" * 32 + "/stream", 204),
    ("/v1/ai-sdk/chat/c/stream?startIndex=1&startIndex=2", BAD),
    ("/v1/ai-sdk/chat/c/stream?startIndex=1&startIndex=1&tag=a&tag=b", OK),
    ("/v1/ai-sdk/chat/{run}/stream?startIndex=%D9%A1", BAD),
    ("/v1/ai-sdk/chat/{run}/stream?startIndex=1234567890", BAD),
    ("/v1/ai-sdk/chat/{run}/stream?startIndex=999999999", BEYOND),
    ("/v1/ai-sdk/chat/{run}/stream?startIndex=-999999999", OK),
]


async def test_paths_and_queries(api: httpx2.AsyncClient, stream_id: str) -> None:
    named = {"{{id}}": quote("{" + stream_id + "}"), "{id}": stream_id, "{run}": f"run_{stream_id.replace('-', '')}"}
    found = []
    for path, _ in PATHS:
        filled = path
        for name, value in named.items():
            filled = filled.replace(name, value)
        found.append((path, told(await api.get(filled))))
    assert found == PATHS


HEADERS: list[Any] = [
    ([("last-event-id", "1"), ("last-event-id", "1")], BAD),
    ([("last-event-id", "1.5")], CURSOR),
    ([("last-event-id", b"\xd9\xa1")], CURSOR),
    ([("last-event-id", "0" * 4000)], CURSOR),
    ([("last-event-id", "")], OK),
    ([("accept", "x"), ("accept", "text/event-stream")], OK),
    ([("x-request-id", "a"), ("x-request-id", "b")], OK),
]


async def test_headers_of_a_follower(api: httpx2.AsyncClient, stream_id: str) -> None:
    url = f"/v1/streams/{stream_id}/events"
    assert [(headers, told(await api.get(url, headers=headers))) for headers, _ in HEADERS] == HEADERS


KEYS: list[Any] = [
    (b"mine", 201),
    (b"~ !\"#$%&'()*+,-./", 201),
    (b"", BAD),
    (b"k" * 255, 201),
    (b"k" * 256, BAD),
    (b"\xc3\xa4", BAD),
    (b"a\tb", BAD),
    (b"\xff", BAD),
]


async def test_idempotency_keys(api: httpx2.AsyncClient) -> None:
    found = []
    for key, _ in KEYS:
        given = [(b"idempotency-key", key)]
        found.append((key, told(await api.post("/v1/streams", json={"input": ["a"]}, headers=given))))
    assert found == KEYS
    answer = await api.post("/v1/responses", json={"model": "replay", "input": "x"}, headers=[("idempotency-key", "")])
    assert told(answer) == BAD


async def test_two_idempotency_keys_are_refused(api: httpx2.AsyncClient) -> None:
    given = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert told(await api.post("/v1/streams", json={"input": 1}, headers=given)) == BAD


DEEP = b"[" * 5000 + b"]" * 5000


BODIES: list[Any] = [
    (b"", BAD),
    (b"\xff", BAD),
    (b"null", BAD),
    (b'{"input": NaN}', BAD),
    (b'{"input": Infinity}', BAD),
    (b'{"input": 1e999}', BAD),
    (b'{"input": "\\ud800"}', 201),
    (b'{"input": "\\ud800", "metadata": {"a": "\\udfff"}}', 201),
    (b'{"input": "\\u0000"}', 201),
    (b'{"input": 1, "metadata": {"a": "\\u0000"}}', BAD),
    (b'{"input": 1, "metadata": {"\\u0000": "a"}}', BAD),
    (b'{"input": 1, "metadata": {"a": 1e308}}', 201),
    (b'{"input": 1, "metadata": {"a": ' + b"9" * 400 + b"}}", BAD),
    (b'{"input": ' + b"9" * 5000 + b"}", BAD),
    (b'{"input": ' + DEEP + b"}", BAD),
    (b'{"input": 18446744073709551615}', 201),
    (b'{"input": 18446744073709551616}', 201),
    (b'{"input": 1, "generator": "\\u0000"}', BAD),
    (b'{"input": 1, "generator": "\\u001b[31m\\n"}', (422, "unknown_generator")),
    (b'{"input": 1, "generator": ""}', BAD),
    (b'{"input": 1, "max_duration_seconds": 0}', BAD),
    (b'{"input": 1, "max_duration_seconds": 1e-320}', 201),
    (b'{"input": 1, "max_duration_seconds": true}', BAD),
    (b'{"input": 1, "unknown": 1}', BAD),
    ('{"input": 1}'.encode("utf-16"), BAD),
    (b'\xef\xbb\xbf{"input": 1}', BAD),
]


async def test_bodies(api: httpx2.AsyncClient) -> None:
    assert [(body, told(await api.post("/v1/streams", content=body))) for body, _ in BODIES] == BODIES


REFUSED: list[Any] = [
    ("/v1/responses", {"input": "x", "model": "\0"}),
    ("/v1/responses", {"input": "x", "model": "m" * 101}),
    ("/v1/responses", {"input": "x", "metadata": {"a": "\0"}}),
    ("/v1/responses", {"input": "x", "metadata": {"a": "x" * 513}}),
    ("/v1/responses", {"input": [1]}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [1]}),
    ("/v1/chat/completions", {"messages": [{}], "n": 2}),
    ("/v1/ai-sdk/chat", {"messages": [{"role": "user", "parts": [{"type": "text", "text": 1}]}]}),
    ("/v1/ai-sdk/chat", {"messages": [{"role": "nobody", "parts": []}]}),
    ("/v1/ai-sdk/chat", {"id": "\0", "messages": []}),
    ("/v1/ai-sdk/chat", {"id": "x" * 513, "messages": []}),
]


async def test_bodies_of_other_dialects(api: httpx2.AsyncClient) -> None:
    for path, content in REFUSED:
        assert told(await api.post(path, content=orjson.dumps(content))) == BAD, content


HOSTS = ("", "evil.example.com", "EVIL:", "e_v~i!l:99999999", "%65vil", "[::1]", "[fe80::1%25eth0]:80", " evil ")


async def test_the_host_header_never_becomes_a_url(cluster: Cluster, pod: RunningPod, stream_id: str) -> None:
    """Nothing that is answered depends on it."""
    del stream_id
    await cluster.create(pod, input=["a"])
    for host in HOSTS:
        listed = await raw(pod, f"GET /v1/streams?limit=1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert listed.startswith(b"HTTP/1.1 200"), host
        content = orjson.loads(listed.partition(b"\r\n\r\n")[2])
        assert content["next"].startswith("/v1/streams?limit=1&before=")
        assert content["data"][0]["events_url"].startswith("/v1/streams/")
        lost = await raw(pod, f"GET /v1/streams/x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert lost.startswith(b"HTTP/1.1 404")


async def raw(pod: RunningPod, request: str) -> bytes:
    where, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(where, int(port))
    writer.write(request.encode("latin-1"))
    answer = await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)
    writer.close()
    return answer
