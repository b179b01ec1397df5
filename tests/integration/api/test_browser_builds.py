"""The npm package's builds for browsers, as pods serve them to any page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.cluster import Cluster, serving
from tools.js_client import BUILDS

from baton.api.browser_builds import NEWEST
from baton.app import create_app

PAGE = "https://chat.example.com"
PUBLIC = {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}


@contextlib.asynccontextmanager
async def mounted(cluster: Cluster, path: str, **given: object) -> AsyncIterator[str]:
    app = create_app(cluster.settings(**given))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    async with serving(Starlette(routes=[Mount(path, app)], lifespan=lifespan), baton_app=app) as url:
        yield url + path


@pytest.mark.parametrize("origins", [{}, {"allowed_origins": PAGE}, {"allowed_origins": "*"}], ids=str)
async def test_any_page_may_load_them_whatever_origins_are_allowed(cluster: Cluster, origins: dict[str, str]) -> None:
    pod = await cluster.pod(**origins)
    for asked in ({}, {"origin": PAGE}, {"origin": "https://other.example.com", "cookie": "session=1"}):
        for path in ("/client.js", f"/client/{NEWEST}"):
            found = await cluster.client.get(pod.url + path, headers=asked)
            assert {name: found.headers[name] for name in PUBLIC} == PUBLIC, (asked, path)
            assert "access-control-allow-credentials" not in found.headers
            assert "set-cookie" not in found.headers


async def test_a_build_is_kept_and_the_redirect_is_not(cluster: Cluster) -> None:
    pod = await cluster.pod()
    url, content = f"{pod.url}/client/{NEWEST}", (BUILDS / NEWEST).read_bytes()
    found = await cluster.client.get(url)
    assert (found.status_code, found.content) == (200, content)
    assert found.headers["content-type"] == "text/javascript; charset=utf-8"
    assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
    head = await cluster.client.head(url)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", found.headers["etag"])
    assert int(head.headers["content-length"]) == len(content)
    again = await cluster.client.get(url, headers={"if-none-match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert {name: again.headers[name] for name in PUBLIC} == PUBLIC
    newest = await cluster.client.get(f"{pod.url}/client.js", follow_redirects=False)
    assert (newest.status_code, newest.headers["location"]) == (302, f"/client/{NEWEST}")
    assert newest.headers["cache-control"] == "no-store"
    assert (await cluster.client.head(f"{pod.url}/client.js", follow_redirects=False)).status_code == 302


async def test_other_names_are_refused_with_what_there_is(cluster: Cluster) -> None:
    pod = await cluster.pod()
    for name in ("0.0.0.js", "released.toml", "..%2fpages.py", "%2e%2e", "x"):
        found = await cluster.client.get(f"{pod.url}/client/{name}")
        assert (found.status_code, found.json()["code"]) == (404, "not_found"), name
    assert NEWEST in (await cluster.client.get(f"{pod.url}/client/0.0.0.js")).json()["detail"]


async def test_the_build_of_the_release_before_is_served(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.api.browser_builds.NEWEST", "0.2.0.js")
    pod = await cluster.pod()
    assert (await cluster.client.get(f"{pod.url}/client.js", follow_redirects=False)).headers[
        "location"
    ] == "/client/0.2.0.js"
    assert (await cluster.client.get(f"{pod.url}/client/{NEWEST}")).status_code == 200


async def test_the_redirect_includes_a_mount_and_a_stripped_prefix(cluster: Cluster) -> None:
    async with mounted(cluster, "/inner", path_prefix="/stripped") as url:
        newest = await cluster.client.get(f"{url}/client.js", follow_redirects=False)
        assert newest.headers["location"] == f"/stripped/inner/client/{NEWEST}"
        assert (await cluster.client.get(f"{url}/client/{NEWEST}")).status_code == 200
