"""The Python client against pods that lose responses and leave."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.support.access import guarded_pod, make_key
from tests.support.cluster import Cluster, Tap, echo

from baton import Client, ClientError, FollowError


class Losing(httpx2.AsyncHTTPTransport):
    """Passes each request on, and loses the first response to each address."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if str(request.url) in self._seen:
            return response
        self._seen.add(str(request.url))
        await response.aread()
        raise httpx2.ReadError("the response is lost")


async def test_a_create_whose_response_is_lost_makes_one_stream(cluster: Cluster) -> None:
    pod = await cluster.pod()
    await cluster.worker({"replay": echo})
    async with httpx2.AsyncClient(transport=Losing()) as http:
        client = Client(pod.url, http=http)
        stream = await client.create(["one ", "answer"], metadata={"chat": 1})
        assert await client.text(stream) == "one answer"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1


async def test_it_follows_past_a_pod_that_leaves_and_cancels(cluster: Cluster) -> None:
    tap = Tap()
    first, second = await cluster.pod(), await cluster.pod()
    await cluster.worker({"replay": tap})
    transport = _Moving(first.url)
    seen: list[tuple[int, str]] = []
    async with httpx2.AsyncClient(transport=transport) as http, Client("http://pods.test", http=http) as client:
        stream = await client.create("?")
        tap.let("a", "b")
        async for received in client.follow(stream.id):
            seen.append((received.seq, received.event["type"]))
            if received.seq == 2:
                transport.to = second.url
                await cluster.stop_pod(first)
                tap.let("c")
            if received.seq == 3:
                await client.cancel(stream)
        assert seen == [(1, "text"), (2, "text"), (3, "text"), (4, "done")]
        assert [each.seq async for each in client.follow(stream, after=3)] == [4]
        ended = await client.wait(stream)
        assert (ended.status, ended.text) == ("cancelled", "abc")
        with pytest.raises(FollowError) as refused:
            await anext(client.follow(stream, after=9))
        assert refused.value.code == "cursor_beyond_tail"


async def test_it_sends_its_credential_and_is_refused_without(cluster: Cluster) -> None:
    _, key = await make_key(cluster, "create", "read")
    pod = await guarded_pod(cluster)
    await cluster.worker({"replay": echo})
    async with Client(pod.url, token=key) as client:
        stream = await client.create(["x"])
        async with asyncio.timeout(20):
            assert [each.event["type"] async for each in client.follow(stream)] == ["text", "done"]
        with pytest.raises(ClientError) as refused:
            await client.cancel(stream)
        assert (refused.value.status, refused.value.code) == (403, "forbidden")
    async with Client(pod.url) as client:
        with pytest.raises(ClientError) as refused:
            await client.create("?")
        assert (refused.value.status, refused.value.code) == (401, "unauthenticated")


class _Moving(httpx2.AsyncHTTPTransport):
    """A proxy: all requests go to one pod, until it names another one."""

    def __init__(self, to: str) -> None:
        super().__init__()
        self.to = to

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = httpx2.URL(self.to).join(request.url.raw_path.decode())
        extensions: dict[str, Any] = request.extensions
        assert extensions is not None
        return await super().handle_async_request(request)
