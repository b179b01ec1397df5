"""Addresses in responses behind a proxy that takes a part of the path off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.cluster import Cluster, echo, serving
from tests.support.follower import frames_after, texts
from tests.support.nginx import PREFIX, needs_nginx, nginx

from baton.app import create_app


@contextlib.asynccontextmanager
async def pod_behind(
    cluster: Cluster, folder: Path, *, mount: str = "", **given: Any
) -> AsyncIterator[tuple[str, str]]:
    """Serve a pod behind nginx; yield nginx' address and the path of Baton there."""
    app = create_app(cluster.settings(**given))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    outer = Starlette(routes=[Mount(mount, app)], lifespan=lifespan) if mount else app
    async with serving(outer, baton_app=app) as url, nginx(folder, url) as address:
        yield address, PREFIX + mount


@needs_nginx
@pytest.mark.parametrize(
    "given",
    [
        {"trusted_proxies": "127.0.0.1"},
        {"path_prefix": PREFIX},
        {"trusted_proxies": "127.0.0.1", "mount": "/inner"},
        {"path_prefix": PREFIX, "mount": "/inner"},
    ],
    ids=" ".join,
)
async def test_every_url_in_a_response_works_through_the_proxy(
    cluster: Cluster, tmp_path: Path, given: dict[str, str]
) -> None:
    client = cluster.client
    await cluster.worker({"replay": echo})
    async with pod_behind(cluster, tmp_path, **given) as (address, prefix):
        url = address + prefix
        answers = [await client.post(f"{url}/v1/streams", json={"input": ["a", "b"]}) for _ in range(2)]
        for created in answers:
            stream = created.json()
            assert stream["events_url"] == f"{prefix}/v1/streams/{stream['id']}/events"
            assert created.headers["location"] == f"{prefix}/v1/streams/{stream['id']}"
            assert (await client.get(address + created.headers["location"])).json()["id"] == stream["id"]
            assert texts(await frames_after(client, url, stream["id"])) == ["a", "b"]
            assert (await client.get(address + stream["events_url"], headers={"last-event-id": "3"})).status_code == 204
        first = (await client.get(f"{url}/v1/streams?limit=1")).json()
        assert first["next"].startswith(f"{prefix}/v1/streams?")
        second = (await client.get(address + first["next"])).json()
        assert [page["data"][0]["id"] for page in (second, first)] == [answer.json()["id"] for answer in answers]
        assert second["data"][0]["events_url"].startswith(f"{prefix}/v1/streams/")
        for path in ("v1/streams/x", "v1/responses/x", "nowhere"):
            answer = await client.get(f"{url}/{path}")
            if answer.headers["content-type"] == "application/problem+json":
                page, _, code = answer.json()["type"].partition("#")
                assert (page, code) == (f"{prefix}/errors", answer.json()["code"])
                assert (await client.get(address + page)).status_code == 200
        assert (await client.get(f"{url}/openapi.json")).json()["servers"] == [{"url": prefix}]
        assert prefix in json.dumps((await client.get(f"{url}/v1/streams/nowhere")).json())


async def test_an_unparsable_request_gets_a_link_to_its_error(cluster: Cluster) -> None:
    async def refused(url: str, header: str) -> dict[str, Any]:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.setblocking(False)
            asking = b"GET / HTTP/1.1\r\n%b\r\n\r\n" % header.encode()
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, asking)
            answer = b""
            while part := await loop.sock_recv(client, 65_536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        problem: dict[str, Any] = json.loads(body)
        return problem

    pod = await cluster.pod(path_prefix="/set", trusted_proxies="127.0.0.1")
    assert (await refused(pod.url, "no host: x"))["type"].startswith("/set/errors#")
    assert (await refused(pod.url, "X-Forwarded-Prefix: /api"))["type"].startswith("/api/errors#")
