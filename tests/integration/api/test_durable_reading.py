"""Reading by the Durable Streams protocol: streams that workers write, and those of producers."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import httpx2
import orjson
from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Author, Cluster, RunningPod, text
from tests.support.durable import OFFSET, external, sse_events
from tests.support.external import CONTENT_TYPES
from tests.support.logbook import until

from baton.db import event_log
from baton.db.external_streams import Kind
from baton.dialects.durable_offsets import offset_after
from baton.events import encode_object

CLOSED, UP_TO_DATE = "stream-closed", "stream-up-to-date"


def line_of(kind: str, content: str) -> bytes:
    if kind == "bytes":
        return encode_object({"b64": base64.b64encode(content.encode()).decode()})
    return encode_object({"type": "text", "delta": content} if kind == "events" else content)


async def read(cluster: Cluster, pod: RunningPod, path: object, **query: Any) -> httpx2.Response:
    return await cluster.client.get(f"{pod.url}/v1/stream/{path}", params=query)


async def test_each_offset_of_a_workers_stream_gets_exactly_the_rest_on_any_pod(cluster: Cluster) -> None:
    pods = [await cluster.pod(), await cluster.pod(relay_window_bytes=4096)]
    author = await cluster.author()
    await author.write_texts((1, 3, 2), padding=1000)
    await author.write(end=True)
    events = [orjson.loads(line) for line in author.lines]
    for pod in pods:
        head = await cluster.client.head(f"{pod.url}/v1/stream/{author.id}")
        end = offset_after(author.id, len(events))
        assert (head.status_code, head.headers[OFFSET], head.headers[CLOSED]) == (200, end, "true")
        assert head.headers["content-type"] == CONTENT_TYPES["events"]
        for number in range(len(events) + 1):
            offset = offset_after(author.id, number)
            page = await read(cluster, pod, author.id, offset=offset)
            assert (page.status_code, page.json()) == (200, events[number:])
            assert (page.headers[OFFSET], page.headers[CLOSED], page.headers[UP_TO_DATE]) == (end, "true", "true")
            polled = await read(cluster, pod, author.id, offset=offset, live="long-poll")
            assert (polled.json() if polled.content else []) == events[number:]
            assert polled.status_code == (200 if number < len(events) else 204)
            assert (polled.headers[OFFSET], polled.headers[CLOSED]) == (end, "true")
            followed = sse_events((await read(cluster, pod, author.id, offset=offset, live="sse")).content)
            data = [event for kind, data in followed if kind == "data" for event in orjson.loads(data)]
            assert data == events[number:]
            assert orjson.loads(followed[-1][1]) == {"streamNextOffset": end, "streamClosed": True}


async def test_a_producers_stream_has_its_own_content(cluster: Cluster) -> None:
    pod = await cluster.pod(long_poll_seconds=0.1)
    for kind in CONTENT_TYPES:
        await has_its_own_content(cluster, pod, kind, f"{kind}/b%20c")


async def has_its_own_content(cluster: Cluster, pod: RunningPod, kind: Kind, path: str) -> None:
    author = await external(cluster, kind, unquote(path))
    empty = await read(cluster, pod, path)
    assert empty.content == (b"[]" if kind in {"events", "json"} else b"")
    start = offset_after(author.id, 0)
    assert (empty.headers[OFFSET], empty.headers[UP_TO_DATE]) == (start, "true")
    assert empty.headers["content-type"] == CONTENT_TYPES[kind]
    assert CLOSED not in empty.headers
    waited = await read(cluster, pod, path, offset="now", live="long-poll")
    assert (waited.status_code, waited.content, waited.headers[OFFSET]) == (204, b"", start)
    assert {UP_TO_DATE, "stream-cursor", "x-content-type-options"} <= set(waited.headers)

    await author.write(line_of(kind, "one\n"), line_of(kind, " two"))
    whole = {"text": b"one\n two", "bytes": b"one\n two", "json": b'["one\\n"," two"]'}.get(kind)
    page = await read(cluster, pod, author.id)
    assert whole is None or page.content == whole
    assert page.headers[OFFSET] == offset_after(author.id, 2)
    later = await read(cluster, pod, path, offset=offset_after(author.id, 1), live="long-poll")
    assert later.headers["stream-cursor"].isdigit()
    assert whole is None or later.content in {b" two", b'[" two"]'}

    await author.write(end=True)
    # For readers of other content than events, the end is no message.
    end = offset_after(author.id, 3 if kind == "events" else 2)
    for query in ({"offset": page.headers[OFFSET]}, {"offset": "now"}, {}):
        closed = await read(cluster, pod, author.id, **query)
        assert (closed.headers[OFFSET], closed.headers[CLOSED], closed.headers[UP_TO_DATE]) == (end, "true", "true")
    polled = await read(cluster, pod, author.id, offset=end, live="long-poll")
    assert (polled.status_code, polled.headers[CLOSED], polled.headers[OFFSET]) == (204, "true", end)
    followed = await read(cluster, pod, author.id, offset=-1, live="sse")
    assert followed.headers["content-type"] == "text/event-stream"
    assert followed.headers.get("stream-sse-data-encoding") == ("base64" if kind == "bytes" else None)
    found = sse_events(followed.content)
    assert orjson.loads(found[-1][1]) == {"streamNextOffset": end, "streamClosed": True}
    assert found[0][1] == {
        "text": "one\n two",
        "bytes": base64.b64encode(b"one\n two").decode(),
        "json": '["one\\n"," two"]',
        "events": '[{"type":"text","delta":"one\\n"},{"type":"text","delta":" two"}]',
    }.get(kind)


async def test_a_long_poll_and_an_event_stream_get_what_comes(cluster: Cluster) -> None:
    pod = await cluster.pod(long_poll_seconds=60)
    author = await external(cluster, "json", "live")
    polls = [asyncio.create_task(read(cluster, pod, "live", offset=now, live="long-poll")) for now in ("now", -1)]
    follower = asyncio.create_task(read(cluster, pod, "live", offset="now", live="sse"))
    await until(lambda: pod.pod.subscriber_limits.subscribers == 3)
    await author.write(b'{"n":1}')
    for answer in await asyncio.gather(*polls):
        assert (answer.status_code, answer.json(), answer.headers[UP_TO_DATE]) == (200, [{"n": 1}], "true")
    await author.write(b'{"n":2}', end=True)
    found = sse_events((await follower).content)
    assert [(kind, orjson.loads(data)) for kind, data in found if kind == "data"] == [
        ("data", [{"n": 1}]),
        ("data", [{"n": 2}]),
    ]
    assert orjson.loads(found[0][1])["upToDate"] is True
    assert orjson.loads(found[-1][1]) == {"streamNextOffset": offset_after(author.id, 2), "streamClosed": True}
    await until(lambda: pod.pod.subscriber_limits.subscribers == 0)


async def test_a_client_that_leaves_a_long_poll_frees_its_place(cluster: Cluster) -> None:
    pod = await cluster.pod(long_poll_seconds=300)
    await external(cluster, "json", "left")
    poll = asyncio.create_task(read(cluster, pod, "left", offset="now", live="long-poll"))
    await until(lambda: pod.pod.subscriber_limits.subscribers == 1)
    poll.cancel()
    await until(lambda: pod.pod.subscriber_limits.subscribers == 0)


async def test_a_long_stream_is_read_in_pages(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await external(cluster, "json", "long")
    await author.write_texts([1] * (event_log.PAGE_ROWS + 3), notify=False)
    await author.write_texts([1] * 3, padding=event_log.PAGE_BYTES, notify=False)
    offset, pages, found = "-1", 0, list[Any]()
    while True:
        page = await read(cluster, pod, "long", offset=offset)
        found += page.json()
        pages += 1
        assert page.headers[OFFSET] > offset
        offset = page.headers[OFFSET]
        if UP_TO_DATE in page.headers:
            break
    assert found == [orjson.loads(line) for line in author.lines]
    assert pages > 2


REFUSED = [
    ("offset=", 400, "invalid_request"),
    ("offset=0,1", 400, "invalid_request"),
    ("offset=a&offset=b", 400, "invalid_request"),
    ("offset=-1%0a", 400, "invalid_request"),
    ("offset=0123456789ab_0000000001", 410, "offset_gone"),
    ("live=sse", 400, "invalid_request"),
    ("live=long-poll", 400, "invalid_request"),
    ("offset=-1&live=later", 400, "invalid_request"),
    ("offset={beyond}", 409, "cursor_beyond_tail"),
    ("offset={beyond}&live=sse", 409, "cursor_beyond_tail"),
    ("offset={beyond}&live=long-poll", 409, "cursor_beyond_tail"),
    ("offset=-1&foo=bar&foo=baz", 200, None),
]


async def test_a_query_that_cannot_be_met_is_refused_by_name(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await external(cluster, "json", "p")
    await author.write(b"1")
    for query, status, code in REFUSED:
        answer = await cluster.client.get(f"{pod.url}/v1/stream/p?{query.format(beyond=offset_after(author.id, 2))}")
        assert answer.status_code == status, query
        assert code is None or answer.json()["code"] == code
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_what_is_not_there_is_refused_by_name(cluster: Cluster) -> None:
    pod = await cluster.pod()
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = [
        await external(cluster, "events", "expired", expires_at=past),
        await external(cluster, "events", "idle", ttl_seconds=1, used_at=past - timedelta(seconds=1)),
    ]
    absent = ["none", "expired", "idle", UUID(int=0), *(author.id for author in expired)]
    for path in absent:
        for query in ("", "?offset=now", "?offset=-1&live=sse", "?offset=now&live=long-poll"):
            answer = await cluster.client.get(f"{pod.url}/v1/stream/{path}{query}")
            assert (answer.status_code, answer.json()["code"]) == (404, "stream_not_found"), path
        assert (await cluster.client.head(f"{pod.url}/v1/stream/{path}")).status_code == 404
    for author in expired:
        assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events")).status_code == 404
    for path in ("__ds", "__ds/subscriptions/x", "__ds/jwks.json"):
        answer = await cluster.client.get(f"{pod.url}/v1/stream/{path}")
        assert (answer.status_code, answer.json()["code"]) == (501, "subscriptions_not_supported")
    for path in ("", "%00", "x" * 1025):
        assert (await cluster.client.get(f"{pod.url}/v1/stream/{path}")).status_code == 400


async def test_an_offset_beyond_all_numbers_is_refused_as_any_beyond_the_end(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    await author.write(text(0))
    for number in (2, 2**31 - 1, 2**31, 10**10 - 1):
        for live in ({}, {"live": "long-poll"}, {"live": "sse"}):
            answer = await read(cluster, pod, author.id, offset=offset_after(author.id, number), **live)
            assert (answer.status_code, answer.json()["code"]) == (409, "cursor_beyond_tail"), answer.text


async def test_a_page_has_a_tag_that_changes_with_it(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await external(cluster, "text", "tagged")
    url, tags = f"{pod.url}/v1/stream/tagged", list[str]()
    for lines in ([b'"a"'], [b'"b"'], []):
        await author.write(*lines, end=not lines)
        page = await cluster.client.get(url, headers={"if-none-match": ", ".join(['"other"', *tags])})
        assert page.status_code == 200
        tags.append(page.headers["etag"])
        again = await cluster.client.get(url, headers={"if-none-match": f'"x", W/{tags[-1]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tags[-1])
    assert len(set(tags)) == 3
    assert "etag" not in (await read(cluster, pod, "tagged", offset="now")).headers


async def test_a_read_and_not_a_head_prolongs_the_life_of_a_stream(cluster: Cluster) -> None:
    pod = await cluster.pod()
    used_at = datetime.now(UTC) - timedelta(seconds=500)
    author = await external(cluster, "text", "kept", ttl_seconds=1000, used_at=used_at)
    until_then = datetime.now(UTC) + timedelta(hours=1)
    await external(cluster, "text", "until", expires_at=until_then)

    async def used() -> Any:
        query = "SELECT used_at FROM baton.external_stream WHERE stream_id = $1"
        return await cluster.pool.fetchval(query, author.id)

    head = await cluster.client.head(f"{pod.url}/v1/stream/kept")
    assert (head.headers["stream-ttl"], head.headers["cache-control"]) == ("1000", "no-store")
    assert await used() == used_at
    await read(cluster, pod, "kept")
    assert await used() > used_at
    head = await cluster.client.head(f"{pod.url}/v1/stream/until")
    assert datetime.fromisoformat(head.headers["stream-expires-at"]) == until_then


async def test_a_stream_is_kept_while_a_client_follows_it(cluster: Cluster) -> None:
    pod = await cluster.pod(watch_interval_seconds=0.05)
    author = await external(cluster, "text", "kept", ttl_seconds=1000)
    follower = asyncio.create_task(read(cluster, pod, "kept", offset="now", live="sse"))
    await until(lambda: pod.pod.subscriber_limits.subscribers == 1)
    await cluster.pool.execute("UPDATE baton.external_stream SET used_at = used_at - interval '500 seconds'")

    async def is_kept() -> bool:
        query = "SELECT used_at > clock_timestamp() - interval '100 seconds' FROM baton.external_stream"
        return bool(await cluster.pool.fetchval(query))

    await until(is_kept)
    await author.write(end=True)
    await follower


async def test_a_gap_in_the_log_stops_a_client(cluster: Cluster) -> None:
    pod = await cluster.pod(log_poll_seconds=0.1)
    author = await external(cluster, "json", "torn")
    await author.write(b"1")
    author.lose(b"2")
    await author.write(b"3", notify=False)
    for query in ({}, {"live": "long-poll"}, {"live": "sse"}):
        for offset in (-1, offset_after(author.id, 1)):
            answer = await read(cluster, pod, "torn", offset=offset, **query)
            assert (answer.status_code, answer.json()["code"]) == (410, "messages_missing"), query


async def test_a_path_belongs_to_a_tenant_and_a_token_to_a_stream(cluster: Cluster) -> None:
    _, key = await make_key(cluster)
    _, others = await make_key(cluster, tenant="other")
    pod = await guarded_pod(cluster)
    own, neighbor = (
        await external(cluster, "text", "p", tenant="acme"),
        await external(cluster, "text", "q", tenant="acme"),
    )
    await own.write(b'"own"')
    await (await external(cluster, "text", "p", tenant="other")).write(b'"other"')

    async def status(credential: str, path: object) -> tuple[int, str]:
        answer = await cluster.client.get(f"{pod.url}/v1/stream/{path}", headers=bearer(credential))
        return answer.status_code, answer.text if answer.status_code == 200 else ""

    assert await status(key, "p") == await status(key, own.id) == (200, "own")
    assert await status(others, "p") == (200, "other")
    assert await status(others, own.id) == await status(others, "q") == (404, "")
    token = signed(own.id)
    assert await status(token, "p") == await status(token, own.id) == (200, "own")
    assert await status(token, "q") == await status(token, neighbor.id) == (404, "")
    assert (await status(signed(own.id, view="answer"), "p"))[0] == 403
    assert (await status(signed(own.id, scopes=["cancel"]), "p"))[0] == 403


async def test_other_content_than_events_is_refused_in_other_dialects(cluster: Cluster) -> None:
    pod = await cluster.pod()
    kinds: list[Kind] = ["json", "text", "bytes"]
    for kind in kinds:
        await refused_in_other_dialects(cluster, pod, kind)


async def refused_in_other_dialects(cluster: Cluster, pod: RunningPod, kind: Kind) -> None:
    author = await external(cluster, kind, None)
    await author.write(line_of(kind, "x"))
    for end in (False, True):
        if end:
            await author.write(end=True)
        for path in (
            f"/v1/streams/{author.id}/events",
            f"/v1/streams/{author.id}/events?snapshot=true",
            f"/v1/responses/resp_{author.id.hex}",
            f"/v1/responses/resp_{author.id.hex}?stream=true",
            f"/v1/ai-sdk/chat/run_{author.id.hex}/stream",
            f"/v1/ai-sdk/chat/run_{author.id.hex}/stream?startIndex=-1",
            f"/v1/langgraph/threads/c/runs/{author.id}/stream",
            f"/v1/langgraph/threads/c/runs/{author.id}/join",
            f"/v1/ag-ui/x/runs/run_{author.id.hex}/connect",
        ):
            method = "POST" if path.endswith("connect") else "GET"
            answer = await cluster.client.request(method, pod.url + path)
            assert answer.status_code == 409, (path, answer.text)
            content = answer.json()
            assert (content.get("error") or content)["code"] == "raw_content"
            assert f"/v1/stream/{author.id}" in answer.text
        plain = await cluster.client.get(f"{pod.url}/v1/streams/{author.id}/events", headers={"accept": "text/plain"})
        assert plain.status_code == 409
        stream = (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")).json()
        assert (stream["status"], stream["text"]) == ("completed" if end else "open", "")


async def test_a_producers_events_are_followed_in_every_dialect(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author: Author = await external(cluster, "events", None)
    await author.write(text(0))
    await author.write(end=True)
    for path in (f"/v1/streams/{author.id}/events", f"/v1/ai-sdk/chat/run_{author.id.hex}/stream"):
        answer = await cluster.client.get(pod.url + path)
        assert (answer.status_code, b"token 0" in answer.content) == (200, True)
    assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}")).json()["text"] == "token 0 "
